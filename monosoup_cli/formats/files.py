"""Open input files safely, read them at offsets, and notice when they change."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.foreign import recognise
from monosoup_cli.formats.header import AGAIN, MAX_HEADER_BYTES, Header, parse_header, parse_json
from monosoup_cli.system import read_ahead, read_some

__all__ = [
    "Advance",
    "CheckpointFile",
    "Download",
    "InputFile",
    "blocks_of",
    "check_json_size",
    "read_header",
    "read_into",
    "read_json",
    "read_json_file",
    "sha256_of",
]

MAX_JSON_BYTES = 100_000_000
MAX_HELD_OPEN = 64
READ_AHEAD = 1 << 20
"""How many bytes to request at once. Systems ignore the rest of a longer request."""
PICKLES = (b"PK\x03\x04", b"\x80\x02")


Advance = Callable[[int], None]
"""A callback that gets the number of bytes that have arrived. Any thread may call it."""


@dataclass(frozen=True)
class Download:
    """A pending download.

    Attributes:
        nbytes: Its size.
        run: Downloads it, and reports progress to the callback.
    """

    nbytes: int
    run: Callable[[Advance], None]


class CheckpointFile(Protocol):
    """A file of a checkpoint, on the disk or on the Hub. Several threads may read it at once.

    Attributes:
        shown: The name to use in messages.
        is_remote: Whether the file is from the Hub, downloaded or not.
        bytes_read: How many bytes have been read so far.
        path: The path on this machine; None if the file is not here.
        nbytes: The size of the file.
        version: What distinguishes this content from another of the same size.
    """

    shown: str
    is_remote: bool

    @property
    def bytes_read(self) -> int: ...

    @property
    def path(self) -> Path | None: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def version(self) -> dict[str, Any]: ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on."""
        ...

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        """Read `nbytes` bytes from `offset` on."""
        ...

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Ask the system to have these bytes ready soon. Does not wait."""
        ...

    def select(self, parts: Sequence[tuple[int, int]] | None) -> list[Download]:
        """List the downloads that make some bytes available on this machine.

        Args:
            parts: The ranges of bytes as (start, stop); None for the whole file.
        """
        ...

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file has changed since it was opened."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on, and return the bytes read: fewer only at the end of the file."""
    done = read_some(descriptor, buffer, offset)
    while 0 < done < len(buffer):
        count = read_some(descriptor, buffer[done:], offset + done)
        if count == 0:
            break
        done += count
    return done


def _open_regular(path: Path, shown: str) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:  # opening a device may already have an effect
        descriptor = os.open(path, flags) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError as error:
        raise CheckpointError(f"cannot open: {os.strerror(error.errno or errno.EIO)}", path=shown) from error
    if descriptor is not None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise CheckpointError("not a regular file", path=shown)


