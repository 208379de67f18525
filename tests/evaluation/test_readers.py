"""What harnesses leave: files that they wrote, and what is wrong with others."""

import json
import os
import shutil
from pathlib import Path

import pytest

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.evaluation.table import read_tasks
from monosoup_cli.evaluation.task import Choice

HARNESSES = Path(__file__).parent / "harnesses"
LM_EVAL = HARNESSES / "lm_eval"


def read(path, *metrics):
    choice = Choice(metrics)
    tasks, _ = read_tasks(str(path), choice)
    choice.check_used()
    return tasks


@pytest.fixture
def model(tmp_path):
    """A copy of what lm-eval left of a model, to be changed."""
    return Path(shutil.copytree(LM_EVAL / "models__base", tmp_path / "output" / "models__base"))


def results_in(model):
    return next(model.glob("results_*.json"))


def changed(model, change):
    path = results_in(model)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_lm_eval_as_it_wrote_it():
    tasks = read(LM_EVAL / "models__finetuned")
    assert set(tasks) == {"parity", "truth", "sums", "prose"}
    parity, sums, prose = tasks["parity"], tasks["sums"], tasks["prose"]
    assert (parity.metric, parity.higher_is_better, parity.groups) == ("acc", True, ["numbers"])
    assert list(parity.scores) == [str(number) for number in range(6)]
    assert sum(parity.scores.values()) / 6 == pytest.approx(parity.value)
    assert len(parity.contents) == 6
    assert (sums.metric, len(sums.scores)) == ("exact_match,strict-match", 3)
    assert (prose.metric, prose.higher_is_better, prose.scores) == ("word_perplexity", False, None)
    assert prose.why_no_scores == "its word_perplexity has no score of each sample"


@pytest.mark.parametrize("wanted", ["exact_match,flexible-extract", "sums=exact_match,flexible-extract"])
def test_the_other_filter_of_lm_eval(wanted):
    assert read(LM_EVAL / "models__base", wanted)["sums"].metric == "exact_match,flexible-extract"


def test_metrics_that_are_asked_for():
    tasks = read(LM_EVAL / "models__base", "acc_norm", "parity=brier_score")
    assert {name: task.metric for name, task in tasks.items()} == {
        "parity": "brier_score",
        "truth": "acc_norm",
        "sums": "exact_match,strict-match",
        "prose": "word_perplexity",
    }
    assert tasks["parity"].scores is None
    assert not tasks["parity"].higher_is_better
    with pytest.raises(UsageError, match="'truth' has no metric 'f1'"):
        read(LM_EVAL / "models__base", "truth=f1")
    with pytest.raises(UsageError, match="--metric f1: found 'acc', 'acc_norm', 'brier_score', "):
        read(LM_EVAL / "models__base", "f1")


def test_the_folder_around_that_of_the_model_and_the_file_itself(model):
    tasks = read(model)
    of_file = read(results_in(model))
    assert {name: task.scores for name, task in read(model.parent).items()} == {
        name: task.scores for name, task in tasks.items()
    }
    assert of_file["truth"].scores == tasks["truth"].scores
    shutil.copytree(model, model.parent / "other")
    with pytest.raises(CheckpointError, match="several models: expected the folder of one, found models__b"):
        read(model.parent)


def test_the_newest_results_of_each_task_count(model):
    """A later run of one task alone: it counts for that task, and its samples with it."""
    for path in LM_EVAL.glob("models__finetuned/*"):
        shutil.copy(path, model)
    newest = max(model.glob("results_*"))
    content = json.loads(newest.read_text())
    del content["results"]["truth"]
    newest.write_text(json.dumps(content))
    tasks, base, later = read(model), read(LM_EVAL / "models__base"), read(LM_EVAL / "models__finetuned")
    assert tasks["truth"].scores == base["truth"].scores
    assert tasks["parity"].scores == later["parity"].scores != base["parity"].scores


def test_the_files_that_macos_leaves_beside_others_are_not_read(model):
    path = results_in(model)
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7Mac OS X")
    assert "parity" in read(model)


def test_without_samples_there_are_totals(model):
    for path in model.glob("samples_*"):
        path.unlink()
    tasks = read(model)
    assert {task.scores for task in tasks.values()} == {None}
    assert {task.why_no_scores for task in tasks.values()} == {"the harness left no samples"}
    assert tasks["parity"].value == read(LM_EVAL / "models__base")["parity"].value


