"""Hostile names of tensors and files: kept exactly in the files, and harmless on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NAMES = {
    "escape": ("a\x1b[2J\x1b]0;title\x07.weight", "\\x1b"),
    "newline": ("a\r\nerror: b\x0b.weight", "\\x0a"),
    "backspace": ("evil\x08\x08\x7f\x9b1mgood", "\\x08"),
    "nul": ("a\0b", "\\x00"),
    "brackets": ("blocks[attn].weight", "blocks[attn].weight"),
    "markup": ("[bold red]a[/x][/]", "[bold red]a[/x][/]"),
    "emoji code": (":warning: a", ":warning: a"),
    "right to left": ("a\u202egnp.exe\u2066", "\\u202e"),
    "line separator": ("a\u2028b\u0085c", "\\u2028"),
    "tag character": ("a\U000e0041b", "\\U000e0041"),
    "10 kB": ("long." * 2000, "long."),
    "10 kB of escapes": ("\x1b" * 10_000, "\\x1b"),
    "empty": ("", ""),
    "path": ("../../etc/passwd", "../../etc/passwd"),
    "quotes": ('it\'s "quoted" \\x1b', "quoted"),
    "not ASCII": ("блок.重み", "блок.重み"),
}
"""Name → a part of it as people see it."""

every_name = pytest.mark.parametrize(("name", "seen"), NAMES.values(), ids=list(NAMES))


@pytest.fixture
def named(tmp_path):
    """A pair whose tensors have these names: the first is edited, the others are kept."""

    def named(*names: str) -> list[Path]:
        inputs = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
        for number, path in enumerate(inputs):
            generator = torch.Generator().manual_seed(number)
            tensors = {name: torch.randn(4, generator=generator) for name in names}
            save_file({**tensors, names[0]: torch.randn(16, 12, generator=generator)}, path)
        return inputs

    return named


def printed(result) -> str:
    """What was printed, without line breaks, after checking that it cannot drive a terminal."""
    text = result.out + result.err
    bad = [
        char for char in text if char != "\n" and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    ]
    assert bad == []
    assert "Traceback" not in text
    return text.replace("\n", "")


@every_name
def test_a_name_is_kept_and_its_tensor_edited(named, run, tmp_path, name, seen):
    inputs = named(name, f"{name}.bias")
    result = run("edit", *inputs, "-o", tmp_path / "out")
    assert result.code == 0
    printed(result)
    finetuned, written = load_file(inputs[1]), load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == {name, f"{name}.bias"}
    assert not torch.equal(written[name], finetuned[name])
    assert torch.equal(written[f"{name}.bias"], finetuned[f"{name}.bias"])
    text = (tmp_path / "out" / "monosoup_report.json").read_text()
    assert text.isascii()
    assert {layer["name"] for layer in json.loads(text)["layers"]} == {name, f"{name}.bias"}


@every_name
@pytest.mark.parametrize("asked", ["table", "json"])
def test_the_plan_shows_names_harmlessly(named, run, tmp_path, name, seen, asked):
    result = run("edit", *named(name), "-o", tmp_path / "out", "--dry-run", "--format", asked)
    assert result.code == 0
    text = printed(result)
    if asked == "json":
        assert [layer["name"] for layer in json.loads(result.out)["layers"]] == [name]
        assert result.out.isascii()
    else:
        assert seen.replace(" ", "") in text.replace(" ", "")
        assert len(text) < 3000


@every_name
def test_an_error_shows_the_name_and_the_problem(named, run, tmp_path, name, seen):
    base, finetuned = named(name)
    tensors = load_file(finetuned)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, finetuned)
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert result.code == 1
    line = printed(result)
    assert result.err.count("\n") == 1
    assert line.startswith(f"error: {finetuned}: tensor ")
    assert seen.replace("\\x0a", "\\n") in line  # as Python writes it between quotes
    assert "NaN or Inf" in line
    assert "--on-nonfinite keep" in line
    assert len(line) < 3000


@every_name
def test_a_refused_header_shows_the_name_and_the_problem(run, tmp_path, name, seen):
    text = json.dumps({name: {"dtype": "F128", "shape": [], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    line = printed(run("edit", path, path, "-o", tmp_path / "out"))
    assert line.startswith(f"error: {path}: tensor ")
    assert "unknown dtype: found 'F128'" in line


@every_name
def test_a_name_that_stands_twice_is_shown_harmlessly(run, tmp_path, name, seen):
    key = json.dumps(name).encode()
    text = b"{" + key + b":{}," + key + b":{}}"
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    line = printed(run("edit", path, path, "-o", tmp_path / "out"))
    assert line.startswith(f"error: {path}: the header names ")
    assert line.endswith(" twice")


def test_names_only_in_the_base_are_shown_harmlessly(named, run, tmp_path):
    base, finetuned = named("shared", *(name for name, _ in NAMES.values()))
    save_file({"shared": torch.ones(16, 12)}, finetuned)
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert result.code == 0
    assert "only in the base" in printed(result)


@every_name
def test_values_of_hostile_files_are_shown_harmlessly(run, tmp_path, name, seen):
    """Names of shards, dtypes and keys come from files as well."""
    folder = tmp_path / "in"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": f"{name}/x"}}))
    assert f"{index}: tensor 'w'" in printed(run("edit", folder, folder, "-o", tmp_path / "out"))
    index.write_text(json.dumps({"weight_map": {name: "absent.safetensors"}}))
    assert "absent.safetensors" in printed(run("edit", folder, folder, "-o", tmp_path / "out"))
    text = json.dumps({"w": {"dtype": name, "shape": [], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    line = printed(run("edit", path, path, "-o", tmp_path / "out"))
    assert f"{path}: tensor 'w': unknown dtype" in line


FILES = {
    "escape": b"a\x1b[2Jb",
    "newline": b"a\nerror: b",
    "brackets": b"a[red]b",
    "right to left": "a\u202eb".encode(),
    "not UTF-8": b"a\xff\xfe",
    "backtick": b"a`b",
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("is_folder", [False, True])
def test_names_of_files_are_shown_harmlessly(pair, run, tmp_path, kind, is_folder):
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), FILES[kind])))
    folder.mkdir()
    inputs = []
    for path in pair:
        inputs.append(folder / f"{folder.name}{path.name}")
        if is_folder:
            inputs[-1] = inputs[-1].with_suffix("")
            inputs[-1].mkdir()
            (inputs[-1] / f"{folder.name}.py").write_text("code")
        shutil.copy(path, inputs[-1] / "model.safetensors" if is_folder else inputs[-1])
    for name in (f"{folder.name}out", f"{folder.name}out.safetensors"):
        output = tmp_path / name
        result = run("edit", *inputs, "-o", output, "--dry-run")
        assert result.code == 0
        printed(result)
        result = run("edit", *inputs, "-o", output)
        assert result.code == 0
        printed(result)
        file = output if output.is_file() else output / "model.safetensors"
        assert len(file.read_bytes()) == len(pair.finetuned.read_bytes())
    if is_folder:
        assert (tmp_path / f"{folder.name}out" / f"{folder.name}.py").read_text() == "code"
    result = run("edit", *inputs, "-o", tmp_path / f"{folder.name}out")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "the output already exists" in printed(result)


@pytest.mark.parametrize("kind", FILES)
def test_the_model_card_has_no_lines_of_a_file_name(pair, run, tmp_path, kind):
    inputs = [path.rename(path.with_name(f"{os.fsdecode(FILES[kind])}{path.name}")) for path in pair]
    outputs = tmp_path / f"{os.fsdecode(FILES[kind])}out", tmp_path / "plain"
    assert run("edit", *inputs, "-o", outputs[0]).code == 0
    for number, path in enumerate(inputs):
        path.rename(pair[number])
    assert run("edit", *pair, "-o", outputs[1]).code == 0
    hostile, plain = ((output / "README.md").read_text() for output in outputs)
    assert hostile.count("\n") == plain.count("\n")
    assert not any(unicodedata.category(char) in {"Cc", "Cf"} for char in hostile.replace("\n", ""))
