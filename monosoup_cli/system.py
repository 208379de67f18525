"""What systems do differently with files: reads at offsets, reserved space, and waiting for the disk.

Linux has a call for each. macOS has `fcntl` commands in their place, and its `fsync` does not wait for the
disk (`man 2 fsync`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["read_ahead", "read_some", "reserve", "sync", "sync_data"]

FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS has it, and nothing else does."""
F_PREALLOCATE = 42
"""The command's number in macOS's sys/fcntl.h, and its argument: struct fstore."""
STORE = struct.Struct("Iiqqq")
ALL_OF_IT, FROM_THE_END = 4, 3
PIECE = 1 << 20
"""How many bytes are read at once where they are read into memory of their own."""
NOT_HERE = {errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP}
"""How a file system says that it does not have a command, as those of networks and of memory cards say."""


@contextmanager
def _unless_not_here() -> Iterator[None]:
    """Go on after a command that the file system does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise


def read_some(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer, or a part of it, with the bytes of a file from `offset` on; returns how many it read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    found = os.pread(descriptor, min(len(buffer), PIECE), offset)  # which takes as much memory once more
    buffer[: len(found)] = found
    return len(found)


def read_ahead(descriptor: int, offset: int, nbytes: int) -> None:
    """Ask the system to have some bytes ready soon. Does not wait; other systems read ahead by themselves."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def reserve(descriptor: int, nbytes: int) -> None:
    """Give a file its size, and its space on the disk, so that a lack of it shows now and not midway.

    Raises:
        OSError: There is no space.
    """
    more = nbytes - os.fstat(descriptor).st_size
    if FULL_SYNC is not None and more > 0:
        with _unless_not_here():
            fcntl.fcntl(descriptor, F_PREALLOCATE, STORE.pack(ALL_OF_IT, FROM_THE_END, 0, more, 0))
    os.ftruncate(descriptor, nbytes)
    if hasattr(os, "posix_fallocate") and nbytes:
        os.posix_fallocate(descriptor, 0, nbytes)


def sync(descriptor: int) -> None:
    """Wait until a file or a folder is on the disk."""
    if FULL_SYNC is not None:
        with _unless_not_here():
            fcntl.fcntl(descriptor, FULL_SYNC)
            return
    os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Wait until a file's data are on the disk; its time stamps may follow later."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        sync(descriptor)
