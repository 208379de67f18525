"""How much is edited: a base that lacks most of the fine-tuned checkpoint, and the counts of summaries."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import MismatchError
from monosoup_cli.report.words import parameters
from tests.conftest import everything_in
from tests.models import MODELS, build
from tests.pipeline.test_adapters_bases import train
from tests.schema import assert_valid

SIDE = 6


def write(path, names, seed, **others):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(SIDE, SIDE, generator=generator) for name in names}
    save_file(tensors | others, path)
    return path


def layers(count, prefix="layers"):
    return [f"{prefix}.{number}.weight" for number in range(count)]


@pytest.fixture
def files(tmp_path):
    """A base that has two of six matrices, and two fine-tunes."""
    base = write(tmp_path / "base.safetensors", layers(2), 0)
    return base, *(write(tmp_path / f"ft{n}.safetensors", layers(6), n) for n in (1, 2))


COMMANDS = {
    "edit": (1, ()),
    "edit of a mean": (2, ()),
    "edit as an adapter": (1, ("--as-adapter", "--adapter-rank", "2")),
    "stock": (2, ()),
    "sfgs": (2, ("--threshold", "-1")),
    "wise": (1, ("--alpha", "0.5")),
    "lines": (1, ("--alpha", "0.5", "--beta", "1")),
    "inspect-spectrum": (1, ()),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_base_that_lacks_most_is_refused_unless_it_is_said(run, files, tmp_path, name):
    count, options = COMMANDS[name]
    command = name.partition(" ")[0]
    writes = command != "inspect-spectrum"
    output = ("-o", tmp_path / "out") if writes else ()
    words = (command, *files[: 1 + count], *output, *options)
    few = "the base has only 2 of 6 matrices (33% of the parameters) under these names"
    before = everything_in(tmp_path)
    for further in ((), ("--dry-run",)) if writes else ((),):
        result = run(*words, *further)
        assert (result.code, result.out) == (1, "")
        assert (
            result.err.count(
                f"{few}: found 'layers.2.weight'; check that this model was fine-tuned from it; --partial"
            )
            == 1
        )
        assert "--partial goes on with what the base has" in result.err
    assert everything_in(tmp_path) == before
    result = run(*words, "--partial", "--format", "json")
    assert result.code == 0, result.err
    assert f"note: {few}" in result.err
    report = json.loads(result.out)
    assert_valid(report)
    assert any(note.startswith(few) for note in report["notes"])
    assert report["arguments"]["partial"] is True
    averages_all = command == "sfgs"  # of which the base decides who is averaged
    assert report["summary"]["parameters_edited"] == (6 if averages_all else 2) * SIDE**2
    assert report["summary"]["parameters"] == 6 * SIDE**2
    assert report["summary"]["kept"] == ({} if averages_all else {"not_in_base": 4})


def test_in_python(files, tmp_path):
    base, finetuned, _ = files
    with pytest.raises(MismatchError, match=r"; partial=True goes on with what the base has$") as refused:
        monosoup_cli.edit(base, finetuned, tmp_path / "out")
    assert refused.value.path == str(finetuned)
    report = monosoup_cli.edit(base, finetuned, tmp_path / "out", partial=True)
    written, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(finetuned)
    assert all(torch.equal(written[name], before[name]) for name in layers(6)[2:])
    assert report["summary"]["edited"] == 2
    assert "--partial" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("named", "large", "options", "is_refused"),
    [
        (3, 1, (), False),  # half of both
        (2, 1, (), True),
        (3, 2, (), True),  # half of the matrices, less than half of the parameters
        (2, 1, ("--exclude", "layers.5.*", "--exclude", "layers.4.*"), False),
        (3, 2, ("--exclude", "layers.5.*"), False),
        (2, 1, ("--include", "layers.[0123].*"), False),
        (2, 1, ("--include", "layers.[01234].*"), True),
    ],
)
def test_half_is_enough_of_what_could_be_edited(run, tmp_path, named, large, options, is_refused):
    base = write(tmp_path / "base.safetensors", layers(named), 0)
    last = {layers(6)[-1]: torch.ones(SIDE, large * SIDE)}
    finetuned = write(tmp_path / "ft.safetensors", layers(5), 1, **last)
    result = run("edit", base, finetuned, "-o", tmp_path / "out", *options)
    assert result.code == is_refused, result.err


def test_few_matrices_are_few_though_they_have_most_parameters(run, tmp_path):
    large = torch.ones(SIDE, 9 * SIDE)
    base = write(tmp_path / "base.safetensors", [], 0, large=large)
    finetuned = write(tmp_path / "ft.safetensors", layers(2), 1, large=2 * large)
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert "the base has only 1 of 3 matrices (82% of the parameters)" in result.err
    assert result.code == 1


def test_vectors_are_parameters_and_integers_are_none(run, tmp_path):
    base = write(tmp_path / "base.safetensors", layers(1), 0)
    long = torch.ones(SIDE**2 + 1)
    for number, (vector, code) in enumerate([(long, 1), (long[1:], 0), (long.long(), 0)]):
        finetuned = write(tmp_path / f"ft{number}.safetensors", layers(1), 1, vector=vector)
        words = ("wise", base, finetuned, "-o", tmp_path / f"out{number}", "--alpha", "0.5")
        assert run(*words).code == code


def test_names_on_both_sides_are_said_and_renames_that_would_match(run, tmp_path):
    base = write(tmp_path / "base.safetensors", ["shared", *layers(5, "old.place")], 0, bias=torch.ones(3))
    finetuned = write(tmp_path / "ft.safetensors", ["shared", *layers(5, "h")], 1, bias=torch.ones(3))
    words = ("edit", base, finetuned, "-o", tmp_path / "out")
    said = run(*words).err
    assert "expected a name like 'old.place.0.weight', found 'h.0.weight'; try --rename old.place=h;" in said
    assert run(*words, "--rename", "old.place=h").code == 0


def test_an_adapter_is_all_in_its_base_however_large_a_head_it_adds(run, tmp_path):
    base = tmp_path / "base"
    build(*MODELS["llama"]).save_pretrained(base)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=200, pad_token_id=0
    )
    train(tmp_path / "adapter", model, task_type="SEQ_CLS", target_modules=["q_proj"])
    for number, options in enumerate([(), ("--as-adapter",)]):
        result = run("edit", base, tmp_path / "adapter", "-o", tmp_path / f"out{number}", *options)
        assert result.code == 0, result.err
    result = run("edit", "-", tmp_path / "adapter", "-o", tmp_path / "alone", "--as-adapter")
    assert result.code == 0, result.err
    assert run("inspect-spectrum", base, tmp_path / "adapter").code == 0


@pytest.mark.parametrize(
    ("edited", "total", "words"),
    [
        (0, 0, "0 of 0 parameters (0%)"),
        (0, 7, "0 of 7 parameters (0%)"),
        (7, 7, "7 of 7 parameters (100%)"),
        (3_100_000, 7_000_000, "3.1 M of 7 M parameters (44.3%)"),
        (1, 10**9, "1 of 1 G parameters (0.1%)"),
        (10**9 - 1, 10**9, "1 G of 1 G parameters (99.9%)"),
        (12_345, None, "12.3 k parameters"),
    ],
)
def test_shares_are_only_none_or_all_where_they_are(edited, total, words):
    assert parameters(edited, total) == words


def test_tables_say_how_much_is_edited(run, tmp_path):
    base = write(tmp_path / "base.safetensors", layers(3), 0)
    finetuned = write(tmp_path / "ft.safetensors", layers(4), 1, norm=torch.ones(SIDE))
    words = ("edit", base, finetuned, "-o", tmp_path / "out")
    of_all = "3 tensors, 108 of 150 parameters (72%)"
    assert of_all in run(*words, "--dry-run").out
    plan = json.loads(run(*words, "--dry-run", "--format", "json").out)
    assert (plan["parameters_edited"], plan["parameters"]) == (108, 150)
    assert f"edited      {of_all}" in run(*words).err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert (report["summary"]["parameters_edited"], report["summary"]["parameters"]) == (108, 150)
    assert f"layers      {of_all}" in run("inspect-spectrum", base, finetuned).out
    del report["summary"]["parameters"]  # as reports of earlier versions
    (tmp_path / "old.json").write_text(json.dumps(report))
    assert run("report", tmp_path / "old.json").code == 0


def test_the_names_of_both_sides_are_counterparts(run, tmp_path):
    """So that one sees what to rename, though the first matrices of both are something else."""
    base = write(tmp_path / "base.safetensors", ["shared", "wte.weight", "blocks.0.k_proj.weight"], 0)
    finetuned = write(
        tmp_path / "ft.safetensors", ["shared", "model.embed.weight", "model.layers.0.attn.k_proj.weight"], 1
    )
    said = run("edit", base, finetuned, "-o", tmp_path / "out").err
    names = "expected a name like 'blocks.0.k_proj.weight', found 'model.layers.0.attn.k_proj.weight'; "
    assert f"{names}the shapes are alike" in said
