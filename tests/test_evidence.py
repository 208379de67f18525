"""The pieces of `make evidence`, on made results: no download, no training."""

import json
import random
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from docs.evidence import commands, page, pictures, study, vision
from docs.evidence.intervals import difference, estimate, spearman
from monosoup_cli.cli.app import app, main
from monosoup_cli.report import verdict

TEXT = study.STUDIES["text"]
TASKS = (*TEXT.inside, *TEXT.outside)


def answers(chance: float, source: random.Random) -> dict[str, str]:
    return {task: "".join("1" if source.random() < chance else "0" for _ in range(200)) for task in TASKS}


def made_results(seed: int) -> dict:
    """What a seed leaves: `edit` always 10 points better than the fine-tune, all else by chance alone."""
    source = random.Random(seed)
    found = {"study": "text", "seed": seed, "versions": {"torch": "2"}, "base": answers(0.7, source)}
    found["checkpoints"] = {}
    for number, recipe in enumerate(TEXT.recipes):
        swept = recipe in TEXT.swept
        labels = [label for call in commands.calls(swept) for label in call.folders(Path("out"))]
        labels += ["fine-tuned", commands.alike("entropy"), commands.AT_MEAN]
        scores = {label: answers(0.6, source) for label in labels}
        scores["edit"] = {
            task: "1" * 20 + each[20:] if each[:20].count("1") < 20 else each
            for task, each in scores["fine-tuned"].items()
        }
        means = dict.fromkeys(page.MEASURES, 0.1) | {"relative_update": 0.1 * number + seed}
        layers = [{"name": str(at), "lambda_high": 0.9, "lambda_low": 0.1} for at in range(3)]
        found["checkpoints"][recipe] = {"spectrum": {"means": means, "layers": layers}, "scores": scores}
    labels = [label for call in commands.together("score {}") for label in call.folders(Path("out"))]
    found["together"] = {label: answers(0.6, source) for label in labels}
    models = ("base", "fine-tuned", *(call.words for call in commands.COMPARED))
    found["features"] = {
        recipe: {
            task: {model: [source.random() for _ in range(6)] for model in models} for task in TEXT.mapped
        }
        for recipe in TEXT.swept
    }
    found["pairs"] = [
        {"pair": ["gentle", "overtrained"], "cosines": [0.1, 0.4], "scores": answers(0.6, source)},
        {"pair": ["gentle", "usual"], "cosines": [0.9, 0.8], "scores": answers(0.6, source)},
    ]
    return found


def command_lines() -> list[list[str]]:
    """Every command line that a study runs."""
    base, *finetuned = [Path(f"{name}.safetensors") for name in ("base", "one", "two")]
    one, out = [base, finetuned[0]], Path("out")
    lines = [call.command(one, out) for swept in (True, False) for call in commands.calls(swept)]
    lines += [call.command(one, out) for call in commands.COMPARED]
    lines += [call.command([base, *finetuned], out) for call in commands.together("python score.py {}")]
    return lines + [commands.inspection(one, split) for split in commands.SPLITS]


@pytest.mark.parametrize("words", command_lines(), ids=shlex.join)
def test_the_commands_of_a_study_parse(words):
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("monosoup", words[:1]), words[0])
    command.make_context(words[0], words[1:])


def test_a_sweep_makes_a_folder_for_each_value():
    sweep = commands.Call("edit", "energy", (0.5, 0.95))
    assert sweep.folders(Path("out")) == {
        "edit --energy 0.5": Path("out/energy-0.5"),
        "edit --energy 0.95": Path("out/energy-0.95"),
    }
    assert commands.Call("wise", "alpha", (0.5,)).folders(Path("out")) == {"wise --alpha 0.5": Path("out")}


def test_an_interval_covers_the_true_difference_as_often_as_it_says():
    """Simulation: of 400 made studies about 95 % must cover the mean that they are drawn from."""
    source = random.Random(0)
    covered = 0
    for _ in range(400):
        rows = [[100.0 * (source.random() < 0.2) for _ in range(300)] for _ in range(2)]
        found = estimate({"one": {0: rows[:1]}, "two": {0: rows[1:]}}, same_examples=True)
        covered += found.low <= 20 <= found.high
    assert 370 <= covered <= 392


