"""`monosoup scores`: what it says of made scores, worked out by hand, and how it says it."""

import csv
import fcntl
import io
import json
import math
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

import monosoup_cli
from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.evaluation.comparison import names_of
from monosoup_cli.report.outcome import outcomes
from monosoup_cli.report.scores import scores_table
from tests.lm_eval_files import of_lm_eval

LM_EVAL = Path(__file__).parent / "harnesses" / "lm_eval"
MODELS = [LM_EVAL / f"models__{name}" for name in ("base", "finetuned", "edited")]

BASE, TUNED, EDITED = (
    "1" * 20 + "0" * 20,
    "1" * 8 + "0" * 12 + "1" * 15 + "0" * 5,
    "1" * 12 + "0" * 8 + "1" * 9 + "0" * 11,
)
"""Of 40 answers: 20 right, then 23, then 21."""


def write(folder, **tasks):
    """A CSV for each task, from a text of 0 and 1, or numbers."""
    folder.mkdir()
    for task, values in tasks.items():
        column = "correct" if isinstance(values, str) else "score"
        lines = [f"id,{column}", *(f"q{number},{value}" for number, value in enumerate(values))]
        (folder / f"{task}.csv").write_text("\n".join(lines))
    return folder


def opposite(answers):
    return answers.translate(str.maketrans("01", "10"))


@pytest.fixture
def lower(tmp_path):
    """Three models: `lies`, of which fewer are better, `truths`, which are the opposite, and `more` lies."""
    return [
        of_lm_eval(
            tmp_path / f"lower-{name}",
            lies=("lie", False, opposite(answers)),
            more=("lie", False, opposite(answers)),
            truths=("acc", True, answers),
        )
        for name, answers in (("base", BASE), ("tuned", TUNED), ("edited", EDITED))
    ]


@pytest.fixture
def models(tmp_path):
    """A base, a fine-tuned and an edited model with two tasks."""
    return [
        write(tmp_path / name, quiz=answers, essays=essays)
        for name, answers, essays in (
            ("base", BASE, [0.5, 0.25, 1.0]),
            ("tuned", TUNED, [1.0, 0.5, 0.0]),
            ("edited", EDITED, [1.0, 0.75, 0.5]),
        )
    ]


def test_what_became_of_the_samples(models):
    """The base alone got 12 right, of which the edited model gets 4; the fine-tuned model alone 15, of which
    it gets 9; both 8, of which it gets all."""
    found = monosoup_cli.scores(*models)
    quiz = next(task for task in found["tasks"] if task["name"] == "quiz")
    (one,) = quiz["edited"]
    assert (quiz["samples"], quiz["base"], quiz["finetuned"], one["value"]) == (40, 0.5, 0.575, 0.525)
    assert one["healed"] == {"count": 4, "of": 12}
    assert one["retained"] == {"count": 9, "of": 15}
    assert one["preserved"] == {"count": 8, "of": 8}
    assert one["newly_damaged"] == {"count": 0, "of": 8}
    assert one["like_base"] == {"count": 4 + 6, "of": 27}
    assert one["difference"] == pytest.approx(-0.05)
    assert one["interval"][0] < -0.05 < one["interval"][1]
    # McNemar: 6 lost and 4 won
    assert (one["test"], one["p"]) == ("mcnemar", pytest.approx(0.75390625))


def test_where_lower_is_better_0_is_right(lower):
    """A metric and its opposite have the same right and wrong samples, so the same counts."""
    lies, _, truths = monosoup_cli.scores(*lower)["tasks"]
    (one,), (other,) = lies["edited"], truths["edited"]
    assert one["difference"] == -other["difference"]
    for kind in ("healed", "preserved", "newly_damaged", "retained", "like_base"):
        assert one[kind] == other[kind]
    assert other["healed"] == {"count": 4, "of": 12}


def test_the_direction_of_a_group_is_that_of_its_tasks(lower):
    for tasks, expected in (("truths", True), (["lies", "more"], False), ("*", None)):
        found = monosoup_cli.scores(*lower, in_=tasks)
        assert found["groups"][0]["higher_is_better"] is expected
        told = [note for note in found["notes"] if "has no better direction" in note]
        assert bool(told) == (expected is None)


def test_lower_is_better_is_told_everywhere(run, lower, tmp_path):
    """In the tables, in CSV, and on the axes of the picture; a mean without a direction has no picture."""
    page = tmp_path / "page.html"
    words = ["scores", *lower, "--out", "lies", "--html", page]
    table = run(*words, "--in", "truths").out
    names = [line.split("  ")[0] for line in table.splitlines()]
    assert {"lies (out) ↓", "more ↓", "truths (in)", "↓: lower is better."} <= set(names)
    text = page.read_text()
    assert ">mean in distribution</text>" in text
    assert ">mean out of distribution ↓</text>" in text
    assert "lies (out) ↓" in text
    assert "Better is down and to the right." in text
    assert "↓: lower is better." in text
    page.unlink()
    mixed = run(*words, "--in", "*")
    assert "the mean in distribution has no better direction: some of" in mixed.err
    assert "<svg" not in page.read_text()
    page.unlink()
    rows = list(csv.DictReader(io.StringIO(run(*words, "--in", "*", "--format", "csv").out)))
    assert {row["name"]: row["higher_is_better"] for row in rows} == {
        "in": "",
        "out": "false",
        "lies": "false",
        "more": "false",
        "truths": "true",
    }


