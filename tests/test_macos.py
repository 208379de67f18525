"""The command in processes that have no more calls than Python on macOS has (tests/macos): the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "monosoup_cli"]
LAYERS = 24


@pytest.fixture
def environment():
    paths = os.pathsep.join([str(HERE / "macos"), str(HERE.parent)])
    return {**os.environ, "MONOSOUP_SYSTEM": "macos", "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.weight": torch.randn(640, 512, generator=generator) for n in range(LAYERS)}
    tuned = {name: one + 0.1 * torch.randn(one.shape, generator=generator) for name, one in base.items()}
    files = folder / "base.safetensors", folder / "ft.safetensors"
    for path, tensors in zip(files, (base, tuned), strict=True):
        save_file(tensors, path)
    return files


def test_it_has_the_calls_of_macos_alone(environment):
    """Or the others would prove nothing."""
    code = "import os, fcntl; print(hasattr(os, 'preadv'), hasattr(os, 'fdatasync'), fcntl.F_FULLFSYNC)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False False 51\n"


def test_killed_and_resumed_there_are_the_bytes_of_here(pair, tmp_path, environment):
    out = tmp_path / "out"
    words = [*COMMAND, "edit", *map(str, pair), "-o", str(out), "--device", "cpu"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out.partial" / "journal"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    result = subprocess.run(
        [*words, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    monosoup_cli.edit(*pair, tmp_path / "here", device="cpu")
    name = "model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert monosoup_cli.verify(out)["differences"] == []
