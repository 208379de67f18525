"""Input files: opened safely, read at offsets into the caller's buffers, watched for changes."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Any

from monosoup_cli.checkpoints.header import MAX_HEADER_BYTES, Header, parse_header, parse_json
from monosoup_cli.errors import CheckpointError

__all__ = ["InputFile", "read_into", "read_json"]

MAX_JSON_BYTES = 100_000_000
PICKLES = (b"PK\x03\x04", b"\x80\x02")


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on; returns the bytes read, fewer only at the end of the file."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class InputFile:
    """A regular file, open for reading only. Safe to read from several threads at once.

    Links are resolved by the caller; a FIFO or a device is refused instead of waited for.
    Reading past the end, or a file that changed meanwhile, raises CheckpointError.
    """

    def __init__(self, path: Path, shown: str | None = None) -> None:
        self.path = path
        self.bytes_read = 0
        self._counting = threading.Lock()
        self.shown = shown or str(path)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.descriptor = os.open(path, flags)
        except OSError as error:
            raise CheckpointError(
                f"cannot open: {os.strerror(error.errno or errno.EIO)}", path=self.shown
            ) from None
        self.status = os.fstat(self.descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self.descriptor)
            raise CheckpointError("not a regular file", path=self.shown)

    @property
    def nbytes(self) -> int:
        return self.status.st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on."""
        try:
            count = read_into(self.descriptor, buffer, offset)
        except OSError as error:
            raise CheckpointError(f"cannot read: {error.strerror}", path=self.shown) from None
        if count != len(buffer):
            raise CheckpointError("the file became shorter while it was read", path=self.shown)
        with self._counting:
            self.bytes_read += count

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Ask the system to have these bytes at hand soon; does not wait."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def header(self) -> Header:
        """The safetensors header, validated against the size of the file."""
        start = self.read(min(self.nbytes, 64))
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                "a git-lfs pointer, not the file itself", path=self.shown, hint="run `git lfs pull`"
            )
        if len(start) < 8:
            raise CheckpointError(
                "not a safetensors file: too short", path=self.shown, found=f"{self.nbytes} bytes"
            )
        (header_bytes,) = struct.unpack("<Q", start[:8])
        if header_bytes > min(MAX_HEADER_BYTES, self.nbytes - 8):
            if start.startswith(PICKLES):
                raise CheckpointError(
                    "a PyTorch pickle, not a safetensors file", path=self.shown,
                    hint="convert it to safetensors",
                )  # fmt: skip
            raise CheckpointError(
                "not a safetensors file, or truncated: its header length is impossible",
                path=self.shown, expected=f"at most {min(MAX_HEADER_BYTES, self.nbytes - 8):,}",
                found=f"{header_bytes:,}",
            )  # fmt: skip
        return parse_header(self.read(8 + header_bytes), self.nbytes, self.shown)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file was written to since it was opened."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise CheckpointError("the file changed while it was read", path=self.shown)

    def close(self) -> None:
        os.close(self.descriptor)


def read_json(path: Path, what: str) -> Any:
    """The content of a small JSON file, parsed strictly."""
    file = InputFile(path)
    try:
        if file.nbytes > MAX_JSON_BYTES:
            raise CheckpointError(f"the {what} is too large", path=path, found=f"{file.nbytes:,} bytes")
        return parse_json(file.read(file.nbytes), str(path), what)
    finally:
        file.close()