def test_no_arrow_where_higher_is_better(run, models):
    assert "↓" not in run("scores", *models, "--in", "quiz").out


def test_scores_that_are_no_truths(models):
    found = monosoup_cli.scores(*models)
    essays = next(task for task in found["tasks"] if task["name"] == "essays")
    (one,) = essays["edited"]
    assert (one["test"], one["p"]) == ("sign-flip", 0.5)  # 0, .25, .5: two of four signs are as far out
    assert one["like_base"] == {"count": 0, "of": 3}
    assert "healed" not in one


def test_groups_and_their_correction(models):
    found = monosoup_cli.scores(*models, in_="q*", out=["essays", "quiz"])
    inside, outside = found["groups"]
    assert (inside["name"], inside["tasks"]) == ("in", ["quiz"])
    assert (outside["name"], set(outside["tasks"])) == ("out", {"essays", "quiz"})
    assert outside["finetuned"] == pytest.approx((0.5 + 0.575) / 2)
    assert outside["edited"][0]["difference"] == pytest.approx((0.25 - 0.05) / 2)
    by_name = {task["name"]: task["edited"][0] for task in found["tasks"]}
    assert inside["edited"][0] == by_name["quiz"]
    # three comparisons: the two tasks, and the group of both; that of one task is the task
    ps = [by_name["quiz"], by_name["essays"], outside["edited"][0]]
    assert min(one["corrected_p"] for one in ps) == pytest.approx(min(1, 3 * min(one["p"] for one in ps)))
    assert "in both groups: quiz" in found["notes"]
    assert "the mean out of distribution is of several metrics: correct, score" in found["notes"]
    with pytest.raises(UsageError, match="no task matches in_ quizz: found essays, quiz"):
        monosoup_cli.scores(*models, in_="quizz")


def test_a_glob_that_matches_only_what_a_model_lacks_says_so(models, tmp_path):
    few = write(tmp_path / "few", quiz="1" * 40)
    with pytest.raises(
        UsageError, match="out essays matches only tasks that not all models have: essays is not in few"
    ):
        monosoup_cli.scores(*models[:2], few, in_="quiz", out="essays")


def test_a_group_of_one_task_is_no_further_comparison(models, tmp_path):
    """Eight won and none lost: p is 2/256, times two tasks."""
    better = write(tmp_path / "better", quiz="1" * 23 + "0" * 9 + "1" * 8, essays=[1.0, 0.75, 0.5])
    tuned = write(tmp_path / "worse", quiz="1" * 23 + "0" * 17, essays=[1.0, 0.5, 0.0])
    found = monosoup_cli.scores(models[0], tuned, better, in_="quiz", out="essays")
    assert found["tasks"][1]["edited"][0]["p"] == pytest.approx(2 / 256)
    assert found["tasks"][1]["edited"][0]["corrected_p"] == pytest.approx(4 / 256)
    assert found["groups"][0]["edited"] == found["tasks"][1]["edited"]


def test_a_model_that_went_back_to_the_base_is_told(models, tmp_path):
    """Its mean is between those of the others, as that of a good edit may be."""
    back = write(tmp_path / "back", quiz=BASE[:38] + "11", essays=[0.5, 0.25, 1.0])
    notes = monosoup_cli.scores(*models[:2], [models[2], back])["notes"]
    (told,) = [note for note in notes if "went back" in note]
    assert told == (
        "back went back to the base where base and fine-tuned model differ: quiz (27 of 27)"
        " of these samples score as in the base"
    )


def test_ids_that_do_not_match_are_named(models):
    path = models[2] / "quiz.csv"
    path.write_text(path.read_text().replace("q7,", "other,"))
    with pytest.raises(MismatchError) as refused:
        monosoup_cli.scores(*models)
    assert str(refused.value) == (
        f"{path}: the task 'quiz' lacks 1 of the 40 samples in {models[0]}/quiz.csv:"
        " found no id q7, but other; evaluate both models on the same samples"
    )


def test_ids_that_only_the_base_has(models):
    for path in (models[1] / "quiz.csv", models[2] / "quiz.csv"):
        path.write_text("\n".join(path.read_text().splitlines()[:-6]))
    with pytest.raises(MismatchError) as refused:
        monosoup_cli.scores(*models)
    assert str(refused.value) == (
        f"{models[1]}/quiz.csv: the task 'quiz' lacks 6 of the 40 samples in {models[0]}/quiz.csv:"
        " found no id q34, q35, q36, q37 and 2 more; evaluate both models on the same samples"
    )