def test_seeds_that_share_their_examples_do_not_make_the_interval_shorter():
    row = difference("1101", "0111")
    shared = estimate({"one": {0: [row], 1: [row]}}, same_examples=True)
    alone = estimate({"one": {0: [row]}}, same_examples=True)
    apart = estimate({"one": {0: [row], 1: [row]}}, same_examples=False)
    assert shared[:3] == alone[:3]
    assert apart.high - apart.low < alone.high - alone.low


def test_an_interval_covers_what_other_seeds_would_have_given():
    """Simulation: each of five seeds has an effect of its own, and their mean is not the truth."""
    source = random.Random(0)
    covered = 0
    for _ in range(400):
        chances = [0.2 + source.gauss(0, 0.05) for _ in range(5)]
        seeds = {
            seed: [[100.0 * (source.random() < chance) for _ in range(300)]]
            for seed, chance in enumerate(chances)
        }
        found = estimate({"one": seeds}, same_examples=False)
        covered += found.low <= 20 <= found.high
    assert covered >= 0.93 * 400


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    source = random.Random(1)
    first = [source.randrange(6) for _ in range(40)]
    second = [source.randrange(6) + each for each in first]
    found = spearman(first, second, [at // 8 for at in range(40)])
    assert found.value == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert found.low < found.value < found.high


def test_a_correlation_by_chance_is_seldom_shown():
    """With whole seeds drawn anew, an effect of the seed alone does not count as 25 checkpoints."""
    source = random.Random(2)
    seeds = [at // 5 for at in range(25)]
    shown = alone = 0
    for _ in range(200):
        first, second = ([source.gauss(0, 3) for _ in range(5)] for _ in range(2))
        pairs = [[values[seed] + source.gauss(0, 1) for seed in seeds] for values in (first, second)]
        shown += spearman(*pairs, seeds, draws=500).is_shown
        alone += spearman(*pairs, range(25), draws=500).is_shown
    assert shown < 0.6 * alone


def test_a_constant_measure_has_no_correlation():
    assert spearman([1.0] * 6, [1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2, 2]).value == 0


def test_answers_are_kept_in_a_quarter_of_their_length_and_come_back():
    answers = {
        "one": ["0" * 30 + "1101", "usual"],
        "pair": ("gentle", "0.5"),
        "alpha": 0.5,
        "none": "1" * 400,
    }
    kept = study.packed(answers)
    assert len(kept["none"]) < 110
    assert study.unpacked(json.loads(json.dumps(kept))) == answers | {"pair": ["gentle", "0.5"]}


def test_the_page_says_what_helped_and_links_to_pictures_that_exist(tmp_path):
    pytest.importorskip("matplotlib")
    seeds = [made_results(seed) for seed in (0, 1)]
    drawn = pictures.draw(TEXT, seeds, tmp_path)
    assert {path.name for path in drawn} == {f"{kind}-text.svg" for kind in page.PICTURES}
    for path in drawn:
        ElementTree.parse(path)
    text = page.page({"text": seeds}, {"text": drawn})
    helped = [
        line for line in text.splitlines() if line.startswith("- Out of distribution, these helped: `edit`")
    ]
    assert len(helped) == 2  # healthy and over-trained
    assert "10 of the 25 fine-tunes of a full run, from seed 0, 1" in text
    assert all(path.name in text for path in drawn)


def test_a_measure_that_is_the_same_everywhere_has_no_correlation_on_the_page():
    lines = list(page.decides({"text": [made_results(seed) for seed in range(page.FEWEST)]}))
    (table,) = [line for line in lines if line.startswith("| measure")]
    cells = {row.split(" | ")[0]: row.split(" | ")[1] for row in table.splitlines()}
    assert cells["| k/r"] == "constant"
    assert "[" in cells["| ‖Δ‖/‖W0‖"]


def test_what_the_verdict_says_of_small_and_large_updates_is_on_the_page():
    assert page.SIZES["below 0.01"][1] == verdict.SMALL_UPDATE
    assert page.SIZES["from 0.05 on"][0] == verdict.LARGE_UPDATE
    (_, table) = page.by_size({name: list(study.results(each)) for name, each in study.STUDIES.items()})
    small, _, large = (line.strip("| ").split(" | ")[1:] for line in table.splitlines()[2:])
    assert not any(cell.startswith("**+") for cell in small)
    assert all(cell.startswith("**+") for cell in large[:2])  # text and vision; the third is LoRA


def test_pictures_are_the_same_for_the_same_results(tmp_path):
    pytest.importorskip("matplotlib")
    seeds = [made_results(0)]
    first, second = (pictures.draw(TEXT, seeds, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_committed_page_is_that_of_the_committed_results():
    found = {name: list(study.results(each)) for name, each in study.STUDIES.items()}
    drawn = {
        name: sorted(
            (study.RESULTS.parent / "pictures").glob(f"*-{name}.svg"),
            key=lambda path: list(page.PICTURES).index(path.stem.split("-")[0]),
        )
        for name in found
    }
    text = page.page({name: each for name, each in found.items() if each}, drawn)
    assert (page.ROOT / "docs" / "evidence.md").read_text() == text


def test_the_page_is_wrapped_between_words_and_not_in_code():
    text = page.folded(f"- {'`edit --wise 0.5`, ' * 20}end.\n\n| {'cell ' * 40} |\n")
    first, *others, blank, table, last = text.split("\n")
    assert {len(line.split("`")) % 2 for line in (first, *others)} == {1}
    assert all(line.startswith("  `") for line in others)
    assert len(others) > 1
    assert max(map(len, (first, *others))) <= page.WIDTH
    assert (blank, table, last) == ("", f"| {'cell ' * 40} |", "")


def test_the_measures_are_read_from_a_real_report(tmp_path, capsys):
    torch.manual_seed(0)
    base = {f"layer.{at}.weight": torch.randn(12, 8) for at in range(2)}
    finetuned = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in base.items()}
    inputs = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
    for path, weights in zip(inputs, (base, finetuned), strict=True):
        save_file(weights, path)
    assert main(commands.inspection(inputs, "entropy")) == 0
    found = study.spectrum(json.loads(capsys.readouterr().out))
    assert set(found["means"]) == set(page.MEASURES)
    assert len(found["layers"]) == 2


def test_what_a_killed_step_leaves_is_not_in_the_way(tmp_path, monkeypatch):
    """A command that was killed has left its unfinished output, which another command refuses to touch."""
    monkeypatch.setattr(study, "CACHE", tmp_path)
    seed = study.Seed(TEXT, 0)
    seed.folder.mkdir(parents=True)
    inputs = [seed.folder / name for name in ("base.safetensors", "usual.safetensors")]
    for at, path in enumerate(inputs):
        save_file({"w": torch.eye(4) * (1 + 0.1 * at)}, path)
    out = seed.folder / "out"
    assert main(["wise", *map(str, inputs), "-o", str(out), "--alpha", "0.5", "--score", "false {}"]) == 1
    assert out.with_name("out.partial").exists()
    seed.scorer = ScorerOfNothing()
    assert list(seed._scored(commands.Call("edit"), inputs)) == ["edit"]
    assert not out.with_name("out.partial").exists()


class ScorerOfNothing:
    """Scores a checkpoint on no task."""

    def __init__(self):
        self.tasks = {}

    def load(self, weights):
        assert list(weights) == ["w"]


def test_no_digit_is_trained_and_tested_on():
    pytest.importorskip("sklearn")
    parts = vision.digits_of(3)
    seen = [{image.numpy().tobytes() for image in part.images} for part in parts]
    assert sum(len(part.labels) for part in parts) == 1797
    pretraining, finetuning, validation, held_out, other_hands = seen
    assert not (held_out | other_hands) & (pretraining | finetuning | validation)
    assert not validation & finetuning


FURTHER = ((1, " points", "text"), (3, "", "vision"), (5, "", "LoRA"))
"""Where the row of a method has what it gained out of distribution."""


def test_the_claims_of_the_readme_and_of_choosing_are_those_of_the_page():
    """Every signed figure of a method in "Choosing" and the README's two are in the table at a glance."""
    text = (page.ROOT / "docs" / "evidence.md").read_text()
    rows = {
        (group, cells[0]): [cell.strip("*") for cell in cells[1:]]
        for group in ("Healthy", "Over-trained")
        for line in text.split("## At a glance")[1]
        .split(f"{group} fine-tunes:")[1]
        .split("\n\n")[1]
        .splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    over, healthy = rows["Over-trained", "`edit`"], rows["Healthy", "`edit`"]
    further, cost = (rows[group, "`edit --split energy-entropy`"] for group in ("Over-trained", "Healthy"))
    hard = rows["Over-trained", "`edit --split noise --weighting high`"]
    readme, choosing = ((page.ROOT / name).read_text() for name in ("README.md", "docs/choosing.md"))
    assert f"{over[1][1:]} points (text) and {over[3][1:]} points (vision)" in " ".join(readme.split())
    words = " ".join(choosing.split())
    assert f"{over[1]} points in text and {over[3]} in vision" in words
    assert f"({healthy[3]} in vision)" in words
    in_all = (f"{further[at][1:]}{unit} ({name})" for at, unit, name in FURTHER)
    assert "gained {}, {} and {}".format(*in_all) in words
    noise = [rows[group, "`edit --split noise`"] for group in ("Over-trained", "Healthy")]
    assert f"on over-trained fine-tunes in text, {noise[0][1][1:]} points" in words
    assert f"it lost {noise[1][1][1:]} points on healthy ones in text" in words
    assert f"lost {cost[1][1:]} on healthy ones in text" in words
    assert f"lost {hard[3][1:]} points out of distribution on over-trained vision" in words
    (update,) = [line for line in text.splitlines() if line.startswith("| ‖Δ‖/‖W0‖ |")]
    in_text, in_vision = (cell.strip(" *").split()[0] for cell in update.split("|")[2:4])
    assert f"rank correlation {in_text} in text, {in_vision} in vision" in words
    (large,) = [line for line in text.splitlines() if line.startswith("| from 0.05 on |")]
    in_text, in_vision = (cell.strip(" *").split()[0] for cell in large.split("|")[2:4])
    assert f"From 0.05 on, the gain was {in_text[1:]} points in text and {in_vision[1:]} in vision" in words


def test_the_picture_at_a_glance_has_the_accuracies_of_the_committed_results(tmp_path):
    """The committed picture and one that is drawn now; the figures by another route, with numpy."""
    pytest.importorskip("matplotlib")
    found = {name: list(study.results(each)) for name, each in study.STUDIES.items()}
    expected = []
    for name, seeds in found.items():
        own = study.STUDIES[name]
        for recipes in (own.healthy, own.overtrained):
            runs = [(seed, seed["checkpoints"].get(recipe)) for seed in seeds for recipe in recipes]
            steps = [
                (seed["base"], run["scores"]["fine-tuned"], run["scores"]["edit"])
                for seed, run in runs
                if run
            ]
            for side in (own.inside, own.outside):
                means = np.mean(
                    [[[np.mean([*map(int, one[task])]) for task in side] for one in step] for step in steps],
                    axis=(0, 2),
                )
                expected += [f"{100 * mean:.1f}" for mean in means]
    assert len(expected) == 36
    pictures.glance(found, tmp_path)
    for path in (tmp_path / "glance.svg", study.RESULTS.parent / "pictures" / "glance.svg"):
        labels = re.findall(r">([^<>]+)</text>", path.read_text())
        assert sorted(label for label in labels if re.fullmatch(r"[\d.]+", label)) == sorted(expected)
        assert labels.count("edited") == 6
