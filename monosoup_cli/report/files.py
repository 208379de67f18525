"""Reports that are read again, and files that are made from them."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from monosoup_cli.errors import OutputError, ReportError, UsageError, cropped
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.report.shape import is_report

__all__ = ["OF_SEVERAL", "REPORT_NAME", "check_target", "read_report", "replace_file"]

REPORT_NAME = "monosoup_report.json"
OF_SEVERAL = "each checkpoint has a report of its own, in its folder"

MAX_DIGITS = 18
"""Of an integer: more than any report has, and few enough for a float."""


def read_report(path: Path) -> dict[str, Any]:
    """A report that a command has written; of a folder, the one in it. Raises ReportError."""
    try:
        if path.is_dir():
            path = path / REPORT_NAME
        if not path.is_file():
            raise ReportError("is no file" if path.exists() else "no such file", path=path)
        report = json.loads(
            path.read_bytes(), parse_constant=_refuse, parse_float=_finite, parse_int=_integer
        )
    except OSError as error:
        raise ReportError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError):
        raise ReportError("is not JSON, or has numbers that no report has", path=path) from None
    if isinstance(report, dict) and report.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ReportError(
            "a schema_version that this monosoup does not know",
            path=path,
            expected=SCHEMA_VERSION,
            found=cropped(str(report["schema_version"]), 60),
        )
    if not is_report(report):
        hint = "give a monosoup_report.json, or an X.report.json"
        raise ReportError("is no report of monosoup", path=path, hint=hint)
    return dict(report)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= MAX_DIGITS else _refuse(digits)


def check_target(path: Path, suffixes: str | Sequence[str]) -> None:
    """Raise UsageError for another suffix, OutputError for a folder that is missing or in the place of
    the file."""
    allowed = [suffixes] if isinstance(suffixes, str) else list(suffixes)
    if path.suffix.lower() not in allowed:
        raise UsageError("the suffix says no known format", path=path, expected=", ".join(allowed))
    try:
        if not path.parent.is_dir():
            raise OutputError("its folder does not exist", path=path)
        if path.is_dir():
            raise OutputError("is a folder", path=path)
        if not os.access(path.parent, os.W_OK):
            raise OutputError("its folder is not writable", path=path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file that takes the place of `path` once it is complete. Raises OutputError."""
    draft = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        write(draft)
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
