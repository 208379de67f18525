"""The journal cannot be written any more: the run stops, and another goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Run, no_file_beyond

TENSORS = 40


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """So many small tensors that the journal is longer than the weights."""
    paths = [tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        save_file({str(n): torch.randn(4, 4, generator=generator) for n in range(TENSORS)}, path)
    return paths


@pytest.mark.parametrize("beyond", [0, 1, 4000, 12_345])
def test_a_journal_that_cannot_be_written(run: Run, pair: list[Path], tmp_path, beyond):
    words = ["edit", *pair, "--device", "cpu", "--quiet", "-o"]
    assert run(*words, tmp_path / "whole.safetensors").code == 0
    out, journal = tmp_path / "out.safetensors", tmp_path / "out.safetensors.partial" / "journal"
    size = (tmp_path / "whole.safetensors").stat().st_size + beyond
    with no_file_beyond(size):
        result = run(*words, out)
    assert result.code == 1
    assert "cannot write: File too large" in result.err
    assert not out.exists()
    assert journal.stat().st_size == size, "the last line is torn where the space ended"
    assert run(*words, out, "--resume").code == 0
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not journal.exists()


def test_a_run_that_cannot_begin_leaves_nothing(run: Run, pair: list[Path], tmp_path):
    """Not even what a kill had left before there was any work."""
    partial = tmp_path / "out.safetensors.partial"
    partial.mkdir()
    with no_file_beyond(10):
        result = run("edit", *pair, "-o", tmp_path / "out.safetensors")
    assert result.code == 1
    assert "--resume" not in result.err
    assert not partial.exists()
