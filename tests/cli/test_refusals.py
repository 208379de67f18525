"""Inputs and outputs that are refused: one line that says what and where, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monosoup_cli.errors import OutputError
from monosoup_cli.formats import files
from monosoup_cli.outputs.writer import PartialOutput
from tests.catalogue.table import entry, raw
from tests.sampling import first


def shards(folder: Path, names: dict[str, list[str]], weight_map: object = None) -> Path:
    """A folder of shards {file: tensors}, with a truthful index, or with this `weight_map`."""
    folder.mkdir()
    for file, tensors in names.items():
        save_file({name: torch.ones(2, 2) for name in tensors}, folder / file)
    if weight_map is None:
        weight_map = {name: file for file, tensors in names.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


# -- an index that lies ---------------------------------------------------------------------------


def test_an_index_that_cannot_be_written_again(pair, refuse, tmp_path):
    folder = shards(tmp_path / "in", {A: ["block.weight"]})
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:-1] + r', "note": "\ud800"}')
    assert "model.safetensors.index.json" in refuse(pair.base, folder, "--on-mismatch", "keep")


def test_an_index_of_any_depth_is_taken_or_refused(pair, run, tmp_path):
    """Reading and writing JSON have limits of their own, some way apart."""
    folder = shards(tmp_path / "in", {A: ["block.weight"]})
    path = folder / "model.safetensors.index.json"
    start = path.read_text()[:-1]
    codes = []
    for depth in (100, *range(600, 1000, 8), 2000, 4000, 100_000):
        path.write_text(f'{start}, "note": {"[" * depth}{"]" * depth}}}')
        result = run("edit", pair.base, folder, "-o", tmp_path / "out", "--on-mismatch", "keep", "--dry-run")
        codes.append(result.code)
        assert result.code == 0 or "model.safetensors.index.json: the index is nested" in result.err
    assert codes == sorted(codes)
    assert (codes[0], codes[-1]) == (0, 1)


def test_an_index_without_metadata_is_completed(run, tmp_path):
    inputs = [shards(tmp_path / name, {A: ["x"], B: ["y"]}) for name in ("base", "finetuned")]
    assert run("edit", *inputs, "-o", tmp_path / "out").code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 32}, "weight_map": {"x": A, "y": B}}


def test_an_index_of_more_than_ten_megabytes_is_read(run, tmp_path):
    inputs = [shards(tmp_path / name, {A: ["x"], B: ["y"]}) for name in ("base", "finetuned")]
    path = inputs[1] / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding": "x" * 11_000_000}))
    assert run("edit", *inputs, "-o", tmp_path / "out").code == 0


def test_a_path_that_is_not_there(pair, refuse, tmp_path):
    assert str(tmp_path / "absent") in refuse(tmp_path / "absent", pair.finetuned)


# -- links, and what is no file -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_machine_whose_numbers_are_big_endian(pair, refuse, tmp_path, monkeypatch, suffix):
    torch.save(load_file(pair.finetuned), tmp_path / "finetuned.pt")
    monkeypatch.setattr(sys, "byteorder", "big")
    line = refuse(tmp_path / f"finetuned.{suffix}", pair.base)
    assert f"finetuned.{suffix}: little-endian, and cannot be read on this machine" in line


def test_a_link_that_leads_nowhere_and_is_not_needed(pair, run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(pair.finetuned, folder / "model.safetensors")
    links = ("checkpoint-last", "optimizer_link.pt", "broken.json", "tokenizer.json", "README.md")
    for name in links:
        (folder / name).symlink_to("gone")
    result = run("edit", pair.base, folder, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    left_out = {one["name"]: one["why"] for one in report["output"]["left_out"]}
    assert [left_out[name] for name in links[:-1]] == ["a broken link"] * 4
    assert sorted(left_out) == sorted(links)


# -- sizes ----------------------------------------------------------------------------------------


def sparse(path: Path, header: bytes, data_bytes: int) -> Path:
    """A file whose tensors' bytes take no room on the disk."""
    path.write_bytes(raw(header))
    os.truncate(path, 8 + len(header) + data_bytes)
    return path


