"""Read the zip archives that `torch.save` writes, without inflating anything."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from monosoup_cli.errors import CheckpointError, MonosoupError, crop
from monosoup_cli.formats.strided import Bytes

__all__ = ["RESAVE", "SAVE_ALONE", "Record", "Seekable", "quote", "read_records", "start_of"]

MAX_PICKLE_BYTES = 100_000_000
MAX_DIRECTORY_BYTES = 16_000_000
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
    """An uncompressed record of an archive.

    Attributes:
        name: Its name, as stored.
        header: The offset of its header.
        nbytes: Its size.
        end: The offset at which it has to end: that of the next header, or the end of the file.
    """

    name: bytes
    header: int
    nbytes: int
    end: int


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
        raise refuse("the zip archive is damaged or truncated") from None
    records: dict[str, Record] = {}
    folders = {info.filename.partition("/")[0] for info in infos}
    if any(re.match(r"[^/]*/(code/|constants\.pkl$)", info.filename) for info in infos):
        raise refuse("a TorchScript archive, which holds code", hint=SAVE_ALONE)
    ends = [info.header_offset for info in infos[1:]] + [file.nbytes]
    for info, end in zip(infos, ends, strict=True):
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise refuse(f"the record {quote(name)} is compressed", hint=RESAVE)
        if info.flag_bits & 1:
            raise refuse(f"the record {quote(name)} is encrypted")
        if name in records:
            raise refuse(f"the zip archive has the record {quote(name)} twice")
        raw = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        records[name] = Record(raw, info.header_offset, info.file_size, end)
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
        agrees = signature == b"PK\x03\x04" and method == zipfile.ZIP_STORED
        if agrees and raw[LOCAL_HEADER.size :] == record.name and start + record.nbytes <= record.end:
            return start
    raise CheckpointError(
        f"the record {quote(record.name.decode(errors='replace'))} is not where the zip archive says",
        path=file.shown,
    )


def quote(name: object) -> str:
    """Quote and crop a name for a message. Anything but text and numbers is shown as its type."""
    return crop(repr(name) if isinstance(name, str | int | float) else type(name).__name__)
