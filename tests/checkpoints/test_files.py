"""Input files, as far as the tests of checkpoints do not show: what is requested ahead."""

import os

import pytest

from monosoup_cli.checkpoints.files import MAX_PREFETCHED, READ_AHEAD, InputFile

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
        sparse.truncate(3 * MAX_PREFETCHED)
    opened = InputFile(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("step", [READ_AHEAD // 8, READ_AHEAD // 8 + 1, 2 * READ_AHEAD])
def test_whoever_reads_on_finds_the_next_window_requested(file, requested, step):
    buffer = memoryview(bytearray(step))
    for offset in range(0, file.nbytes - step + 1, step):
        file.read_into(buffer, offset)
        window = (offset + step) // READ_AHEAD
        assert window == 0 or requested[-1] == ((window + 1) * READ_AHEAD, READ_AHEAD)
    assert len(requested) == len(set(requested))


def test_a_prefetch_is_requested_in_pieces_that_systems_heed(file, requested):
    file.prefetch(10, READ_AHEAD + 1)
    assert requested == [(10, READ_AHEAD), (10 + READ_AHEAD, READ_AHEAD)]


def test_a_prefetch_is_bounded(file, requested):
    file.prefetch(0, file.nbytes)
    assert sum(length for _, length in requested) == MAX_PREFETCHED