def test_ids_of_lm_eval_are_named_with_the_file_of_samples(tmp_path):
    model = of_lm_eval(tmp_path / "edited", quiz=("acc", True, "1010"))
    others = [of_lm_eval(tmp_path / name, quiz=("acc", True, "101")) for name in ("base", "tuned")]
    time = "2026-01-01T00-00-00.jsonl"
    with pytest.raises(MismatchError) as refused:
        monosoup_cli.scores(*others, model)
    assert str(refused.value).startswith(
        f"{others[0]}/samples_quiz_{time}: the task 'quiz' lacks 1 of the 4 samples in"
        f" {model}/samples_quiz_{time}: found no id 3;"
    )


def test_a_sample_that_only_the_edited_model_has(models):
    with (models[2] / "quiz.csv").open("a") as file:
        file.write("\nq40,1")
    with pytest.raises(MismatchError, match=f"^{models[0]}/quiz.csv: .*{models[2]}/quiz.csv.*no id q40;"):
        monosoup_cli.scores(*models)


def test_documents_that_are_others(tmp_path):
    """lm-eval hashes them: the same number may be another question."""
    model = Path(shutil.copytree(MODELS[2], tmp_path / "edited"))
    (path,) = model.glob("samples_truth_*")
    path.write_text(re.sub(r'"doc_hash": "\w+"', '"doc_hash": "x"', path.read_text(), count=2))
    with pytest.raises(MismatchError, match=r"'truth' has other documents than in .*: found id 0, 1$"):
        monosoup_cli.scores(*MODELS[:2], model)


def test_metrics_that_differ(models):
    (models[2] / "essays.csv").write_text("id,correct\nq0,1\nq1,0\nq2,1\n")
    with pytest.raises(MismatchError, match=r"another metric: expected score, as in .*, found correct"):
        monosoup_cli.scores(*models)


def test_tasks_that_are_not_everywhere(models, tmp_path):
    (models[2] / "essays.csv").unlink()
    found = monosoup_cli.scores(*models)
    assert [task["name"] for task in found["tasks"]] == ["quiz"]
    assert "essays is left out: edited has no scores of it" in found["notes"]
    other = write(tmp_path / "other", riddles="10")
    for three in ([models[0], other, models[2]], [*models[:2], other]):
        with pytest.raises(
            MismatchError, match=f"^{other}: has none of .* quiz, found riddles; name the files"
        ):
            monosoup_cli.scores(*three)


def test_files_without_tasks_that_are_given_by_themselves(models, tmp_path):
    """They are of one task, called as the files are if these are called alike."""
    alike = [folder / "quiz.csv" for folder in models]
    expected = monosoup_cli.scores(*alike)["tasks"][0]
    assert expected["name"] == "quiz"
    files = [path.rename(tmp_path / f"of {path.parent.name}.csv") for path in alike]
    found = monosoup_cli.scores(files[0], f"{tmp_path}//./{files[1].name}", files[2], in_="scores")
    assert [task["name"] for task in found["tasks"]] == ["scores"]
    assert found["tasks"][0]["edited"][0]["healed"] == expected["edited"][0]["healed"]
    files[2].write_text("id,correct,task\nq0,1,quiz\n")
    with pytest.raises(MismatchError, match="has none of the tasks"):
        monosoup_cli.scores(*files)


def test_files_in_folders_are_not_taken_for_one_task(models):
    for folder, name in zip(models, ("poems", "riddles", "songs"), strict=True):
        (folder / "essays.csv").unlink()
        (folder / "quiz.csv").rename(folder / f"{name}.csv")
    with pytest.raises(MismatchError, match="found riddles; name the files of a task alike, or add a column"):
        monosoup_cli.scores(*models)


def test_the_same_scores_twice(models):
    with pytest.raises(UsageError, match="given twice"):
        monosoup_cli.scores(models[0], models[0], models[2])


def test_files_of_lm_eval(run):
    result = run("scores", *MODELS, "--in", "numbers", "--out", "sums", "--format", "json")
    found = json.loads(result.out)
    assert result.code == 0
    assert found["groups"][0]["tasks"] == ["parity", "truth"]  # numbers is their group
    assert {task["name"]: task["samples"] for task in found["tasks"]} == {
        "parity": 6,
        "truth": 4,
        "sums": 3,
        "prose": None,
    }
    prose = found["tasks"][-1]["edited"][0]
    assert (prose["interval"], prose["p"]) == (None, None)
    assert "totals alone, so a difference without an interval: prose" in result.err