def test_a_huge_vocabulary_is_planned_without_being_read(run, tmp_path, monkeypatch):
    header = json.dumps({"embed": entry("BF16", [256_000, 8192], [0, 256_000 * 8192 * 2])}).encode()
    inputs = [sparse(tmp_path / f"{name}.safetensors", header, 256_000 * 8192 * 2) for name in "ab"]
    monkeypatch.setattr("monosoup_cli.devices.cpu.Cpu.free_bytes", lambda cpu: 64 << 30)
    monkeypatch.setattr("monosoup_cli.pipeline.ready.check_space", lambda output, nbytes: None)
    plain, sizes = files.read_some, []
    monkeypatch.setattr(files, "read_some", lambda *words: sizes.append(plain(*words)) or sizes[-1])
    result = run("edit", *inputs, "-o", tmp_path / "out", "--dry-run", "--format", "json")
    assert result.code == 0
    assert 8 * 8192**2 < json.loads(result.out)["memory_bytes"] < 6e9
    assert 0 < sum(sizes) < 1000
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_does_not_fit_into_memory(refuse, tmp_path, monkeypatch):
    header = json.dumps({"embed": entry("BF16", [16384, 16384], [0, 16384**2 * 2])}).encode()
    inputs = [sparse(tmp_path / f"{name}.safetensors", header, 16384**2 * 2) for name in "ab"]
    monkeypatch.setattr("monosoup_cli.devices.cpu.Cpu.free_bytes", lambda cpu: 4 << 30)
    assert "memory" in refuse(*inputs)


def test_a_terabyte_does_not_fit_on_the_disk(refuse, tmp_path, monkeypatch):
    header = json.dumps({"t": entry("U8", [2**40], [0, 2**40])}).encode()
    inputs = [sparse(tmp_path / f"{name}.safetensors", header, 2**40) for name in "ab"]
    usage = shutil.disk_usage(tmp_path)._replace(free=2**39)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = refuse(*inputs)
    assert "space" in line
    assert str(tmp_path / "out") in line


@pytest.mark.parametrize("count", first(1, [20_000, 100_000]))
def test_very_many_tensors(run, tmp_path, count):
    values = torch.arange(2.0 * count).reshape(count, 2)
    inputs = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
    for number, path in enumerate(inputs, start=1):
        save_file({f"t{row}": value.clone() for row, value in enumerate(values * number)}, path)
    result = run("edit", *inputs, "-o", tmp_path / "out", "--quiet")
    assert result.code == 0, result.err  # 143 where the tests themselves were stopped
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == inputs[1].read_bytes()


# -- tensors that are moved as bytes --------------------------------------------------------------

EXOTIC: dict[str, tuple[str, list[int], bytes]] = {
    "bool": ("BOOL", [4], bytes([0, 1, 2, 255])),
    "f4": ("F4", [2, 3], bytes(range(3))),
    "f6 e2m3": ("F6_E2M3", [4, 4], bytes(range(12))),
    "f6 e3m2": ("F6_E3M2", [4], bytes(range(3))),
    "f8 e8m0": ("F8_E8M0", [2, 2], b"\x00\x7f\xfe\xff"),
    **{
        f"{dtype} matrix": (dtype, [1, 3], bytes(range(240, 240 + 3)) * size)
        for size, dtypes in ((1, "U8 I8"), (2, "I16 U16"), (4, "I32 U32"), (8, "I64 U64"))
        for dtype in dtypes.split()
    },
    "c64": ("C64", [1, 2], struct.pack("<4f", 1, float("nan"), -2, 3)),
    "scalar": ("F32", [], struct.pack("<f", -0.0)),
    "integer scalar": ("I64", [], struct.pack("<q", -1)),
    "nothing": ("F32", [0, 5], b""),
    "nothing at all": ("BF16", [0, 0, 5], b""),
    "no experts": ("F16", [0, 3, 4], b""),
    "64 dimensions": ("I16", [1] * 64, b"\x01\x02"),
}


