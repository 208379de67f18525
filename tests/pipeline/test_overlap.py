"""--on-mismatch overlap: tensors in whose number of rows the inputs differ. The rows that all have are
those of truncated checkpoints, by the float64 references; the others are the first one's, bit for bit."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import oracle, references
from tests.schema import VALIDATOR

BF16, F32 = torch.bfloat16, torch.float32
INTEGERS = {2: torch.int16, 4: torch.int32}
OVERLAP = ("--on-mismatch", "overlap")

LAYERS = {  # the shape of a row; and the numbers of rows: of the base, of three fine-tuned checkpoints
    "embed.weight": ((9,), (70, 73, 72, 75)),
    "lm_head.weight": ((70,), (9, 8, 8, 9)),
    "blocks.0.wide.weight": ((40,), (9, 12, 10, 12)),
    "blocks.1.wide_where_shared.weight": ((10,), (8, 12, 9, 12)),
    "blocks.1.second_is_shortest.weight": ((6,), (9, 12, 8, 12)),
    "blocks.1.convolution.weight": ((4, 3, 3), (6, 8, 7, 6)),
    "blocks.0.mlp.experts.up_proj": ((8, 10), (3, 4, 3, 5)),
    "blocks.0.alike.weight": ((6,), (12, 12, 12, 12)),
    "blocks.0.bias": ((), (9, 12, 12, 11)),
    "blocks.1.bias": ((), (9, 7, 8, 9)),
}
MATRICES = [name for name, (row, _) in LAYERS.items() if row]
VECTORS = [name for name, (row, _) in LAYERS.items() if not row]
STACKED = "blocks.0.mlp.experts.up_proj"


def rows_of(name, numbers):
    """How many rows the checkpoints of these numbers have in common; 0 is the base."""
    return min(LAYERS[name][1][number] for number in numbers)


def make(folder, dtypes):
    """A base and three fine-tuned checkpoints, as tensors and as files; updates lean the same way."""
    rng = np.random.default_rng(0)
    whole = {name: rng.standard_normal((max(rows), *row)) for name, (row, rows) in LAYERS.items()}
    common = {name: rng.standard_normal(weights.shape) for name, weights in whole.items()}
    made = []
    for number, dtype in enumerate(dtypes):
        made.append({"positions": torch.arange(number + 3)})
        for name, (_, rows) in LAYERS.items():
            update = 0.1 * (common[name] + rng.standard_normal(common[name].shape)) if number else 0.0
            weights = torch.from_numpy((whole[name] + update)[: rows[number]]).to(dtype)
            weights.view(-1)[-1] = -0.0
            made[-1][name] = weights
    return made, write(folder, made)


def write(folder, checkpoints):
    paths = [folder / f"{number}.safetensors" for number in range(len(checkpoints))]
    for tensors, path in zip(checkpoints, paths, strict=True):
        save_file(tensors, path)
    return paths


def leading(checkpoints, name, rows):
    """The first rows of a tensor in each checkpoint, in float64."""
    return [tensors[name][:rows].double().numpy() for tensors in checkpoints]


def have_same_bits(one, other):
    as_integers = [t.contiguous().view(INTEGERS[t.element_size()]) for t in (one, other)]
    return one.dtype == other.dtype and torch.equal(*as_integers)


def assert_overlaps(found, first, rows, expected):
    """The rows that are shared are as expected, the others those of the first."""
    assert (found.dtype, found.shape) == (first.dtype, first.shape)
    oracle.assert_weights_equal(found[:rows].reshape(-1), expected.reshape(-1))
    assert have_same_bits(found[rows:], first[rows:])


def read_report(out):
    report = json.loads(out.with_name(f"{out.stem}.report.json").read_text())
    assert [error.message for error in VALIDATOR.iter_errors(report)] == []
    return {layer["name"]: layer for layer in report["layers"]}


def edited_by_hand(base, finetuned, **options):
    """(weights, measures of each matrix) of a tensor or of a stack, both of which are float64."""
    is_stack = base.ndim == 3
    pairs = zip(base, finetuned, strict=True) if is_stack else [(base, finetuned)]
    edits = [oracle.edit(*(each.reshape(len(each), -1) for each in pair), **options) for pair in pairs]
    return np.stack([weights for weights, _ in edits]), [measures for _, measures in edits]


@pytest.mark.parametrize("options", [(), ("--wise", 0.3)], ids=["", "wise"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtypes", [(F32,) * 4, (BF16,) * 4, (F32, BF16, BF16, F32)], ids=str)
def test_edit(run, tmp_path, cut, dtypes, count, options):
    tensors, paths = make(tmp_path, dtypes)
    out, inputs = tmp_path / "out.safetensors", tensors[: 1 + count]
    assert run("edit", *paths[: 1 + count], "-o", out, *OVERLAP, *options).code == 0
    found, layers = load_file(out), read_report(out)
    wise = options[1] if options else 1.0
    for name in MATRICES:
        rows = rows_of(name, range(1 + count))
        base, *finetuned = leading(inputs, name, rows)
        expected, measures = edited_by_hand(base, references.soup(finetuned), wise=wise)
        assert_overlaps(found[name], inputs[1][name], rows, expected)
        layer = layers[name]
        assert layer["action"] == "edited"
        for part, reference in zip(layer.get("slices", [layer]), measures, strict=True):
            oracle.assert_measures_equal(part, reference)
        differ = len({each[name].shape for each in inputs}) > 1
        assert layer.get("shared_rows") == (rows if differ else None)
    for name in VECTORS:
        rows = rows_of(name, range(1 + count))
        base, *finetuned = leading(inputs, name, rows)
        expected = references.soup(finetuned)
        if options:
            expected = references.wise(base, expected, wise)
        assert_overlaps(found[name], inputs[1][name], rows, expected)
        assert layers[name]["reason"] == "vector"
        assert "shared_rows" not in layers[name]
        if count == 1 and not options:
            assert have_same_bits(found[name], inputs[1][name])
    assert torch.equal(found["positions"], tensors[1]["positions"])
    assert layers["positions"]["reason"] == "not_floating"


COMMANDS = {  # command, how many fine-tuned checkpoints, options, the reference
    "stock": ("stock", 3, (), lambda name, base, *tuned: references.stock(base, tuned)[0]),
    "stock by row": (
        "stock",
        2,
        ("--granularity", "filter"),
        lambda name, base, *tuned: references.stock(base, tuned, granularity="filter")[0],
    ),
    "soup": ("soup", 3, (), lambda name, *tuned: references.soup(tuned)),
    "soup weighted": ("soup", 2, ("--weights", "3,1"), lambda name, *tuned: references.soup(tuned, [3, 1])),
    "sfgs": ("sfgs", 3, ("--threshold", -1), lambda name, *tuned: references.soup(tuned)),
    "wise": ("wise", 1, ("--alpha", 0.3), lambda name, base, tuned: references.wise(base, tuned, 0.3)),
    "wise of the base": ("wise", 1, ("--alpha", 0), lambda name, base, tuned: base),
    "lines": (
        "lines",
        1,
        ("--alpha", 0.25, "--beta", 0.5),
        lambda name, base, tuned: references.wise(
            base, tuned, references.lines_scale(name, {"blocks": 2}, 0.25, 0.5)
        ),
    ),
}


@pytest.fixture(params=["whole", "by ranges"])
def ranges(request, monkeypatch):
    """Small tensors as they are, and the same as if they were too large for the buffers."""
    if request.param == "by ranges":
        for name, value in {
            "flat.FLAT_ELEMENTS": 37,
            "flat.ROWS_ELEMENTS": 128,
            "flat.MIN_ROW_ELEMENTS": 11,
            "flat.HELD_BYTES": 400,
            "chunks.CHUNK_BYTES": 64,
        }.items():
            monkeypatch.setattr(f"monosoup_cli.tensors.{name}", value)


@pytest.mark.parametrize("dtypes", [(F32,) * 4, (BF16,) * 4], ids=str)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_need_no_matrix(run, tmp_path, ranges, name, dtypes):
    command, count, options, reference = COMMANDS[name]
    tensors, paths = make(tmp_path, dtypes)
    used = range(1 + count) if command in ("stock", "wise", "lines") else range(1, 1 + count)
    sources = paths[1 if command == "soup" else 0 : 1 + count]
    out = tmp_path / "out.safetensors"
    result = run(command, *sources, "-o", out, *options, *OVERLAP)
    assert result.code == 0, result.err
    found, layers = load_file(out), read_report(out)
    inputs = [tensors[number] for number in used]
    for layer in LAYERS:
        rows = rows_of(layer, used)
        expected = reference(layer, *leading(inputs, layer, rows))
        assert_overlaps(found[layer], tensors[1][layer], rows, expected)
        differ = len({each[layer].shape for each in inputs}) > 1
        assert layers[layer]["action"] == "edited"
        assert layers[layer].get("shared_rows") == (rows if differ else None)


def test_inspect_spectrum_sees_what_edit_edits(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    result = run("inspect-spectrum", *paths, *OVERLAP, "--format", "json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [error.message for error in VALIDATOR.iter_errors(report)] == []
    layers = {layer["name"]: layer for layer in report["layers"]}
    out = tmp_path / "out.safetensors"
    assert run("edit", *paths, "-o", out, *OVERLAP).code == 0
    for name, edited in read_report(out).items():
        for field in ("action", "reason", "shared_rows", "rank", "k"):
            assert layers[name].get(field) == edited.get(field), (name, field)
    for name in MATRICES:
        base, *finetuned = leading(tensors, name, rows_of(name, range(4)))
        updates = [each - base for each in finetuned]
        pairs = ((0, 1), (0, 2), (1, 2))
        expected = [references.cosine(updates[one], updates[other]) for one, other in pairs]
        np.testing.assert_allclose(layers[name]["cosines"], expected, rtol=0, atol=1e-9)


def test_sfgs_compares_the_rows_that_the_base_has_too(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    out = tmp_path / "out.safetensors"
    assert run("sfgs", *paths, "-o", out, "--threshold", -1, *OVERLAP).code == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    arrays = [
        {name: leading([each], name, rows_of(name, range(4)))[0] for name in MATRICES} for each in tensors
    ]
    expected = references.similarity(arrays[0], arrays[1:], MATRICES)
    np.testing.assert_allclose(report["selection"]["similarity"], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [72, 70, 75], ids=["as many", "fewer", "more"])
def test_of_a_soup_of_one_member_all_rows_are_its_own_if_they_are_as_many(run, tmp_path, rows):
    """The second of three is the only member. With fewer or more rows than the first, whose shape the
    output has, only the shared ones are its own."""
    tensors, _ = make(tmp_path, (F32,) * 4)
    first, second, third = (tensors[2]["embed.weight"], tensors[3]["embed.weight"][:rows], torch.ones(70, 9))
    paths = write(tmp_path, [tensors[0], *({"embed.weight": each} for each in (first, second, third))])
    scores, out = tmp_path / "scores.json", tmp_path / "out.safetensors"
    scores.write_text(json.dumps({str(path): float(path == paths[2]) for path in paths[1:]}))
    words = ("sfgs", *paths, "-o", out, "--threshold", 1, "--scores", scores, *OVERLAP)
    assert run(*words).code == 0
    expected = second if rows == 72 else torch.cat([second[:70], first[70:]])
    assert have_same_bits(load_file(out)["embed.weight"], expected)
    assert read_report(out)["embed.weight"]["reason"] == "unchanged"


def test_a_mean_of_members_keeps_to_the_rows_of_all_inputs(run, tmp_path):
    """Of three, the first two join; the third has the fewest rows."""
    tensors, _ = make(tmp_path, (F32,) * 4)
    whole = [each["embed.weight"] for each in tensors]
    opposed = whole[0][:60] - (whole[1][:60] - whole[0][:60])
    checkpoints = [{"w": weights} for weights in (whole[0], whole[1], whole[2], opposed)]
    out = tmp_path / "out.safetensors"
    assert run("sfgs", *write(tmp_path, checkpoints), "-o", out, "--threshold", 0.1, *OVERLAP).code == 0
    expected = references.soup(leading(checkpoints[1:3], "w", 60))
    assert_overlaps(load_file(out)["w"], whole[1], 60, expected)
    assert read_report(out)["w"]["shared_rows"] == 60


def test_a_new_head_is_averaged_where_all_have_it(run, tmp_path):
    tensors, _ = make(tmp_path, (F32,) * 4)
    for number, each in enumerate(tensors):
        each["new"] = torch.full((5 + number, 2), float(number))
    del tensors[0]["new"]
    out = tmp_path / "out.safetensors"
    assert run("edit", *write(tmp_path, tensors), "-o", out, *OVERLAP).code == 0
    assert load_file(out)["new"].tolist() == 6 * [[2.0, 2.0]]
    assert read_report(out)["new"]["reason"] == "not_in_base"


def test_what_the_base_has_as_integers_does_not_overlap(run, tmp_path):
    """It is kept, and averaged in all of its rows."""
    base = {"w": torch.ones(2, 2), "codes": torch.arange(4)}
    finetuned = [{"w": torch.eye(2), "codes": torch.full((6,), float(value))} for value in (1, 3)]
    out = tmp_path / "out.safetensors"
    assert run("edit", *write(tmp_path, [base, *finetuned]), "-o", out, *OVERLAP).code == 0
    assert load_file(out)["codes"].tolist() == 6 * [2.0]
    assert read_report(out)["codes"]["reason"] == "not_floating"


@pytest.mark.parametrize("rows", [(0, 5), (5, 0), (4, 5)], ids=str)
def test_where_no_row_is_shared_or_has_moved_nothing_is_edited(run, tmp_path, rows):
    base, finetuned = ({"w": torch.ones(count, 3), "v": torch.ones(count)} for count in rows)
    finetuned["w"][4:] = 7.0
    paths = write(tmp_path, [base, finetuned])
    for words in (("edit", *paths), ("wise", *paths, "--alpha", 0), ("soup", *reversed(paths))):
        out = tmp_path / f"{words[0]}.safetensors"
        assert run(*words, "-o", out, *OVERLAP).code == 0
        layer = read_report(out)["w"]
        if words[0] != "soup":
            assert torch.equal(load_file(out)["w"], finetuned["w"])
            assert (layer["reason"], "shared_rows" in layer) == ("unchanged", False)
    (_, layer) = json.loads(run("inspect-spectrum", *paths, *OVERLAP, "--format", "json").out)["layers"]
    assert (layer["reason"], "shared_rows" in layer) == ("unchanged", False)


def test_the_written_dtype_is_that_of_all_rows(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    out = tmp_path / "out.safetensors"
    assert run("edit", *paths[:2], "-o", out, "--dtype", "bfloat16", *OVERLAP).code == 0
    found = load_file(out)
    for name in LAYERS:
        rows = rows_of(name, (0, 1))
        assert have_same_bits(found[name][rows:], tensors[1][name][rows:].to(BF16))
    for name in set(MATRICES) - {STACKED}:
        base, finetuned = leading(tensors[:2], name, rows_of(name, (0, 1)))
        expected, _ = edited_by_hand(base, finetuned)
        assert_overlaps(found[name], tensors[1][name].to(BF16), len(base), expected)


def test_a_sweep_has_the_other_rows_in_every_checkpoint(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    assert run("wise", *paths[:2], "-o", tmp_path / "out", "--alpha", "0,0.5,1", *OVERLAP).code == 0
    for alpha in ("0", "0.5", "1"):
        found = load_file(tmp_path / "out" / f"alpha-{alpha}" / "model.safetensors")
        for name in LAYERS:
            base, finetuned = leading(tensors[:2], name, rows_of(name, (0, 1)))
            expected = references.wise(base, finetuned, float(alpha))
            assert_overlaps(found[name], tensors[1][name], len(base), expected)


# -- what is refused --------------------------------------------------------------------------------


def write_pair(folder, base, finetuned):
    return write(folder, [{"w": torch.ones(4, 3), "head": each} for each in (base, finetuned)])


@pytest.mark.parametrize(
    ("base", "finetuned"),
    [
        ((5, 4), (5, 6)),
        ((5, 4), (6, 5)),
        ((5,), (5, 1)),
        ((5, 4), (5, 4, 1)),
        ((), (1,)),
        ((2, 3, 4), (3, 4, 3)),
    ],
)
def test_other_differences_are_refused(run, refuse, tmp_path, base, finetuned):
    paths = write_pair(tmp_path, torch.ones(base), torch.zeros(finetuned))
    line = refuse(*paths, *OVERLAP)
    assert all(
        word in line
        for word in (
            str(paths[1]),
            "'head'",
            str(list(base)),
            str(list(finetuned)),
            "number of rows",
            "--exclude",
        )
    )
    assert "--on-mismatch" not in line
    default = refuse(*paths)
    assert "--on-mismatch keep" in default
    assert "overlap" not in default
    out = tmp_path / "out.safetensors"
    assert run("edit", *paths, "-o", out, *OVERLAP, "--exclude", "head").code == 0
    assert have_same_bits(load_file(out)["head"], torch.zeros(finetuned))
    assert read_report(out)["head"]["reason"] == "excluded"


def test_the_default_refuses_and_names_both_ways_out(refuse, tmp_path):
    paths = write_pair(tmp_path, torch.ones(5, 4), torch.ones(6, 4))
    line = refuse(*paths)
    assert all(word in line for word in ("[5, 4]", "[6, 4]", "--on-mismatch keep", "overlap"))


def test_excluded_tensors_do_not_overlap(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    out = tmp_path / "out.safetensors"
    words = (
        "edit",
        *paths,
        "-o",
        out,
        *OVERLAP,
        "--wise",
        0.5,
        "--exclude",
        "embed.*",
        "--exclude",
        "*.bias",
    )
    assert run(*words).code == 0
    for name in ("embed.weight", *VECTORS):
        assert have_same_bits(load_file(out)[name], tensors[1][name])


def test_keeping_still_keeps(run, tmp_path):
    tensors, paths = make(tmp_path, (F32,) * 4)
    out = tmp_path / "out.safetensors"
    assert run("edit", *paths[:2], "-o", out, "--on-mismatch", "keep").code == 0
    for name, layer in read_report(out).items():
        is_kept = name != "blocks.0.alike.weight"
        assert (layer["action"] == "kept") == is_kept
        if is_kept and name != "positions":
            assert have_same_bits(load_file(out)[name], tensors[1][name])


# -- NaN and Inf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocks.0.wide.weight", "blocks.0.bias"])
@pytest.mark.parametrize(("command", "options"), [("edit", ()), ("wise", ("--alpha", 0.5)), ("soup", ())])
def test_nan_in_the_other_rows_stops_the_run(run, tmp_path, command, options, name):
    tensors, _ = make(tmp_path, (F32,) * 4)
    tensors[1][name][-1] = math.nan
    paths = write(tmp_path, tensors)
    sources = paths[1:] if command == "soup" else paths[:2]
    out = tmp_path / "out.safetensors"
    stopped = run(command, *sources, "-o", out, *options, *OVERLAP)
    assert (stopped.code, out.exists()) == (1, False)
    assert all(word in stopped.err for word in (str(paths[1]), repr(name), "NaN"))
    assert run(command, *sources, "-o", out, *options, *OVERLAP, "--on-nonfinite", "keep").code == 0
    assert have_same_bits(load_file(out)[name], tensors[1][name])
    assert read_report(out)[name]["reason"] == "nonfinite"


def test_nan_in_a_member_keeps_the_first_whole(run, tmp_path):
    tensors, _ = make(tmp_path, (F32,) * 4)
    tensors[3]["embed.weight"][5, 5] = math.inf
    out = tmp_path / "out.safetensors"
    words = ("soup", *write(tmp_path, tensors)[1:], "-o", out, *OVERLAP, "--on-nonfinite", "keep")
    assert run(*words).code == 0
    assert have_same_bits(load_file(out)["embed.weight"], tensors[1]["embed.weight"])


def test_rows_that_nobody_needs_are_not_read(run, tmp_path):
    tensors, _ = make(tmp_path, (F32,) * 4)
    tensors[0]["lm_head.weight"][-1] = math.nan
    tensors[3]["embed.weight"][-1] = math.nan
    out = tmp_path / "out.safetensors"
    assert run("edit", *write(tmp_path, tensors), "-o", out, *OVERLAP).code == 0
    assert all(tensor.isfinite().all() for tensor in load_file(out).values())


# -- the plan, workers, kills and memory -------------------------------------------------------------


def test_the_plan_shows_the_rows(run, tmp_path):
    _, paths = make(tmp_path, (F32,) * 4)
    edit = run("edit", *paths[:2], "-o", tmp_path / "out", *OVERLAP, "--dry-run")
    wise = run("wise", *paths[:2], "-o", tmp_path / "out", *OVERLAP, "--alpha", 0.5, "--dry-run")
    lines = {line.split()[0]: line for line in edit.out.splitlines() if line.strip()}
    assert lines["embed.weight"].endswith("edit 70 of 73 rows × 9")
    assert lines["lm_head.weight"].endswith("edit 8 × 70")
    assert lines["blocks.1.convolution.weight"].endswith("edit 6 of 8 rows × 36")
    assert lines[STACKED].endswith("edit 3 of 4 rows of 8 × 10")
    assert lines["blocks.0.bias"].endswith("keep: vector")
    lines = {line.split()[0]: line for line in wise.out.splitlines() if line.strip()}
    assert lines["blocks.1.convolution.weight"].endswith("interpolate 6 of 8 rows × 4 × 3 × 3")
    assert lines["blocks.0.bias"].endswith("interpolate 9 of 12 rows")


@pytest.mark.parametrize(
    "words", [("edit",), ("stock", "--granularity", "filter")], ids=lambda words: words[0]
)
def test_workers_do_not_change_the_bytes(run, tmp_path, words):
    _, paths = make(tmp_path, (BF16,) * 4)
    found = []
    for workers in (1, 4):
        out = tmp_path / f"of-{workers}.safetensors"
        assert run(words[0], *paths, "-o", out, *words[1:], *OVERLAP, "--workers", workers).code == 0
        found.append(out.read_bytes())
    assert found[0] == found[1]


MANY = 400


@pytest.mark.slow
def test_killed_and_resumed(run, tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.w": torch.randn(16, 16, generator=generator) for n in range(MANY)}
    tuned = {name: torch.cat([1.1 * w.flip(0), w[:3]]) for name, w in base.items()}
    paths, out = write(tmp_path, [base, tuned]), tmp_path / "out"
    words = ["edit", *map(str, paths), "-o", str(out), "--device", "cpu", *OVERLAP]
    journal = tmp_path / "out.partial" / "journal"
    process = subprocess.Popen([sys.executable, "-m", "monosoup_cli", *words], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    refused = run(*words[:-1], "keep", "--resume")
    assert refused.code == 1
    assert "on_mismatch" in refused.err
    assert run(*words, "--resume").code == 0
    assert run(*words, "-o", tmp_path / "whole").code == 0
    resumed, whole = ((path / "model.safetensors").read_bytes() for path in (out, tmp_path / "whole"))
    assert resumed == whole
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name][16:], tuned[name][16:]) for name in tuned)


MEASURED = """
import sys
from pathlib import Path
import monosoup_cli

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

small, large, tuned, out = sys.argv[1:]
options = {"workers": 1, "overwrite": True, "on_mismatch": "overlap"}
peaks = []
for finetuned in (small, tuned):
    monosoup_cli.edit(large, finetuned, out, **options)
    monosoup_cli.wise(large, finetuned, out, alpha=0.5, **options)
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_other_rows(tmp_path):
    base = torch.randn(2000, 64)
    few, many = (torch.cat([1.1 * base.flip(0), torch.ones(rows, 64)]) for rows in (1, 600_000))
    paths = write(tmp_path, [{"w": few}, {"w": base}, {"w": many}])
    words = [sys.executable, "-c", MEASURED, *paths, tmp_path / "out"]
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    assert int(result.stdout) < 30e6, "of 154 MB"