class InputFile:
    """A regular file, open for reading; a `CheckpointFile`.

    Any number of files can be open: few descriptors are held at a time.

    Args:
        path: The path of the file; the caller has resolved links.
        shown: The name to use in messages; None for the path.
        commit: The commit of a file in the Hub's cache.

    Raises:
        CheckpointError: The path is a link, a FIFO or a device, or cannot be opened. Reading raises it past
            the end of the file, or if the file has changed.
    """

    is_remote = False

    def __init__(self, path: Path, shown: str | None = None, *, commit: str | None = None) -> None:
        self._path, self._commit = path, commit
        self.bytes_read = 0
        self._counting = threading.Lock()
        self.shown = shown or str(path)
        descriptor = _open_regular(path, self.shown)
        self._status = os.fstat(descriptor)
        _held_open.add(self, descriptor)

    @property
    def path(self) -> Path:
        return self._path

    def _reopen(self) -> int:
        """Open another descriptor. Raise CheckpointError if the path is another file by now."""
        descriptor = _open_regular(self.path, self.shown)
        try:
            self._compare(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _compare(self, now: os.stat_result) -> None:
        for fact in ("st_dev", "st_ino", "st_size", "st_mtime_ns"):
            if getattr(now, fact) != getattr(self._status, fact):
                raise CheckpointError("the file changed while it was read", path=self.shown)

    @property
    def nbytes(self) -> int:
        return self._status.st_size

    @property
    def version(self) -> dict[str, Any]:
        return {"mtime_ns": self._status.st_mtime_ns} if self._commit is None else {"commit": self._commit}

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on, and request what follows ahead of time."""
        window, end = offset // READ_AHEAD, (offset + len(buffer)) // READ_AHEAD
        held = _held_open.take(self)
        try:
            if window < end and len(buffer) <= READ_AHEAD:
                read_ahead(held.number, (end + 1) * READ_AHEAD, READ_AHEAD)
            count = read_into(held.number, buffer, offset)
        except OSError as error:
            raise CheckpointError(f"cannot read: {error.strerror}", path=self.shown) from error
        finally:
            _held_open.give_back(held)
        if count != len(buffer):
            raise CheckpointError("the file became shorter while it was read", path=self.shown)
        with self._counting:
            self.bytes_read += count

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Ask the system to have these bytes ready soon. Does not wait."""
        end = offset + nbytes
        with _held_open.descriptor(self) as descriptor:
            for start in range(offset, end, READ_AHEAD):
                read_ahead(descriptor, start, min(READ_AHEAD, end - start))

    def select(self, parts: Sequence[tuple[int, int]] | None) -> list[Download]:
        return []

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file has changed since it was opened."""
        with _held_open.descriptor(self) as descriptor:
            self._compare(os.fstat(descriptor))

    def close(self) -> None:
        _held_open.close(self)


class _Descriptor:
    def __init__(self, number: int) -> None:
        self.number, self.users = number, 0


class _HeldOpen:
    """The open descriptors of input files. Beyond `limit`, the one unused for longest is closed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[InputFile, _Descriptor] = OrderedDict()

    def add(self, file: InputFile, descriptor: int) -> None:
        with self._lock:
            self._add(file, descriptor)

    def _add(self, file: InputFile, descriptor: int) -> _Descriptor:
        if len(self._held) >= self._limit:
            idle = next((other for other, held in self._held.items() if not held.users), None)
            if idle is not None:
                os.close(self._held.pop(idle).number)
        held = self._held[file] = _Descriptor(descriptor)
        return held

    def take(self, file: InputFile) -> _Descriptor:
        """Return the file's descriptor, which stays open until `give_back`."""
        with self._lock:
            held = self._held.get(file) or self._add(file, file._reopen())
            self._held.move_to_end(file)
            held.users += 1
        return held

    def give_back(self, held: _Descriptor) -> None:
        with self._lock:
            held.users -= 1

    @contextmanager
    def descriptor(self, file: InputFile) -> Iterator[int]:
        held = self.take(file)
        try:
            yield held.number
        finally:
            self.give_back(held)

    def close(self, file: InputFile) -> None:
        with self._lock:
            held = self._held.pop(file, None)
        if held is not None:
            os.close(held.number)


_held_open = _HeldOpen(MAX_HELD_OPEN)


def read_header(file: CheckpointFile) -> Header:
    """Read the header of a safetensors file, and validate it against the size of the file."""
    start = file.read(min(file.nbytes, 64))
    if len(start) < 8:
        raise CheckpointError(
            "not a safetensors file: too short", path=file.shown, found=f"{file.nbytes} bytes"
        )
    (header_bytes,) = struct.unpack("<Q", start[:8])
    is_impossible = header_bytes > min(MAX_HEADER_BYTES, file.nbytes - 8)
    if is_impossible or start[8:9] != b"{":
        other = recognise(file, PurePosixPath(file.shown).name)
        if other is not None:
            raise other
    if is_impossible:
        if start.startswith(PICKLES):
            raise CheckpointError(
                "a PyTorch pickle, not a safetensors file",
                path=file.shown,
                hint="if it is a state dict, rename it to end in .pt",
            )
        raise CheckpointError(
            "not a safetensors file, or truncated: its header length is impossible",
            path=file.shown,
            expected=f"at most {min(MAX_HEADER_BYTES, file.nbytes - 8):,}",
            found=f"{header_bytes:,}",
            hint=AGAIN,
        )
    rest = file.read(max(8 + header_bytes - len(start), 0), len(start))
    return parse_header((start + rest)[: 8 + header_bytes], file.nbytes, file.shown)


def blocks_of(file: CheckpointFile) -> Iterator[memoryview]:
    """Read a file block by block; every block uses the same buffer."""
    buffer = memoryview(bytearray(min(file.nbytes, READ_AHEAD)))
    for start in range(0, file.nbytes, READ_AHEAD):
        block = buffer[: min(READ_AHEAD, file.nbytes - start)]
        file.read_into(block, start)
        yield block


def sha256_of(file: CheckpointFile, advance: Advance | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal, read block by block; `advance` gets the size of each."""
    found = hashlib.sha256()
    for block in blocks_of(file):
        found.update(block)
        if advance is not None:
            advance(len(block))
    return found.hexdigest()


def read_json_file(file: CheckpointFile, what: str, *, is_strict: bool = True) -> Any:
    """Parse a small JSON file, and close it."""
    try:
        check_json_size(file.nbytes, file.shown, what)
        return parse_json(file.read(file.nbytes), file.shown, what, is_strict=is_strict)
    finally:
        file.close()


def check_json_size(nbytes: int, shown: str, what: str) -> None:
    """Raise CheckpointError for a JSON file that is too large to parse."""
    if nbytes > MAX_JSON_BYTES:
        raise CheckpointError(f"the {what} is too large", path=shown, found=f"{nbytes:,} bytes")


def read_json(path: Path, what: str) -> Any:
    """Parse a small JSON file on the disk."""
    return read_json_file(InputFile(path), what)