@pytest.mark.parametrize("dtype", ["keep", "float16"])
def test_what_is_not_edited_is_copied_byte_for_byte(run, tmp_path, dtype):
    inputs = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
    for number, path in enumerate(inputs):
        header, data = {}, b""
        for name, (kind, shape, content) in EXOTIC.items():
            stored = content if number else content[::-1]
            header[name] = entry(kind, shape, [len(data), len(data) + len(stored)])
            data += stored
        path.write_bytes(raw(header, data))
    output = tmp_path / "out.safetensors"
    assert run("edit", *inputs, "-o", output, "--dtype", dtype).code == 0
    written = output.read_bytes()
    (length,) = struct.unpack("<Q", written[:8])
    header = json.loads(written[8 : 8 + length])
    if dtype == "keep":
        assert written == inputs[1].read_bytes()
    for name, (kind, _, content) in EXOTIC.items():
        if kind in {"F32", "BF16"}:
            continue
        start, stop = header[name]["data_offsets"]
        assert header[name]["dtype"] == kind
        assert written[8 + length + start : 8 + length + stop] == content, name
    layers = json.loads((tmp_path / "out.report.json").read_text())["layers"]
    reasons = {layer["name"]: layer["reason"] for layer in layers}
    assert reasons.pop("scalar") == "vector"
    assert {reasons.pop(name) for name in ("nothing", "nothing at all", "no experts")} == {"unchanged"}
    assert set(reasons.values()) == {"not_floating"}
    assert {layer["action"] for layer in layers} == {"kept"}


# -- codes instead of weights ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix",
    [
        "qweight",
        "qzeros",
        "g_idx",
        "weight.absmax",
        "weight.quant_map",
        "SCB",
        "weight.quant_state.bitsandbytes__nf4",
        "weight_scale",
        "weight_scale_inv",
        "weight_packed",
    ],
)
def test_a_quantised_checkpoint_is_refused(pair, refuse, tmp_path, suffix):
    path = tmp_path / "quantised.safetensors"
    save_file({"block.weight": torch.ones(8, 6), f"mlp.{suffix}": torch.ones(2)}, path)
    for inputs in ((path, pair.finetuned), (pair.base, path)):
        line = refuse(*inputs)
        assert all(word in line for word in ["quantised", f"'mlp.{suffix}'", str(path)])


# -- numbers that are none ------------------------------------------------------------------------


def write_with(path: Path, name: str, value: float, dtype: torch.dtype | None = None) -> None:
    """Replace the second element of a tensor in a file."""
    tensors = load_file(path)
    if dtype is not None:
        tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("base", "block.weight"),
        ("finetuned", "block.weight"),
        ("finetuned", "head.weight"),
        ("finetuned", "block.bias"),
    ],
)
def test_nan_and_inf_stop_the_run(pair, refuse, run, tmp_path, which, name, value):
    path = getattr(pair, which)
    write_with(path, name, value)
    line = refuse(*pair)
    assert all(word in line for word in ["NaN or Inf", f"'{name}'", str(path), "(1 "]), line
    result = run("edit", *pair, "-o", tmp_path / "out", "--exclude", name)  # as the message says
    assert result.code == 0
    written = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert written.view(torch.int32).equal(load_file(pair.finetuned)[name].view(torch.int32))


@pytest.mark.parametrize("name", ["block.weight", "block.bias"])
def test_a_result_that_overflows_its_dtype_stops_the_run(pair, refuse, name):
    for path in pair:
        write_with(path, name, 1e6)
    line = refuse(*pair, "--dtype", "float16")
    assert all(word in line for word in ["overflows F16", f"'{name}'"]), line


def test_an_update_that_overflows_when_it_is_cast_back_stops_the_run(refuse, tmp_path):
    """Both inputs are finite in float16; base + edited update is not."""
    inputs = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
    base = torch.tensor([[60000.0, 0.0], [0.0, 60000.0]])
    high, low = torch.full((2, 2), -12000.0), torch.tensor([[10000.0, -10000.0], [-10000.0, 10000.0]])
    for path, matrix in zip(inputs, (base, base + high + low), strict=True):
        save_file({"w": matrix.half()}, path)
    line = refuse(*inputs, "--rank", 1, "--weighting", "low")
    assert "overflows F16" in line
    assert "'w'" in line


# -- inputs that do not belong together -----------------------------------------------------------


def test_shapes_that_differ_are_named(pair, refuse):
    tensors = load_file(pair.finetuned)
    tensors["head.weight"] = torch.ones(5, 8)
    save_file(tensors, pair.finetuned)
    line = refuse(*pair)
    assert all(word in line for word in ["'head.weight'", "[4, 8]", "[5, 8]", "--on-mismatch keep"])
    assert str(pair.finetuned) in line or str(pair.base) in line


