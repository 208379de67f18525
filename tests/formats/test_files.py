"""Input files, as far as the tests of checkpoints do not show: what is requested ahead."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.formats.files import READ_AHEAD, InputFile
from monosoup_cli.sources.locate import open_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")


@pytest.fixture
def requested(monkeypatch):
    """The bytes asked for ahead, [(offset, length)]; they are really asked for."""
    found, advise = [], os.posix_fadvise

    def record(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        found.append((offset, length))
        advise(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", record)
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as sparse:
        sparse.truncate(5 * READ_AHEAD)
    opened = InputFile(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("step", [READ_AHEAD // 8, READ_AHEAD // 8 + 1, READ_AHEAD])
def test_whoever_reads_on_finds_the_next_window_requested(file, requested, step):
    buffer = memoryview(bytearray(step))
    for offset in range(0, file.nbytes - step + 1, step):
        file.read_into(buffer, offset)
        window = (offset + step) // READ_AHEAD
        assert window == 0 or requested[-1] == ((window + 1) * READ_AHEAD, READ_AHEAD)
    assert len(requested) == len(set(requested))


def test_a_prefetch_is_requested_in_pieces_that_systems_heed(file, requested):
    file.prefetch(10, READ_AHEAD + 1)
    assert requested == [(10, READ_AHEAD), (10 + READ_AHEAD, 1)]


def test_a_system_that_refuses_advice_is_read_all_the_same(file, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    file.prefetch(0, file.nbytes)
    file.read_into(memoryview(bytearray(READ_AHEAD)), 0)


def test_a_tensor_is_prefetched_up_to_a_limit(tmp_path, requested):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"first": torch.zeros(5), "w": torch.zeros(3, READ_AHEAD)}, path)
    with open_checkpoint(path) as checkpoint:
        requested.clear()
        checkpoint.prefetch("w", 2 * READ_AHEAD + 3)
        checkpoint.prefetch("first", READ_AHEAD)
    assert [length for _, length in requested] == [READ_AHEAD, READ_AHEAD, 3, 20]
    assert all(path.stat().st_size >= offset + length for offset, length in requested)