def test_a_total_that_is_no_mean_of_its_samples(model):
    """As F1 is: no test of its samples is one of the metric."""
    changed(model, lambda content: content["results"]["parity"].update({"acc,none": 0.123}))
    parity = read(model)["parity"]
    assert (parity.value, parity.scores, parity.why_no_scores) == (
        0.123,
        None,
        "its acc is no mean over samples",
    )


def test_a_nan_of_lm_eval_is_read(model):
    """Python's own JSON, as lm-eval writes it: a standard error of one sample is NaN."""
    changed(model, lambda content: content["results"]["parity"].update({"acc_stderr,none": float("nan")}))
    assert read(model)["parity"].metric == "acc"


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "NaN"), (float("-inf"), "-inf"), (1e300, "1e+300"), (None, "None")]
)
def test_a_metric_that_is_no_number_is_not_replaced_by_the_next_one(model, value, shown):
    changed(model, lambda content: content["results"]["parity"].update({"acc,none": value}))
    with pytest.raises(CheckpointError) as refused:
        read(model)
    assert str(refused.value) == (
        f"{results_in(model)}: the acc of the task 'parity' is {shown};"
        " choose another: --metric parity=acc_norm"
    )
    assert read(model, "parity=acc_norm")["parity"].metric == "acc_norm"
    with pytest.raises(CheckpointError, match="the acc of the task 'parity'"):
        read(model, "acc")


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "NaN"), (float("-inf"), "-inf"), (1e300, "1e+300")]
)
def test_a_sample_of_lm_eval_whose_score_is_no_number(model, value, shown):
    """Its total may be a number: that of a metric that leaves such samples out."""
    (path,) = model.glob("samples_parity_*")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples[4]["acc"] = value
    path.write_text("\n".join(map(json.dumps, samples)))
    with pytest.raises(CheckpointError) as refused:
        read(model)
    assert str(refused.value) == (
        f"{path}: the acc of the task 'parity' is {shown} for the id '4' (line 5);"
        " choose another: --metric parity=acc_norm"
    )
    assert read(model, "parity=acc_norm")["parity"].scores


def test_a_first_metric_of_clip_benchmark_that_is_no_number(tmp_path):
    for text in ("NaN", "null", "1e400"):
        (tmp_path / "a.json").write_text(f'{{"dataset": "cars", "metrics": {{"acc1": {text}, "acc5": 1}}}}')
        with pytest.raises(
            CheckpointError, match=r"the acc1 of the task 'cars' is .*; choose another: .*cars=acc5"
        ):
            read(tmp_path)


def test_the_direction_where_the_file_does_not_say_it(model):
    """Versions before 0.4.3 leave it in the configuration of the task alone, if at all."""

    def say_nothing(content):
        del content["higher_is_better"]
        content["configs"]["prose"]["metric_list"] = [{"metric": "word_perplexity"}]
        content["configs"]["truth"]["metric_list"] = [{"metric": "acc", "higher_is_better": False}]

    changed(model, say_nothing)
    tasks = read(model, "parity=brier_score")
    assert {name: task.higher_is_better for name, task in tasks.items()} == {
        "parity": False,
        "truth": False,
        "sums": True,
        "prose": False,
    }


def test_samples_that_are_cut(model):
    (path,) = model.glob("samples_parity_*")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(
        CheckpointError, match=r"samples_parity.*not all samples are there: expected 6, found 5"
    ):
        read(model)
    path.write_text("".join([*lines, lines[2]]))
    with pytest.raises(
        CheckpointError, match=r"samples_parity.*'parity' has ids twice: found '2' \(line 7\)$"
    ):
        read(model)
    path.write_text("".join(lines)[:-20])
    with pytest.raises(CheckpointError, match="line 6: the sample is not valid JSON"):
        read(model)


def test_clip_benchmark_as_it_wrote_it():
    """It writes NaN for what it cannot compute."""
    path = HARNESSES / "clip_benchmark" / "1.json"
    assert "NaN" in path.read_text()
    (task,) = read(path).values()
    assert (task.name, task.metric, task.scores) == ("dummy", "acc1", None)
    with pytest.raises(
        CheckpointError, match=r"1\.json: the acc5 of the task 'dummy' is NaN; choose another: "
    ):
        read(path, "acc5")
    with pytest.raises(UsageError, match="no task has"):
        read(path, "acc7")
    with pytest.raises(CheckpointError, match=r"'dummy' is there twice: found .*1\.json and .*2\.json"):
        read(path.parent)