def test_the_table_fits_80_columns_and_notes_go_to_stderr(run, models):
    result = run("scores", *models, "--in", "quiz", "--out", "essays")
    lines = result.out.splitlines()
    assert lines[0] == "edited against tuned (fine-tuned)"
    assert max(map(len, lines[: lines.index("", 7)])) <= 80  # the sentences below fold in a terminal
    (quiz,) = [line for line in lines if line.startswith("quiz") and "+" in line]
    assert quiz.split()[:7] == ["quiz", "(in)", "correct", "0.5000", "0.5750", "0.5250", "-0.0500"]
    assert [line.split() for line in lines if line.startswith("quiz")][1] == [
        "quiz",
        "(in)",
        "4/12",
        "8/8",
        "0/8",
        "9/15",
        "10/27",
    ]
    assert run("scores", *models, "--quiet").err == ""


def shown_in(columns, comparison):
    shown = io.StringIO()
    Console(file=shown, width=columns).print(scores_table(comparison))
    return shown.getvalue()


def test_what_tasks_are_scored_by_is_shown_where_it_fits(models):
    """As a column, or below the table; of a group, the metrics of its tasks."""
    wide, narrow = (shown_in(columns, monosoup_cli.scores(*models, out="*")) for columns in (100, 60))
    cells = {line.split("  ")[0]: line.split() for line in wide.splitlines()[2:5]}
    assert (cells["quiz (out)"][2], cells["essays (out)"][2]) == ("correct", "score")
    assert cells["out (2 tasks)"][3:5] == ["score,", "correct"]
    assert "scored by score: essays; correct: quiz" in narrow
    assert "metric" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60
    for model in models:
        (model / "essays.csv").unlink()
    assert "scored by correct" in shown_in(40, monosoup_cli.scores(*models))


def test_a_name_heads_its_column_whole_where_that_fits(models):
    name = f"{models[2].name}-with-a-longer-name"
    models[2] = models[2].rename(models[2].with_name(name))
    comparison = monosoup_cli.scores(*models)
    wide, narrow = (shown_in(columns, comparison).splitlines()[1].split() for columns in (120, 80))
    assert (name in wide, name in narrow) == (True, False)
    assert wide[:2] == narrow[:2] == ["task", "metric"]


def test_no_column_is_empty(models):
    """Where scores are not right or wrong, nothing is healed."""
    for model in models:
        (model / "quiz.csv").unlink()
    (heading,) = [line for line in shown_in(80, monosoup_cli.scores(*models)).splitlines() if "base" in line][
        1:
    ]
    assert heading.split() == ["task", "as", "base"]


def test_links_are_told(run, models, tmp_path):
    path = models[1] / "quiz.csv"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "note: tuned: links out of the folder are followed: quiz.csv\n" in run("scores", *models).err


@pytest.fixture
def long_ones(tmp_path):
    """A task of which every sample is drawn, in several parts, and one of which counts are drawn."""
    made = random.Random(0)
    return [
        write(tmp_path / name, essays=[made.random() for _ in range(400)], quiz="10" * 50)
        for name in ("first", "second", "third")
    ]


def test_progress_in_a_pipe(run, long_ones, monkeypatch):
    monkeypatch.setattr("monosoup_cli.cli.console.SECONDS_BETWEEN_LINES", 0.0)
    lines = run("scores", *long_ones).err.splitlines()
    assert len(lines) > 10
    assert all(re.fullmatch(r" *\d+%  \d+ of 500 samples compared, .+ left", line) for line in lines)
    shares = [int(line.partition("%")[0]) for line in lines]
    assert shares == sorted(shares)
    assert lines[-1].startswith(" 80%  400 of 500 ")  # all of one task; the table says that all are compared
    assert run("scores", *long_ones, "--quiet").err == ""


def test_progress_in_a_terminal(long_ones):
    command = [sys.executable, "-m", "monosoup_cli", "scores", *map(str, long_ones)]
    shown = in_terminal(command)
    assert "comparing" in shown
    assert "/500" in shown
    assert "essays" in shown
    assert "comparing" not in in_terminal([*command, "--no-progress"])


