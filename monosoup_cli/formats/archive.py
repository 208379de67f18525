"""Read the zip archives that torch writes, without inflating anything but the text of code."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from monosoup_cli.errors import CheckpointError, MonosoupError, crop
from monosoup_cli.formats.header import AGAIN
from monosoup_cli.formats.strided import Bytes

__all__ = ["RESAVE", "SAVE_ALONE", "Record", "Seekable", "inflate", "quote", "read_records", "start_of"]

MAX_PICKLE_BYTES = 100_000_000
MAX_DIRECTORY_BYTES = 16_000_000
MAX_CODE_BYTES = 16_000_000
"""How long the code of a TorchScript archive may be, a record of it and all that is read."""
CODE = ("code/", "extra/")
"""The folders of TorchScript archives whose records are compressed."""
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")

RESAVE = "save it again with a current torch: torch.save(torch.load(OLD, weights_only=True), NEW)"
SAVE_ALONE = "save the state dict alone: torch.save(model.state_dict(), PATH)"


class Seekable(io.RawIOBase):
    """A file with the interface that zipfile needs."""

    def __init__(self, file: Bytes) -> None:
        self._file, self._position = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.nbytes}[whence]
        if origin + offset < 0:
            raise OSError("before the start of the file")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._file.nbytes - self._position, 0)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                "the directory of the zip archive is too large",
                path=self._file.shown,
                expected=f"at most {MAX_DIRECTORY_BYTES:,} bytes",
                found=f"{size:,}",
            )
        found = self._file.read(size, self._position)
        self._position += size
        return found


@dataclass(frozen=True)
class Record:
    """A record of an archive.

    Attributes:
        name: Its name, as stored.
        header: The offset of its header.
        nbytes: Its size, as stored.
        end: The offset at which it has to end: that of the next header, or the end of the file.
        method: How it is compressed. Only code may be.
    """

    name: bytes
    header: int
    nbytes: int
    end: int
    method: int


def read_records(file: Bytes) -> dict[str, Record]:
    """Read the directory of an archive: its records by name, without the name of its one folder.

    Raises:
        CheckpointError: The archive is damaged, or `torch.save` did not write it.
    """

    def refuse(problem: str, **facts: Any) -> CheckpointError:
        return CheckpointError(problem, path=file.shown, **facts)

    try:
        with zipfile.ZipFile(Seekable(file)) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except MonosoupError:
        raise
    except Exception:  # zipfile raises all kinds of errors for damaged archives
        raise refuse("the zip archive is damaged or truncated", hint=AGAIN) from None
    records: dict[str, Record] = {}
    folders = {info.filename.partition("/")[0] for info in infos}
    for info, following in zip_longest(infos, infos[1:]):
        name = info.filename.partition("/")[2]
        is_code = name.startswith(CODE)
        if not is_code and (info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size):
            raise refuse(f"the record {quote(name)} is compressed", hint=RESAVE)
        if info.flag_bits & 1:
            raise refuse(f"the record {quote(name)} is encrypted")
        if name in records:
            raise refuse(f"the zip archive has the record {quote(name)} twice")
        end = file.nbytes if following is None else min(following.header_offset, file.nbytes)
        raw = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        records[name] = Record(raw, info.header_offset, info.compress_size, end, info.compress_type)
    if "data.pkl" not in records or len(folders) != 1:
        raise refuse("a zip archive that torch.save did not write")
    if records["data.pkl"].nbytes > MAX_PICKLE_BYTES:
        raise refuse(
            "the pickle is too large",
            expected=f"at most {MAX_PICKLE_BYTES:,} bytes",
            found=f"{records['data.pkl'].nbytes:,}",
        )
    order = records.get("byteorder")
    if order is not None and file.read(min(order.nbytes, 16), start_of(file, order)) != b"little":
        raise refuse("its numbers are not little-endian", hint="save it again on a little-endian machine")
    return records


def start_of(file: Bytes, record: Record) -> int:
    """Return where the bytes of a record start.

    Raises:
        CheckpointError: The header of the record disagrees with the directory of the archive.
    """
    size = LOCAL_HEADER.size + len(record.name)
    if 0 <= record.header <= record.end - size:
        raw = file.read(size, record.header)
        signature, _, _, method, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(raw)
        start = record.header + LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)
        agrees = signature == b"PK\x03\x04" and method == record.method
        if agrees and raw[LOCAL_HEADER.size :] == record.name and start + record.nbytes <= record.end:
            return start
    raise CheckpointError(
        f"the record {quote(record.name.decode(errors='replace'))} is not where the zip archive says",
        path=file.shown,
    )


def inflate(file: Bytes, record: Record) -> bytes:
    """Read the text of a record of code.

    Raises:
        CheckpointError: The record is damaged, or too large.
    """
    if record.nbytes <= MAX_CODE_BYTES:
        stored = file.read(record.nbytes, start_of(file, record))
        if record.method == zipfile.ZIP_STORED:
            return stored
        reader = zlib.decompressobj(-zlib.MAX_WBITS)
        with suppress(zlib.error):
            text = reader.decompress(stored, MAX_CODE_BYTES)
            if reader.eof and record.method == zipfile.ZIP_DEFLATED:
                return text
    raise CheckpointError(
        f"the record {quote(record.name.decode(errors='replace'))} is damaged, or too large", path=file.shown
    )


def quote(name: object) -> str:
    """Quote and crop a name for a message. Anything but text and numbers is shown as its type."""
    return crop(repr(name) if isinstance(name, str | int | float) else type(name).__name__)
