"""An input that cannot be read for a moment, or that is at fault: which work is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.formats import files
from tests.conftest import Run


@contextmanager
def midway(path: Path, then: Callable[[], object]) -> Iterator[None]:
    """Something happens as the second half of a file is read."""
    inode, plain = path.stat().st_ino, files.read_some

    def read(descriptor: int, buffer: memoryview, offset: int) -> int:
        if offset > 1_000_000 and os.fstat(descriptor).st_ino == inode:
            then()
        return plain(descriptor, buffer, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "read_some", read)
        yield


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def finished_in(partial: Path) -> int:
    return (partial / "journal").read_bytes().count(b'{"tensor"')


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """An edit of a few tensors, one after the other."""
    paths = [tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        save_file({str(n): torch.randn(300, 200, generator=generator) for n in range(8)}, path)
    return ["edit", *paths, "--device", "cpu", "--workers", "1", "--quiet", "-o"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_fails_keeps_what_is_finished(run: Run, words, tmp_path, number):
    out, tuned = tmp_path / "out.safetensors", tmp_path / "tuned.safetensors"
    with midway(tuned, lambda: fail(number)):
        result = run(*words, out)
    assert result.code == 1
    assert f"cannot read: {os.strerror(number)}" in result.err
    assert finished_in(tmp_path / "out.safetensors.partial") > 0
    assert run(*words, out, "--resume").code == 0
    assert run(*words, tmp_path / "whole.safetensors").code == 0
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_input_at_fault_costs_no_work_of_an_earlier_run(run: Run, words, tmp_path):
    out, tuned = tmp_path / "out.safetensors", tmp_path / "tuned.safetensors"
    partial, times = tmp_path / "out.safetensors.partial", tuned.stat()
    with midway(tuned, lambda: os.utime(tuned)):
        assert "changed" in run(*words, out).err
    assert not partial.exists(), "all of it was made of an input that is no more"
    os.utime(tuned, ns=(times.st_atime_ns, times.st_mtime_ns))
    with midway(tuned, lambda: fail(errno.EIO)):
        assert run(*words, out).code == 1
    finished = finished_in(partial)
    with midway(tuned, lambda: os.utime(tuned)):
        assert "changed" in run(*words, out, "--resume").err
    assert finished_in(partial) >= finished > 0
    os.utime(tuned, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(*words, out, "--resume").code == 0