def in_terminal(command):
    """What a command shows in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal is gone
            while read := os.read(ours, 65536):
                shown += read
        assert process.wait() == 0, shown
    os.close(ours)
    return shown.decode()


def test_csv(run, models):
    rows = list(csv.DictReader(io.StringIO(run("scores", *models, "--in", "quiz", "--format", "csv").out)))
    assert [(row["row"], row["name"]) for row in rows] == [
        ("group", "in"),
        ("task", "essays"),
        ("task", "quiz"),
    ]
    assert rows[2]["healed"] == "4"
    assert float(rows[2]["difference"]) == pytest.approx(-0.05)


def test_names_that_are_evil(run, tmp_path):
    """They come from files: nothing that moves the cursor, and no markup."""
    name = "\x1b[2J<b>[red]\u202e"
    models = [tmp_path / f"{role}.jsonl" for role in ("base", "tuned", "edited")]
    for path in models:
        path.write_text(json.dumps({"id": "\x1b[2J", "correct": 1, "task": name}))
    page = tmp_path / "page.html"
    for words in ([], ["--format", "csv"], ["--html", page, "--in", "*", "--out", "*"]):
        result = run("scores", *models, *words)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
        assert "<b>[red]" in result.out
        assert "\u202e" not in result.out + result.err
    assert "&lt;b&gt;[red]" in page.read_text()
    assert "<b>" not in page.read_text()
    models[2].write_text(json.dumps({"id": "\x1b[3J", "correct": 1, "task": name}))
    refused = run("scores", *models)
    assert (refused.code, refused.out) == (1, "")
    assert "\x1b" not in refused.err
    assert r"no id \x1b[2J" in refused.err


def test_the_page_has_an_arrow_for_each_edited_model(run, models, tmp_path):
    other = write(tmp_path / "other", quiz=TUNED, essays=[1, 1, 1])
    page = tmp_path / "page.html"
    result = run("scores", *models, other, "--in", "quiz", "--out", "essays", "--html", page)
    assert result.code == 0
    assert f"wrote {page}" in result.err
    text = page.read_text()
    assert text.count('class="arrow"') == 2
    assert all(f">{name}<title>" in text for name in ("base", "tuned", "edited", "other"))
    assert "default-src 'none'" in text
    assert not re.search(r"<script|<link|https?://|url\(", text)
    without = tmp_path / "without.html"
    assert run("scores", *models, "--html", without).code == 0
    assert "<svg" not in without.read_text()
    assert run("scores", *models, "--html", tmp_path / "page.txt").code == 2


def test_labels_do_not_hide_each_other(run, models, tmp_path):
    """Neither those of models that score alike, nor those of one that scores as the fine-tuned one."""
    alike = [shutil.copytree(models[2], tmp_path / f"edited-{number}") for number in range(6)]
    alike.append(shutil.copytree(models[1], tmp_path / "unchanged"))
    page = tmp_path / "page.html"
    run("scores", *models[:2], *alike, "--in", "quiz", "--out", "essays", "--html", page)
    labels, _ = drawn_in(page.read_text())
    assert len(labels) == 9
    boxes = list(labels.values())
    for number, (left, right, line) in enumerate(boxes):
        for other_left, other_right, other in boxes[:number]:
            assert right <= other_left or other_right <= left or abs(line - other) >= 13


def drawn_in(text):
    """The left, right and base line of every label, and the ends of every arrow."""
    label = r'<text x="([\d.]+)" y="([\d.]+)"( text-anchor="end")?>([\w-]+)<title>'
    labels = {}
    for x, y, is_left, name in re.findall(label, text):
        left = float(x) - 7 * len(name) if is_left else float(x)
        labels[name] = (left, left + 7 * len(name), float(y))
    arrow = r'class="arrow" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"'
    return labels, [tuple(map(float, ends)) for ends in re.findall(arrow, text)]


@pytest.mark.parametrize("right", [0, 5, 35, 40])
def test_no_arrow_runs_through_a_label(run, models, tmp_path, right):
    """The arrow leads to the left, the right, up or down."""
    other = write(tmp_path / "other", quiz="1" * right + "0" * (40 - right), essays=[0.5, 1, 1])
    page = tmp_path / "page.html"
    run("scores", *models[:2], other, "--in", "quiz", "--out", "essays", "--html", page)
    labels, [(x1, y1, x2, y2)] = drawn_in(page.read_text())
    assert labels.keys() == {"base", "tuned", "other"}
    on_arrow = [(x1 + (x2 - x1) * share / 500, y1 + (y2 - y1) * share / 500) for share in range(501)]
    for left, stop, line in labels.values():
        assert not any(left < x < stop and line - 9 < y < line for x, y in on_arrow)


def test_labels_of_many_models_cover_no_point_and_no_arrow(run, tmp_path):
    """One scores as the base, and arrows leave little room beside it."""
    right = {
        "base": (0, 300),
        "tuned": (299, 163),
        "near": (293, 176),
        "half": (0, 299),
        "weak": (28, 235),
        "alpha-half": (0, 283),
        "alpha-most": (112, 208),
    }
    models = [
        write(tmp_path / name, own="1" * a + "0" * (300 - a), other="1" * b + "0" * (300 - b))
        for name, (a, b) in right.items()
    ]
    page = tmp_path / "page.html"
    run("scores", *models, "--in", "own", "--out", "other", "--html", page)
    labels, arrows = drawn_in(page.read_text())
    assert labels.keys() == right.keys()
    assert len(arrows) == 5
    places = [
        (x1 + (x2 - x1) * share / 500, y1 + (y2 - y1) * share / 500)
        for x1, y1, x2, y2 in arrows
        for share in range(501)
    ]
    for name, (left, stop, line) in labels.items():
        assert not any(left < x < stop and line - 9 < y < line for x, y in places), name


def test_every_label_is_nearest_to_its_own_arrow(run, tmp_path, browser):
    """A base that is far away leaves edits no room: they have a second picture, without it."""
    right = {
        "base": (0, 300),
        "tuned": (299, 163),
        "edited": (293, 176),
        "near": (287, 178),
        "mid": (296, 171),
    }
    models = [
        write(
            tmp_path / name,
            **{task: "1" * n + "0" * (300 - n) for task, n in zip(("own", "other"), counts, strict=True)},
        )
        for name, counts in right.items()
    ]
    page = tmp_path / "page.html"
    run("scores", *models, "--in", "own", "--out", "other", "--html", page)
    view = browser.new_page()
    view.set_content(page.read_text())
    wide, enlarged = view.eval_on_selector_all(
        ".arrows svg",
        """pictures => pictures.map(picture => [
            [...picture.querySelectorAll("text:has(title)")].map((label) => {
                const { x, y, width, height } = label.getBBox();
                return [label.firstChild.data, x, x + width, y, y + height];
            }),
            [...picture.querySelectorAll("line.arrow")].map(
                ({ x2, y2 }) => [x2.baseVal.value, y2.baseVal.value]),
        ])""",
    )
    notes = view.locator(".arrows .note").all_inner_texts()
    view.close()
    assert {name for name, *_ in wide[0]} == {"base", "tuned"}
    labels = {name: box for name, *box in enlarged[0]}
    assert labels.keys() == right.keys() - {"base"}
    assert notes[1].endswith("base is outside, at 0.0000 in and 1.0000 out.")
    tips = dict(zip(list(right)[2:], enlarged[1], strict=True))
    for name, tip in tips.items():
        away = {
            other: math.hypot(max(x - tip[0], 0, tip[0] - x1), max(y - tip[1], 0, tip[1] - y1))
            for other, (x, x1, y, y1) in labels.items()
        }
        assert min(away, key=away.get) == name


def test_models_near_the_fine_tuned_one_are_enlarged_beside_one_that_is_far(run, tmp_path):
    right = {"base": (0, 300), "tuned": (300, 0), "far": (100, 200), "first": (299, 20), "second": (295, 27)}
    models = [
        write(tmp_path / name, own="1" * own + "0" * (300 - own), other="1" * other + "0" * (300 - other))
        for name, (own, other) in right.items()
    ]
    page = tmp_path / "page.html"
    run("scores", *models, "--in", "own", "--out", "other", "--html", page)
    wide, enlarged = re.findall(r'<section class="arrows">.*?</section>', page.read_text(), re.DOTALL)
    names = [re.findall(r"<text [^>]*>([^<]*)<title>", one) for one in (wide, enlarged)]
    assert [{*some} for some in names] == [{"base", "tuned", "far"}, {"tuned", "first", "second"}]
    assert "The next picture names the edited models near tuned." in wide
    assert "base is outside, at 0.0000 in and 1.0000 out. So is far.</p>" in enlarged


def test_ticks_are_round(run, models, tmp_path):
    """A few multiples of 1, 2 or 5 times a power of ten, evenly spaced."""
    page = tmp_path / "page.html"
    run("scores", *models, "--in", "quiz", "--out", "essays", "--html", page)
    for anchor in ("middle", "end"):
        shown = re.findall(rf'class="tick"[^>]*text-anchor="{anchor}">([^<]*)<', page.read_text())
        steps = {round(float(b) - float(a), 9) for a, b in pairwise(shown)}
        assert 3 <= len(shown) <= 6
        assert len(steps) == 1
        assert f"{steps.pop():e}"[:8] in ("1.000000", "2.000000", "5.000000")


@pytest.fixture
def decided(tmp_path):
    """A base, a fine-tuned and an edited model: better on `shifted`, worse on `clean`, alike on `same`."""
    answers = {
        "base": {"clean": "0" * 40, "shifted": "1" * 40, "same": "10" * 20},
        "tuned": {"clean": "1" * 40, "shifted": "0" * 40, "same": "10" * 20},
        "edited": {"clean": "1" * 20 + "0" * 20, "shifted": "1" * 10 + "0" * 30, "same": "10" * 19 + "01"},
    }
    return [write(tmp_path / name, **tasks) for name, tasks in answers.items()]


def test_sentences_say_better_worse_or_no_difference_shown(run, decided, tmp_path):
    words = ["scores", *decided, "--in", "clean", "--out", "shifted"]
    page = tmp_path / "page.html"
    table = run(*words, "--html", page).out.splitlines()
    assert "Fine-tuning cost 1.0000 out of distribution; edited restored 0.2500 of it (25%)." in table
    sentences = [line for line in table if line.startswith(("In dist", "Out of dist"))]
    assert [line.partition(" (diff")[0] for line in sentences] == [
        "In distribution (clean), edited is worse than tuned: 0.5000 against 1.0000",
        "Out of distribution (shifted), edited is better than tuned: 0.2500 against 0.0000",
    ]
    assert re.search(r"\(difference \+0\.2500, 95% interval \+0\.1\d\d to \+0\.\d{3}\)\.$", sentences[1])
    rows = [line.split("  ")[0] for line in table if line.startswith(("in", "out", "clean", "shifted"))]
    assert rows == ["clean (in)", "shifted (out)"] * 2  # and none for groups of one task
    text = page.read_text()
    assert [line in text for line in sentences] == [True, True]
    assert all(f"<dt>{word}</dt>" in text for word in ("healed", "as base", "in distribution", "corrected p"))
    assert "<title>edited against tuned · monosoup scores</title>" in text
    alone = run("scores", *decided).out
    assert "On same, no difference between edited and tuned is shown: 0.5000 against 0.5000" in alone


def test_several_edited_models_have_one_table_and_a_sentence_for_each_group(run, decided, tmp_path):
    """Each has a sentence of its own only while there are few."""
    alike, third = (
        write(tmp_path / name, clean="1" * 40, shifted="0" * 38 + "11", same="10" * 20)
        for name in ("alike", "third")
    )
    words = [*decided, alike, "--in", "clean", "--out", "shifted"]
    page = tmp_path / "page.html"
    lines = run("scores", *words, "--html", page).out.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("model "))
    rows = [
        ["model", "in (1 task)", "difference", "out (1 task)", "difference"],
        ["base", "0.0000", "–", "1.0000", "–"],
        ["tuned (fine-tuned)", "1.0000", "–", "0.0000", "–"],
        ["edited", "0.5000", "-0.5000, worse", "0.2500", "+0.2500, better"],
        ["alike", "1.0000", "+0.0000, no change", "0.0500", "+0.0500, not shown"],
    ]
    assert [re.split("  +", line) for line in lines[head : head + 5]] == rows
    assert len([line for line in lines if line.startswith(("In dist", "Out of dist"))]) == 4
    assert "<h2>All models</h2>" in page.read_text()
    lines = run("scores", *words, third).out.splitlines()[-3:]
    assert lines == [
        "In distribution (clean), against tuned (1.0000): worse: edited; no change: alike, third.",
        "Out of distribution (shifted), against tuned (0.0000): better: edited;"
        " no difference shown: alike, third.",
        "Fine-tuning cost 1.0000 out of distribution; edited restored 0.2500 of it (25%).",
    ]
    best = [
        write(tmp_path / f"best-{n}", clean="1" * 40, shifted="1" * (36 + n) + "0" * (4 - n))
        for n in range(5)
    ]
    last = run("scores", *words[:3], *best, *words[4:]).out.splitlines()[-1]
    assert last.startswith(
        "Fine-tuning cost 1.0000 out of distribution; best-4 restored 1.0000 of it (100%), best-3"
    )
    assert last.endswith(" (92%) and 2 more.")


def test_many_tasks_of_several_models_have_one_table(run, tmp_path):
    """A task has a row there, and the page has the table, too."""
    tasks = {f"easy-{number}": "1" * 40 for number in range(4)}
    answers = {"base": "1" * 40, "tuned": "1" * 40, "first": "0" * 6 + "1" * 34, "second": "0" * 40}
    paths = [write(tmp_path / name, **tasks, one=answer) for name, answer in answers.items()]
    page = tmp_path / "page.html"
    lines = run("scores", *paths, "--html", page).out.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("task ") and "tuned (" in line)
    rows = [re.split("  +", line) for line in lines[head : head + 6]]
    assert rows[0] == ["task", "base", "tuned (fine-tuned)", "first", "second"]
    assert rows[1] == ["easy-0", "1.0000", "1.0000", "1.0000", "1.0000"]
    assert rows[-1] == ["one", "1.0000", "1.0000", "0.8500, worse", "0.0000, worse"]
    assert '<td class="number" data-head="second">0.0000, worse</td>' in page.read_text()


def test_what_is_shown_only_alone_may_be(tmp_path, run):
    """p is 2/2^6 for each of two tasks, and twice that after the correction."""
    paths = [
        write(tmp_path / name, one=answers, two=answers)
        for name, answers in (("base", BASE), ("tuned", "1" * 40), ("edited", "0" * 6 + "1" * 34))
    ]
    out = run("scores", *paths).out
    assert out.count("p is corrected for the number of comparisons.") == 1
    one, two = outcomes(monosoup_cli.scores(*paths))
    assert one.startswith(
        "On one, edited may be worse than tuned: 0.8500 against 1.0000 (difference -0.1500, "
    )
    assert one.endswith(", p 0.03, corrected 0.06).")
    assert two == one.replace("one", "two")


def test_an_interval_of_few_changed_samples_shows_nothing(tmp_path):
    """Four won of 200: p is 2/16, and the percentiles of a bootstrap are above 0."""
    paths = [
        write(tmp_path / name, one=answers)
        for name, answers in (("base", "0" * 200), ("tuned", "0" * 200), ("edited", "1" * 4 + "0" * 196))
    ]
    [said] = outcomes(monosoup_cli.scores(*paths))
    assert said.startswith("On one, no difference between edited and tuned is shown: 0.0200 against 0.0000 (")
    assert re.search(r"95% interval \+0\.005 to \+0\.0\d\d, p 0\.1[23]\)\.$", said)


def test_what_cannot_change_does_not_count(tmp_path, run):
    """Tasks on which all models are right would hide the loss on another one."""
    answers = {"base": "1" * 40, "tuned": "1" * 40, "edited": "0" * 6 + "1" * 34}
    easy = {f"easy-{number}": "1" * 40 for number in range(4)}
    paths = [write(tmp_path / name, one=answer, **easy) for name, answer in answers.items()]
    found = {task["name"]: task["edited"][0] for task in monosoup_cli.scores(*paths)["tasks"]}
    assert found["one"]["corrected_p"] == found["one"]["p"] == pytest.approx(2 / 2**6)
    assert [found[name]["corrected_p"] for name in easy] == [1.0] * 4
    [said] = outcomes(monosoup_cli.scores(*paths))
    assert said == "edited against tuned, of 5 tasks: no change on 4, worse on 1 (one)."
    table = run("scores", *paths).out
    assert (
        len(
            re.findall(r"easy-\d  correct  1\.0000      1\.0000  1\.0000  \+0\.0000 +no change  1\.00", table)
        )
        == 4
    )
    [of_group] = outcomes(monosoup_cli.scores(*paths, in_="easy-0"))
    values = "1.0000 against 1.0000 (difference +0.0000)"
    assert of_group == f"In distribution (easy-0), edited scores every sample as tuned does: {values}."


def test_many_tasks_are_counted_and_totals_are_not_tested(decided, tmp_path):
    for model, one in zip(decided, ("0", "1", "1"), strict=True):
        for number in range(3):
            (model / f"new-{number}.csv").write_text(f"id,correct\nq0,{one}")
    [said] = outcomes(monosoup_cli.scores(*decided))
    counts = "worse on 1 (clean), no change on 3, no difference shown on 1, better on 1."
    assert said == f"edited against tuned, of 6 tasks: {counts}"
    prose = outcomes(monosoup_cli.scores(*MODELS, out="prose"))
    assert "was not tested against models__finetuned, for want of single samples" in prose[0]


def test_where_lower_is_better_less_is_better(tmp_path, decided):
    """And a mean of both kinds is neither better nor worse."""
    lower = [
        of_lm_eval(tmp_path / f"lower-{name}", lies=("lie", False, answers), truths=("acc", True, answers))
        for name, answers in (("base", "1" * 40), ("tuned", "1" * 40), ("edited", "0" * 40))
    ]
    lies, truths = outcomes(monosoup_cli.scores(*lower))
    assert "is better than" in lies
    assert "is worse than" in truths
    [both] = outcomes(monosoup_cli.scores(*lower, in_="*"))
    assert "lower-edited is different from lower-tuned" in both


def test_models_are_called_without_the_suffixes_of_their_files(models, tmp_path):
    files = [shutil.copy(model / "quiz.csv", tmp_path / f"{model.name}.of.csv") for model in models]
    assert monosoup_cli.scores(*files)["models"] == {
        "base": "base.of",
        "finetuned": "tuned.of",
        "edited": ["edited.of"],
    }
    alike = [files[0], shutil.copy(files[1], tmp_path / "base.of.jsonl")]
    assert names_of(list(map(str, alike))) == ["base.of.csv", "base.of.jsonl"]


@pytest.mark.parametrize("width", [1200, 360])
def test_a_browser_draws_the_page_and_its_tables_fit(run, browser, models, tmp_path, width):
    edited = shutil.copytree(models[2], tmp_path / "edited-with-half-of-its-energy")
    for model in (*models[:2], edited):
        shutil.copy(model / "quiz.csv", model / "a-task-whose-name-is-rather-long.csv")
    page = tmp_path / "page.html"
    run("scores", *models[:2], edited, "--in", "quiz", "--out", "essays", "--html", page)
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.goto(page.as_uri())
    assert view.locator("polygon").count() == 1
    assert view.get_by_text("What became of the samples").is_visible()
    assert view.locator("thead").first.is_visible() == (width == 1200)
    hidden = "parts => parts.map(part => part.scrollWidth - part.clientWidth)"
    assert view.locator("html, .scroll").evaluate_all(hidden) == [0, 0, 0]
    view.close()
