"""The worked examples of docs/contributing.md: each is one file and one line, and they run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli

PACKAGE = Path(monosoup_cli.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "contributing.md").read_text()
FILES = dict(re.findall(r"^```python\n# (monosoup_cli/\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
LINES = re.findall(r"^```diff\n# (\S+)\n-(.*)\n\+(.*)\n```$", PAGE, re.MULTILINE)
COMMAND_FOR_THE_PATCH = '''
import sys
from monosoup_cli.api.command import Request, command
from monosoup_cli.methods.monosoup import MonoSoup
from monosoup_cli.methods.spectral_edit import SpectralEdit
from monosoup_cli.options import Base, Finetuned, Output
from monosoup_cli.outputs.patch import PatchKind
from monosoup_cli.tensors.method import Order

@command("Edit")
def patch(base: Base, finetuned: Finetuned, output: Output, **options) -> Request:
    """Write a patch."""
    return Request(Order(SpectralEdit([MonoSoup()]), [finetuned], output, base), PatchKind())

patch(*sys.argv[1:])
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with what the page adds."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, folder / "monosoup_cli", ignore=shutil.ignore_patterns("__pycache__"))
    assert len(FILES) == 4
    assert len(LINES) == 3
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    for name, old, new in LINES:
        text = (folder / name).read_text()
        assert text.count(f"{old}\n") == 1, name
        (folder / name).write_text(text.replace(f"{old}\n", f"{new}\n"))
    for place, name, what in (("formats/table.py", "npz", "Npz"), ("api/commands.py", "norms", "norms")):
        table, room = folder / "monosoup_cli" / place, place.partition("/")[0]
        first = "from monosoup_cli."
        imported = f"{first}{room}.{name} import {what}\n{first}"
        table.write_text(table.read_text().replace(first, imported, 1))
    return folder


@pytest.fixture
def python(house, tmp_path):
    """Run Python with that package, in a folder with a base and three fine-tunes."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "a.weight": torch.randn(12, 8, generator=generator),
        "a.bias": torch.randn(12, generator=generator),
    }
    save_file(base, tmp_path / "base.safetensors")
    for number in (1, 2, 3):
        tuned = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        save_file(tuned, tmp_path / f"ft{number}.safetensors")

    def python(*words):
        environment = {**os.environ, "PYTHONPATH": str(house)}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    return python


def test_the_method(python, tmp_path):
    sources = [f"ft{number}.safetensors" for number in (1, 2, 3)]
    words = ["-m", "monosoup_cli", "consensus", "base.safetensors", *sources]
    python(*words, "--scale", "0.5", "-o", "out")
    base = load_file(tmp_path / "base.safetensors")
    tuned = [load_file(tmp_path / source) for source in sources]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    layers = {
        layer["name"]: layer
        for layer in json.loads((tmp_path / "out" / "monosoup_report.json").read_text())["layers"]
    }
    for name, before in base.items():
        updates = np.stack([one[name].double().numpy() - before.double().numpy() for one in tuned])
        agrees = np.sign(updates) == np.sign(updates.sum(0))
        expected = before.double().numpy() + 0.5 * np.ma.masked_array(updates, ~agrees).mean(0).filled(0)
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-6, atol=1e-7)
        assert layers[name]["agreement"] == pytest.approx(agrees.mean())
    assert "--scale 0.5" in (tmp_path / "out" / "README.md").read_text()
    listed = python("-m", "monosoup_cli", "--help").stdout
    assert "consensus" in listed
    assert python("-c", "import monosoup_cli; print(monosoup_cli.consensus.__name__)").stdout == "consensus\n"
    assert "Multiply the mean" in python("-m", "monosoup_cli", "consensus", "--help").stdout
    made = "from monosoup_cli.api.commands import COMMANDS; print(COMMANDS['consensus'].__doc__)"
    assert "scale: Multiply the mean" in python("-c", made).stdout


def test_the_command_that_only_looks(python, tmp_path):
    tensors = load_file(tmp_path / "base.safetensors")
    expected = {name: float(np.linalg.norm(t.double().numpy())) for name, t in tensors.items()}
    words = ["-m", "monosoup_cli", "norms", "base.safetensors"]
    found = json.loads(python(*words, "--format", "json").stdout)
    assert {one["name"]: one["norm"] for one in found["tensors"]} == pytest.approx(expected, rel=1e-12)
    assert python(*words, "--format", "csv").stdout.splitlines()[0] == "name,norm"
    assert f"{expected['a.weight']:.4g}" in python(*words).stdout
    made = "import monosoup_cli; print(len(monosoup_cli.norms('base.safetensors')['tensors']))"
    assert python("-c", made).stdout == f"{len(expected)}\n"
    assert "norms" in python("-m", "monosoup_cli", "--help").stdout


def test_the_input_format(python, tmp_path):
    for name in ("base", "ft1"):
        tensors = load_file(tmp_path / f"{name}.safetensors")
        np.savez(tmp_path / f"{name}.npz", **{key: tensor.numpy() for key, tensor in tensors.items()})
    python("-m", "monosoup_cli", "edit", "base.safetensors", "ft1.safetensors", "-o", "one")
    python("-m", "monosoup_cli", "edit", "base.npz", "ft1.npz", "-o", "two")
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_kind_of_output(python, tmp_path):
    python("-m", "monosoup_cli", "edit", "base.safetensors", "ft1.safetensors", "-o", "whole")
    python("-c", COMMAND_FOR_THE_PATCH, "base.safetensors", "ft1.safetensors", "patch")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    patch = load_file(tmp_path / "patch" / "patch.safetensors")
    assert patch.keys() == {"a.weight"}
    assert torch.equal(patch["a.weight"], whole["a.weight"])
    report = json.loads((tmp_path / "patch" / "monosoup_report.json").read_text())
    assert [layer["action"] for layer in report["layers"]].count("edited") == 1
