"""Reads, reserved space and syncs, with the calls of Linux and with those of macOS."""

import errno
import fcntl
import os

import pytest

from monosoup_cli import system

MACOS = {"F_FULLFSYNC": 51, "F_PREALLOCATE": 42}


@pytest.fixture
def descriptor(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    found = os.open(tmp_path / "x", os.O_RDWR)
    yield found
    os.close(found)


@pytest.fixture
def commands(monkeypatch):
    """What `fcntl` is told, on a system whose file systems have its commands, or answer with an error."""
    told, errors = [], {}

    def fcntl_of_macos(descriptor, command, argument=0):
        told.append((command, argument))
        if command in errors:
            raise OSError(errors[command], os.strerror(errors[command]))
        return argument

    for name in ("preadv", "posix_fadvise", "posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(system, "FULL_SYNC", MACOS["F_FULLFSYNC"])
    monkeypatch.setattr(fcntl, "fcntl", fcntl_of_macos)
    return told, errors


@pytest.mark.parametrize("offset", [0, 40, 95, 100, 200])
@pytest.mark.parametrize("has_preadv", [True, False])
def test_reads_at_offsets(descriptor, monkeypatch, has_preadv, offset):
    if not has_preadv:
        monkeypatch.delattr(os, "preadv", raising=False)
    buffer = bytearray(b"-" * 10)
    count = system.read_some(descriptor, memoryview(buffer), offset)
    expected = bytes(range(100))[offset : offset + 10]
    assert (count, bytes(buffer)) == (len(expected), expected + b"-" * (10 - len(expected)))


def test_a_mac_is_told_to_wait_for_the_disk(descriptor, commands, monkeypatch):
    told, errors = commands
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    system.sync(descriptor)
    system.sync_data(descriptor)
    assert (told, synced) == ([(51, 0)] * 2, [])
    errors[51] = errno.ENOTSUP  # as a disk in the network says
    system.sync(descriptor)
    assert synced == [descriptor]
    errors[51] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        system.sync(descriptor)


def test_a_mac_reserves_space(descriptor, commands):
    told, errors = commands
    system.reserve(descriptor, 5000)
    ((command, argument),) = told
    assert (command, system.STORE.unpack(argument)) == (42, (4, 3, 0, 4900, 0))
    assert system.STORE.size == 32  # struct fstore of sys/fcntl.h: two of 4 bytes, three of 8
    assert os.fstat(descriptor).st_size == 5000
    errors[42] = errno.ENOTSUP
    system.reserve(descriptor, 6000)
    assert os.fstat(descriptor).st_size == 6000
    errors[42] = errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        system.reserve(descriptor, 7000)
    assert os.fstat(descriptor).st_size == 6000


@pytest.mark.parametrize("nbytes", [0, 10, 100, 70_000])
def test_this_system_reserves_space(descriptor, nbytes):
    system.reserve(descriptor, nbytes)
    assert os.fstat(descriptor).st_size == nbytes
    system.sync(descriptor)
    system.sync_data(descriptor)