def test_a_folder_of_clip_benchmark(tmp_path):
    for dataset, task in (("wds/imagenet1k", "zeroshot_classification"), ("wds/imagenet1k", "linear_probe")):
        content = {"dataset": dataset, "task": task, "metrics": {"acc1": 0.5}, "language": "en"}
        (tmp_path / f"{task}.json").write_text(json.dumps(content))
    (tmp_path / "notes.txt").write_text("not a result")
    assert set(read(tmp_path)) == {"wds/imagenet1k", "wds/imagenet1k:linear_probe"}


def test_plain_files(tmp_path):
    (tmp_path / "reviews.csv").write_text('id,correct,extra\na,1,x\n"b, c",FALSE,y\n\n3,true,z\n')
    lines = [
        {"id": 1, "score": 0.5, "task": "a"},
        {"id": 1, "score": 2, "task": "b"},
        {"id": "x", "score": 1, "task": "a"},
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = read(tmp_path)
    assert {name: task.scores for name, task in tasks.items()} == {
        "reviews": {"a": 1, "b, c": 0, "3": 1},
        "a": {"1": 0.5, "x": 1},
        "b": {"1": 2},
    }
    assert tasks["reviews"].value == pytest.approx(2 / 3)
    assert read(tmp_path / "reviews.csv").keys() == {"reviews"}


def test_a_plain_file_with_both(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "correct": true, "score": 0.25}\n')
    assert read(tmp_path)["a"].scores == {"1": 1}
    assert read(tmp_path, "score")["a"].scores == {"1": 0.25}


@pytest.mark.parametrize("score", ["nan", "high", "1e308"])
def test_a_metric_that_is_not_compared_may_be_no_number(tmp_path, score):
    (tmp_path / "a.csv").write_text(f"id,correct,score\n1,1,0.5\n2,0,{score}\n")
    assert read(tmp_path)["a"].scores == {"1": 1, "2": 0}
    with pytest.raises(CheckpointError, match="line 3: the score of the id '2' of the task 'a'"):
        read(tmp_path, "score")


def test_lines_of_csv_are_counted_as_editors_do(tmp_path):
    (tmp_path / "a.csv").write_text('id,correct\n"1\n1",1\n\n\n2,maybe\n')
    with pytest.raises(CheckpointError, match="line 6: the correct of the id '2'"):
        read(tmp_path)


@pytest.mark.parametrize("lacking", ["1,,0.25\n2,1,0.5\n", "2,1,0.5\n1,,0.25\n"], ids=["first", "last"])
def test_a_metric_that_some_rows_lack_is_not_replaced_by_the_other(tmp_path, lacking):
    (tmp_path / "a.csv").write_text("id,correct,score\n" + lacking)
    with pytest.raises(
        CheckpointError, match="the id '1' of the task 'a' has no correct: expected one for each id"
    ):
        read(tmp_path)
    assert read(tmp_path, "score")["a"].scores == {"1": 0.25, "2": 0.5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "id,correct\n1,2\n",
            "line 2: the correct of the id '1' of the task 'a': expected true, false, 1 or 0, found '2'",
        ),
        (
            "a.csv",
            "id,score\n1,nan\n",
            "line 2: the score of the id '1' of the task 'a': expected a number of at",
        ),
        ("a.csv", "id,score\n7,\n", "line 2: the id '7' of the task 'a' has neither score nor correct; eval"),
        (
            "a.csv",
            "id,score\n1,1e308\n2,1e308\n",
            "of the task 'a': expected a number of at most 1e+100, found '1e308'; evaluate this sample",
        ),
        ("a.csv", "id,score\n1,1\n1,2\n", "the task 'a' has ids twice: found '1' (line 3)"),
        (
            "a.csv",
            "id,score\n" + "q,1\nr,1\n" * 4,
            "'q' (line 4), 'r' (line 5), 'q' (line 6), 'r' (line 7) and 2 more",
        ),
        (
            "a.jsonl",
            '{"id": 1, "score": NaN}',
            "line 1: the score of the id '1' of the task 'a': expected a number of at most 1e+100, found nan",
        ),
        (
            "a.jsonl",
            '{"id": 1, "score": -Infinity, "task": "b"}',
            "of the task 'b': expected a number of at most 1e+100, found -inf;",
        ),
        ("a.csv", "id,acc\n1,1\n", "the task 'a' has neither score nor correct: found 'id', 'acc'"),
        (
            "a.csv",
            "ID;score\n1;1\n",
            "the first line names no column id: expected id, and score or correct, with commas between them,",
        ),
        ("a.jsonl", '{"id": ""}', "a.jsonl: line 1: has no id"),
        ("a.jsonl", '{"doc_id": 3}', "has no id: found 'doc_id'; give the folder that these samples"),
        ("a.csv", 'id,score\n"1,1\n', "is not CSV: unexpected end of data"),
        ("a.csv", "", "has no scores"),
        ("a.jsonl", '{"id": [], "score": 1}', "line 1: its id is no text"),
        ("a.jsonl", '{"id": 1, "score": true}', "line 1: the score of the id '1'"),
        ("a.jsonl", '{"id": 1, "score": 1}\n\n{"id": 2', "a.jsonl, line 3: the sample is not valid JSON"),
        ("a.jsonl", "7", "line 1: is no object"),
        ("a.txt", "id,score", "has no scores of a known harness"),
    ],
)
def test_plain_files_that_are_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as refused:
        read(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize("is_around", [False, True], ids=["folder", "folder around it"])
def test_other_files_are_not_looked_at(model, tmp_path, monkeypatch, is_around):
    """Pictures, logs, weights: beside them, scores take as many looks at the disk as without them."""
    looks = []

    def counted(look):
        return lambda path, *words, **options: looks.append(path) or look(path, *words, **options)

    for name in ("stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    folder = model.parent if is_around else tmp_path / "plain"
    if not is_around:
        folder.mkdir()
        (folder / "quiz.csv").write_text("id,score\n1,1\n")
    read(folder)
    few = len(looks)
    for number in range(50):
        (folder / f"{number}.png").touch()
    looks.clear()
    read(folder)
    assert len(looks) == few > 0


def test_a_folder_of_models_is_said_to_be_one(tmp_path):
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "quiz.csv").write_text("id,score\n1,1\n")
    with pytest.raises(CheckpointError, match=r"harness: expected .*, found the folders 'base', 'tuned'$"):
        read(tmp_path)


def test_links_are_followed_as_in_the_folders_of_checkpoints(model, tmp_path):
    """In the folder, and out of a folder of the user's own, which is told."""
    disk = tmp_path / "disk"
    model.rename(disk)
    model.symlink_to(disk)
    tasks, linked = read_tasks(str(model.parent), Choice())
    assert tasks["parity"].scores
    assert sorted(linked) == [f"{model.name}/{path.name}" for path in sorted(disk.iterdir())]
    assert list(read_tasks(str(model), Choice())[1]) == []  # the user named the link itself
    for name in ("scores.csv", "again.csv"):
        (tmp_path / name).write_text("id,score\n1,1\n")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "in.csv").symlink_to("../scores.csv")
    (plain / "gone.txt").symlink_to("nowhere")
    tasks, linked = read_tasks(str(plain), Choice())
    assert (list(tasks), list(linked)) == (["in"], ["in.csv"])
    (plain / "gone.csv").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=f"^{plain}/gone.csv: a broken link$"):
        read(plain)


@pytest.mark.parametrize("kind", ["folder", "results", "samples", "clip", "csv", "file"])
def test_links_in_what_is_from_the_hub_do_not_lead_out(model, tmp_path, kind):
    """Results are shared in repositories there: a clone may have links that somebody else made."""
    root = model.parent
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text(
        '[remote "origin"]\n\turl = https://huggingface.co/datasets/org/evals\n'
    )
    assert "parity" in read(root)
    secret = tmp_path / "secret"
    if kind == "folder":
        model.rename(secret)
        path = model
    elif kind in ("results", "samples"):
        path = next(model.glob("results_*" if kind == "results" else "samples_parity_*"))
        path.rename(secret)
    else:
        shutil.rmtree(model)
        text = '{"dataset": "cars", "metrics": {"acc1": 1}}' if kind == "clip" else "id,score\n1,1\n"
        secret.write_text(text)
        path = root / ("cars.json" if kind == "clip" else "cars.csv")
    path.symlink_to(secret)
    with pytest.raises(
        CheckpointError, match=r"a link that leads out of the folder; \.git/config names huggingface"
    ):
        read(path if kind == "file" else root)
