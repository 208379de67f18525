"""What reports, pages and cards say of `edit --wise`, which moves what the edit made and what it kept."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.report.kept import kept_line
from monosoup_cli.report.opening import opening
from monosoup_cli.report.page import page
from monosoup_cli.report.plots import figure
from monosoup_cli.report.steps import before_step

BEFORE = "λ_high, λ_low, equivalent α and anisotropy are from before --wise"


@pytest.fixture
def stepped(run, pair, tmp_path):
    """The report of the full edit, and that of a part of the way to it."""
    made = []
    for name, options in (("full", ()), ("half", ("--wise", "0.5"))):
        assert run("edit", *pair[:2], "-o", tmp_path / name, *options).code == 0
        made.append(json.loads((tmp_path / name / "monosoup_report.json").read_text()))
    return made


def test_what_is_from_before_the_step_is_said_at_every_table(run, stepped, tmp_path):
    full, half = stepped
    assert (before_step(full), before_step(half)) == ("", f"{BEFORE} 0.5")
    layers, summary = run("report", tmp_path / "half").out.split("\nbase ")
    _, means = summary.split("anisotropy", 1)
    for table in (layers, means):
        assert f"\n{BEFORE} 0.5\n" in table
    assert re.search(r"^wise +0\.5 of the way from the base to the edited weights$", summary, re.MULTILINE)
    assert BEFORE not in run("report", tmp_path / "full").out
    assert f'"before":{json.dumps(f"{BEFORE} 0.5")}' in page(half, ())
    legends = [[part.legends for part in figure(one).subfigs] for one in stepped]
    titles = [[one.get_title().get_text() for each in of for one in each] for of in legends]
    assert [any(map(str.strip, some)) for some in titles] == [False, True]


def test_tensors_that_the_edit_kept_are_said_to_be_moved(run, stepped, pair, tmp_path):
    full, half = stepped
    said = [" ".join(opening(report)) for report in stepped]
    assert "--wise" not in said[0]
    assert (
        ", and --wise interpolated: the weights are 0.5 of the way from the base to the edit. It edited"
        in said[1]
    )
    assert "; --wise also moved tensors that the edit keeps." in said[1]
    assert "the result keeps" in said[1]
    planned = run("edit", *pair[:2], "-o", tmp_path / "more", "--wise", "0.5,1", "--dry-run").out
    assert re.search(r"^keep +.*vector \d \(moved by --wise\)$", planned, re.MULTILINE)
    for report, moved in ((full, ""), (half, " (moved by --wise)")):
        line = re.search(r"^kept +(.*)$", run("report", report["output"]["path"]).out, re.MULTILINE)
        assert re.search(r"vector \d(.*?)(, |$)", line[1])[1] == moved


def test_the_card_says_that_the_result_is_interpolated(stepped, tmp_path):
    cards = [(tmp_path / name / "README.md").read_text() for name in ("full", "half")]
    assert "interpolated" not in cards[0]
    assert "The result is interpolated with the base at α = 0.5, biases and norms too.\n" in cards[1]


MOVED = "moved by --wise, where the base has them"
OF_RECIPE = "moved where their settings say so"
AVERAGED = "averaged where all have them in one shape"


@pytest.mark.parametrize(
    ("arguments", "finetuned", "said"),
    [
        ({"wise": 0.5}, 1, (f" ({MOVED})", "", " (moved by --wise)")),
        ({"wise": [0.5, 1.0], "min_update": 0.1}, 1, (f" ({MOVED})", *[" (moved by --wise)"] * 2)),
        ({"wise": 0.5}, 2, (f" ({AVERAGED}; {MOVED})", "", " (moved by --wise)")),
        ({"layers": {"*mlp*": {"wise": 0.5}}}, 1, (f" ({OF_RECIPE})", "", f" ({OF_RECIPE})")),
        ({"wise": 1.0}, 1, ("", "", "")),
        ({"wise": 0.5, "as_adapter": True}, 1, ("", "", "")),
    ],
)
def test_which_kept_tensors_are_moved(arguments, finetuned, said):
    reasons = {"vector": 1, "excluded": 2, "unchanged": 3}
    _, line = kept_line(reasons, "edit", arguments, ["base", *["finetuned"] * finetuned])
    assert line == "excluded 2{}, unchanged 3{}, vector 1{}".format(*said)


def test_a_kept_tensor_of_another_shape_moves_where_the_base_has_that_shape(pair, run, tmp_path):
    """As docs/method.md says in section 5: the other fine-tuned checkpoint has another shape."""
    base, tuned = (load_file(path) for path in pair[:2])
    name = next(name for name, tensor in tuned.items() if tensor.ndim == 2)
    other = {**tuned, name: torch.ones(3, tuned[name].shape[1])}
    save_file(other, tmp_path / "other.safetensors", {"format": "pt"})
    words = (*pair[:2], tmp_path / "other.safetensors", "-o", tmp_path / "out", "--on-mismatch", "keep")
    said = run("edit", *words, "--wise", "0.5").err
    assert "shape_mismatch 1 (moved by --wise, where the base has that shape)" in said
    (found,) = (tmp_path / "out").glob("*.safetensors")
    torch.testing.assert_close(load_file(found)[name], (base[name] + tuned[name]) / 2)


def test_the_wise_of_a_recipe_has_no_one_value(stepped):
    arguments = {**stepped[0]["arguments"], "layers": {"*": {"wise": 0.5}}}
    report = {**stepped[0], "arguments": arguments}
    assert before_step(report) == BEFORE
    assert "--wise" not in " ".join(opening(report))


def test_the_card_of_steps_by_layer_has_no_one_step(pair, tmp_path):
    monosoup_cli.edit(*pair[:2], tmp_path / "one", layers={"*weight": {"wise": 0.5}})
    card = (tmp_path / "one" / "README.md").read_text()
    assert "Some layers are then interpolated with the base, as their settings say.\n" in card
    assert "biases and norms" not in card
