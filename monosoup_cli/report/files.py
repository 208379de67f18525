"""Read reports, and write files made from them."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from monosoup_cli.errors import OutputError, ReportError, UsageError, crop, has_marks, masked
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.report.shape import fault_of
from monosoup_cli.values import unique

__all__ = [
    "NO_REPORT",
    "OF_SEVERAL",
    "REPORT_NAME",
    "REPORT_SUFFIX",
    "as_text",
    "asset",
    "check_own",
    "check_page",
    "check_target",
    "is_report",
    "read_report",
    "replace_file",
    "report_beside",
    "write_page",
]

REPORT_NAME = "monosoup_report.json"
REPORT_SUFFIX = ".report.json"
MAX_REPORT_BYTES = 1_000_000_000
"""More than the report of a million tensors has."""
NO_REPORT = (
    "`report` and `compare` read the reports that come with what monosoup writes; `monosoup info` shows a"
    " checkpoint, and `monosoup diff` compares two"
)
OF_SEVERAL = "each checkpoint has its own report, in its folder"

PAGE = re.compile(rb"<title>[^<]* \xc2\xb7 monosoup [^<]+</title>")
"""What only monosoup's pages have."""
ENDS = 1 << 16
"""How much of a file's start and end is searched for what says that monosoup wrote it."""

MAX_DIGITS = 18
"""The most digits of an integer: more than any report has, and few enough for a float."""


def as_text(report: Mapping[str, Any]) -> str:
    """A report as the JSON that is written, without tokens of the Hub.

    Each of the layers has a line: Python's encoder is several times slower where it has to indent.
    """
    parts = [_dumped({name: value}, indent=1)[2:-2] for name, value in report.items() if name != "layers"]
    if "layers" in report:
        lines = ",\n  ".join(map(_dumped, report["layers"]))
        parts.append(f' "layers": [\n  {lines}\n ]' if lines else ' "layers": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _dumped(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, allow_nan=False)
    if not has_marks(text):
        return text
    return json.dumps(masked(value), indent=indent, allow_nan=False)


def report_beside(output: Path) -> Path:
    """Where the report of an output that is a single file goes, if nobody says otherwise."""
    return output.with_name(f"{output.name.removesuffix('.safetensors')}{REPORT_SUFFIX}")


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that a command has written.

    Args:
        path: The report; or the folder that has one, or the .safetensors file that has one beside it.

    Raises:
        ReportError: The file cannot be read, or is not a report.
    """
    given = path
    try:
        if path.is_dir():
            path = path / REPORT_NAME
        elif path.suffix == ".safetensors" and path.exists():
            path = report_beside(path)
        if path != given and not path.exists():
            raise ReportError(f"is no report, and has none ({path.name})", path=given, hint=NO_REPORT)
        if not path.is_file():
            raise ReportError("is not a file" if path.exists() else "no such file", path=path)
        if (nbytes := path.stat().st_size) > MAX_REPORT_BYTES:
            raise ReportError("is too large to be a report", path=path, found=f"{nbytes:,} bytes")
        report = json.loads(
            path.read_bytes(),
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=unique(ReportError),
        )
    except OSError as error:
        raise ReportError(f"cannot be read: {error.strerror}", path=path) from None
    except ReportError as error:
        error.path = error.path or str(path)
        raise
    except (ValueError, RecursionError):
        raise ReportError(
            "is not JSON, or has numbers out of range", path=path, hint="if it is cut short, copy it again"
        ) from None
    if isinstance(report, dict) and report.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ReportError(
            "unsupported schema_version",
            path=path,
            expected=SCHEMA_VERSION,
            found=crop(str(report["schema_version"]), 60),
        )
    fault = fault_of(report)
    if fault is not None:
        hint = "give a monosoup_report.json, or an X.report.json"
        raise ReportError(f"is not a monosoup report: {fault}", path=path, hint=hint)
    return dict(report)


def is_report(path: Path, output: Path | None = None) -> bool:
    """Whether a file is a report that a command has written, and of this output if one is given."""
    try:
        is_file = path.is_file() and path.suffix != ".safetensors"  # which may have one beside it
        written = read_report(path)["arguments"].get("output") if is_file else None
        return isinstance(written, str) and (output is None or Path(written).absolute() == output.absolute())
    except (OSError, ReportError):
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= MAX_DIGITS else _refuse(digits)


def check_target(path: Path, suffixes: str | Sequence[str]) -> None:
    """Check that a file can be written.

    Raises:
        UsageError: The file has none of these suffixes.
        OutputError: Its folder is missing or not writable, or the path is no regular file.
    """
    allowed = [suffixes] if isinstance(suffixes, str) else list(suffixes)
    if path.suffix.lower() not in allowed:
        raise UsageError("unsupported file extension", path=path, expected=", ".join(allowed))
    try:
        if not path.parent.is_dir():
            raise OutputError("its folder does not exist", path=path)
        if path.is_dir():
            raise OutputError("is a folder", path=path)
        if os.path.lexists(path) and not path.is_file():
            raise OutputError("is not a regular file", path=path)
        if not os.access(path.parent, os.W_OK):
            raise OutputError("its folder is not writable", path=path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None


def check_page(path: Path) -> None:
    """Check that a page can be written. It may replace a page of monosoup's, which can be made again.

    Raises:
        UsageError: The file has another suffix.
        OutputError: It cannot be written, or there is something else.
    """
    check_target(path, ".html")
    check_own(path, PAGE)


def check_own(path: Path, mark: re.Pattern[bytes], *, at_end: bool = False) -> None:
    """Check that a file has nothing, or is one that monosoup wrote.

    Args:
        path: The file, which need not exist.
        mark: What those have that monosoup writes, among their first bytes.
        at_end: Whether it may be among their last bytes.

    Raises:
        OutputError: It is another, or cannot be read.
    """
    try:
        nbytes = path.stat().st_size if path.exists() else 0
        starts = [0, max(nbytes - ENDS, 0)] if at_end else [0]
        is_other = nbytes > 0 and not any(mark.search(_read(path, start)) for start in starts)
    except OSError as error:
        raise OutputError(f"cannot be read: {error.strerror}", path=path) from None
    if is_other:
        names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
        free = next(name for name in names if not os.path.lexists(name))
        raise OutputError(
            "exists, and does not say that monosoup wrote it",
            path=path,
            hint=f"remove it, or give another name: {free}",
        )


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(ENDS)


def asset(name: str) -> str:
    """Return the text of a file in assets/, of which pages are made."""
    return (files("monosoup_cli.report") / "assets" / name).read_text("utf-8")


def write_page(path: Path, text: str) -> None:
    """Write a page, or replace it as `replace_file` does."""
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file next to `path`, and put it in place once it is complete.

    Raises:
        OutputError: The file cannot be written.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        write(draft)
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