def test_checkpoints_with_nothing_in_common_are_refused(pair, refuse, tmp_path):
    save_file({"other": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    line = refuse(pair.base, tmp_path / "other.safetensors")
    assert all(word in line for word in ["in common", "'block.weight'", "'other'"])
    assert str(tmp_path / "other.safetensors") in line


def test_names_and_dtypes_that_differ_are_said_in_the_report(pair, run, tmp_path):
    base, finetuned = (load_file(path) for path in pair)
    base["gone.weight"] = torch.ones(2, 2)
    finetuned["new.weight"] = torch.ones(2, 2)
    finetuned["block.weight"] = finetuned["block.weight"].half()
    save_file(base, pair.base)
    save_file(finetuned, pair.finetuned)
    result = run("edit", *pair, "-o", tmp_path / "out", "--format", "json")
    report = json.loads(result.out)
    assert "gone.weight" in result.err
    assert report["only_in_base"] == ["gone.weight"]
    reasons = {layer["name"]: (layer["dtype"], layer["reason"]) for layer in report["layers"]}
    assert reasons["new.weight"] == ("F32", "not_in_base")
    assert reasons["block.weight"] == ("F16", None)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == finetuned.keys()
    assert torch.equal(written["new.weight"], finetuned["new.weight"])


# -- outputs that must not be ---------------------------------------------------------------------


def folders(tmp_path: Path, pair: Any) -> list[Path]:
    """The pair as two folders, a real one each."""
    made = []
    for path in pair:
        made.append(tmp_path / path.stem)
        made[-1].mkdir()
        path.rename(made[-1] / "model.safetensors")
    return made


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("which", [0, 1], ids=["base", "finetuned"])
@pytest.mark.parametrize(
    ("kind", "alias"),
    [("file", "hard link")]
    + [
        (kind, alias)
        for kind in ("file", "folder")
        for alias in ("itself", "symlink", "symlinked parent", "dots")
    ],
)
def test_the_output_may_not_be_an_input(pair, refuse, tmp_path, overwrite, which, alias, kind):
    inputs = list(pair) if kind == "file" else folders(tmp_path, pair)
    output, other = inputs[which], tmp_path / f"other{inputs[which].suffix}"
    if alias == "hard link":
        os.link(output, other)
        output = other
    elif alias == "symlink":
        other.symlink_to(output)
        output = other
    elif alias == "symlinked parent":
        (tmp_path / "alias").symlink_to(tmp_path)
        output = tmp_path / "alias" / output.name
    elif alias == "dots":
        (tmp_path / "sub").mkdir()
        output = tmp_path / "sub" / ".." / output.name
    line = refuse(*inputs, *overwrite, output=output)
    assert "the output is an input" in line
    assert str(output) in line


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder, `place`, which is also mounted as `alias`."""
    alias, place = tmp_path / "alias", tmp_path / "place"
    alias.mkdir()
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", place, alias], check=False).returncode:
        pytest.skip("cannot mount")
    try:
        yield alias
    finally:
        subprocess.run(["umount", "-l", alias], check=True)


def test_a_mount_is_no_way_around_the_output(mounted, pair, refuse, tmp_path):
    """A folder that is mounted twice has two real paths."""
    place = tmp_path / "place"
    for folder in (place / "in", place / "out"):
        folder.mkdir()
        shutil.copy(pair.finetuned, folder / "model.safetensors")
    old = (place / "out" / "model.safetensors").read_bytes()
    (place / "in" / "r.json").write_text("{}")
    alias_in, alias_out = mounted / "in", mounted / "out"
    assert "the output is an input" in refuse(pair.base, place / "in", "--overwrite", output=alias_in)
    assert "inside an input" in refuse(pair.base, place / "in", output=alias_in / "new")
    for input_of in (alias_out, alias_out / "model.safetensors"):
        line = refuse(pair.base, input_of, "--overwrite", output=place / "out")
        assert "the output is an input" in line or "inside the output" in line
    report = ["--report", alias_in / "r.json", "--overwrite"]
    assert "would replace an input" in refuse(pair.base, place / "in", *report, output=tmp_path / "new")
    assert (place / "out" / "model.safetensors").read_bytes() == old


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
@pytest.mark.parametrize("alias", [False, True])
def test_the_output_may_not_lie_in_an_input(pair, refuse, tmp_path, name, alias):
    inputs = folders(tmp_path, pair)
    (tmp_path / "alias").symlink_to(inputs[0])
    line = refuse(*inputs, output=(tmp_path / "alias" if alias else inputs[0]) / name)
    assert "inside an input" in line
    assert str(inputs[0]) in line


@pytest.mark.parametrize(
    "place", ["out/in.safetensors", "out/deep/in.safetensors", "out.partial/in.safetensors"]
)
def test_an_input_may_not_lie_in_the_output(pair, refuse, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    shutil.copy(pair.finetuned, tmp_path / path.relative_to(tmp_path).parts[0] / "model.safetensors")
    pair.base.rename(path)
    line = refuse(path, pair.finetuned, "--overwrite")
    assert "inside the output" in line
    assert str(path) in line


def test_an_input_that_lies_in_the_output_is_called_as_typed(pair, refuse, tmp_path):
    folder = tmp_path / "out" / "deep" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(pair.base)
    assert refuse(folder, pair.finetuned, "--overwrite").rstrip().endswith(f"found {folder}")


@pytest.mark.parametrize("kind", ["checkpoint", "empty", "foreign"])
def test_an_output_that_exists_is_refused(pair, refuse, tmp_path, kind):
    output = tmp_path / "out"
    output.mkdir()
    if kind == "checkpoint":
        shutil.copy(pair.base, output / "model.safetensors")
    elif kind == "foreign":
        (output / "thesis.tex").write_text("years of work")
    assert "--overwrite" in refuse(*pair)
    assert str(output) in refuse(*pair, "--resume")
    if kind == "foreign":
        assert "not a checkpoint" in refuse(*pair, "--overwrite")


def test_files_and_folders_do_not_replace_each_other(pair, refuse, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "folder with a file" in refuse(*pair, "--overwrite")
    (tmp_path / "x.safetensors").mkdir()
    assert "folder with a file" in refuse(*pair, "--overwrite", output=tmp_path / "x.safetensors")


@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_an_output_that_is_a_link_is_refused(pair, refuse, tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)
    assert "link" in refuse(*pair, "--overwrite")


@pytest.mark.parametrize("output", ["absent/out", "base.safetensors/out", "n" * 300, ".", ""])
def test_an_output_that_cannot_be_is_refused(pair, refuse, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    assert refuse(*pair, "-o", output)  # the last -o counts


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_is_refused(pair, refuse, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "not writable" in refuse(*pair, output=tmp_path / "closed" / "out")


def test_a_system_that_refuses_the_output(pair, refuse):
    line = refuse(*pair, output="/proc/monosoup-out")
    assert "/proc/monosoup-out" in line


@pytest.mark.parametrize("partial", ["file", "folder", "link"])
def test_a_foreign_partial_is_not_touched(pair, refuse, tmp_path, partial):
    path = tmp_path / "out.partial"
    if partial == "file":
        path.write_text("mine")
    elif partial == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        (tmp_path / "target").mkdir()
        path.symlink_to(tmp_path / "target")
    for options in ([], ["--overwrite"], ["--resume"]):
        assert str(path) in refuse(*pair, *options)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize(
    "report",
    [
        "finetuned/model.safetensors",
        "base/config.json",
        "out",
        "out/model.safetensors",
        "out/README.md",
        "out/config.json",
        "absent/report.json",
        "base",
    ],
)
def test_the_report_may_not_replace_anything_of_the_run(pair, refuse, tmp_path, report, overwrite):
    inputs = folders(tmp_path, pair)
    for folder in inputs:
        (folder / "config.json").write_text("{}")
    assert "report" in refuse(*inputs, "--report", tmp_path / report, *overwrite)


def test_the_report_of_a_file_may_not_be_that_file(pair, refuse, tmp_path):
    output = tmp_path / "out.safetensors"
    assert "report" in refuse(*pair, "--report", output, output=output)


@pytest.mark.parametrize(
    "words",
    [
        ["edit"],
        ["edit", "{base}"],
        ["edit", "{base}", "{finetuned}"],
        ["nonsense"],
        [],
        *(
            ["edit", "{base}", "{finetuned}", "-o", "{out}", *options]
            for options in (
                ["--nonsense"],
                ["--energy", "2"],
                ["--energy", "0.5", "--rank", "3"],
                ["--rank", "0"],
                ["--wise", "1.5"],
                ["--min-update", "-1"],
                ["--max-shard-size", "big"],
                ["--workers", "0"],
                ["--device", "toaster"],
                ["--include", "nothing*"],
                ["--dtype", "int8"],
                ["--stacked", "head*"],
            )
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(pair, run, tmp_path, words):
    before = sorted(tmp_path.iterdir())
    paths = {"base": pair.base, "finetuned": pair.finetuned, "out": tmp_path / "out"}
    result = run(*(word.format(**paths) for word in words))
    assert result.code == 2
    assert "Traceback" not in result.err
    assert words == [] or (result.out == "" and "error: " in result.err.lower())
    assert sorted(tmp_path.iterdir()) == before


# -- one run at a time, and the same run again ----------------------------------------------------


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_a_second_run_on_the_same_output_is_refused_at_once(pair, refuse, tmp_path, output):
    holder = textwrap.dedent("""
        import sys
        from monosoup_cli.api.edit import edit
        from monosoup_cli.cli.app import main
        from monosoup_cli.outputs.writer import PartialOutput
        publish = PartialOutput.publish
        def wait(self, *words):
            print("holds", flush=True)
            sys.stdin.read()
            publish(self, *words)
        PartialOutput.publish = wait
        raise SystemExit(main(["edit", *sys.argv[1:], "--quiet"]))
    """)
    command = [sys.executable, "-c", holder, *pair, "-o", tmp_path / output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "holds\n"
        for options in ([], ["--resume"], ["--overwrite"]):
            line = refuse(*pair, *options, output=tmp_path / output)
            assert "another run" in line
            assert str(tmp_path / output) in line
        assert first.poll() is None
        first.communicate("go on")
    assert first.returncode == 0
    assert (tmp_path / output).exists()
    assert not (tmp_path / f"{output}.partial").exists()


@pytest.fixture
def interrupted(pair, run, tmp_path, monkeypatch):
    """The pair, and an edit of it that stopped just before its end."""

    def stop(self: PartialOutput, *_: object) -> None:
        raise OutputError("the disk is full", path=self.workplace.path)

    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "publish", stop)
        assert run("edit", *pair, "-o", tmp_path / "out").code == 1
    assert (tmp_path / "out.partial" / "journal").is_file()
    return pair


def test_an_interrupted_run_is_not_passed_over(interrupted, refuse):
    line = refuse(*interrupted)
    assert "--resume" in line
    assert "--overwrite" in line


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--energy", "0.5"], "arguments.energy"),
        (["--rank", "2"], "arguments.rank"),
        (["--weighting", "low"], "arguments.weighting"),
        (["--wise", "0.5"], "arguments.wise"),
        (["--exclude", "head*"], "arguments.exclude"),
        (["--dtype", "float16"], "arguments.dtype"),
        (["--min-update", "0.1"], "arguments.min_update"),
    ],
)
def test_resume_with_other_options_names_them(interrupted, refuse, options, difference):
    line = refuse(*interrupted, "--resume", *options)
    assert f"differs in {difference};" in line


@pytest.mark.parametrize("which", ["base", "finetuned"])
@pytest.mark.parametrize("change", ["time", "content", "header"])
def test_resume_with_other_inputs_names_them(interrupted, refuse, which, change):
    path = getattr(interrupted, which)
    if change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "content":
        write_with(path, "block.bias", 3.0)
    else:
        save_file(load_file(path), path, metadata={"format": "pt", "changed": "yes"})
    line = refuse(*interrupted, "--resume")
    assert "differs in" in line
    assert f"{which.upper()}{' 1' * (which == 'finetuned')}'s {path.name} (" in line
    assert change != "time" or "(time of modification);" in line
    assert "--overwrite alone" in line


def test_resume_goes_on_after_a_refusal(interrupted, refuse, run, tmp_path):
    refuse(*interrupted, "--resume", "--energy", "0.5")
    assert run("edit", *interrupted, "-o", tmp_path / "out", "--resume").code == 0
    assert run("edit", *interrupted, "-o", tmp_path / "again").code == 0
    assert not (tmp_path / "out.partial").exists()
    resumed, straight = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert resumed.read_bytes() == straight.read_bytes()
    with safe_open(resumed, "pt") as file:
        assert set(file.keys()) == {"block.weight", "block.bias", "head.weight"}


@pytest.mark.parametrize("journal", [b'{"identity"\n', b"[]\n", b'{"identity": {}}\n', b'{"identity": 3}\n'])
def test_resume_with_a_damaged_journal_is_refused(interrupted, refuse, tmp_path, journal):
    path = tmp_path / "out.partial" / "journal"
    path.write_bytes(journal)
    assert str(path.parent) in refuse(*interrupted, "--resume")
