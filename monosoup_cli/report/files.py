"""Reports that are read again, and files that are made from them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from monosoup_cli.errors import OutputError, ReportError, UsageError
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.report.rows import LABELS

__all__ = ["check_target", "read_report", "replace_file"]


def read_report(path: Path) -> dict[str, Any]:
    """A report that a command has written. Raises ReportError for what is none."""
    if not path.is_file():
        raise ReportError("is no file" if path.exists() else "no such file", path=path)
    try:
        report = json.loads(path.read_bytes(), parse_constant=_refuse)
        _check(report)
    except OSError as error:
        raise ReportError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError):
        raise ReportError("is not JSON", path=path) from None
    except (KeyError, TypeError, AttributeError):
        hint = "give a monosoup_report.json, or an X.report.json"
        raise ReportError("is no report of monosoup", path=path, hint=hint) from None
    except ReportError as error:
        error.path = os.fspath(path)
        raise
    return dict(report)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _check(report: Mapping[str, Any]) -> None:
    """Raise one of the errors that `read_report` turns into a refusal, unless all is there that tables
    and pages take."""
    version = report["schema_version"]
    if version != SCHEMA_VERSION:
        raise ReportError(
            "a schema_version that this monosoup does not know", expected=SCHEMA_VERSION, found=version
        )
    _are(str, report["command"], report["tool"]["version"], *(each["source"] for each in report["inputs"]))
    _are(dict, report["arguments"], report["environment"], report["timing"])
    _are((int, float), *(report["timing"][name] for name in ("seconds", "bytes_read", "bytes_written")))
    if "outputs" not in report:
        _are((int, float), report["summary"]["edited"], report["summary"]["parameters_edited"])
        _are(dict, *(report["summary"][name] for name in ("kept", "means", "ranges")))
        for layer in report["layers"]:
            _are(str, layer["name"], layer["dtype"], layer["action"])
            _are(int, *layer["shape"])
            for part in layer.get("slices", [layer]):
                _are((str, type(None)), part["reason"])
                _are((int, float, type(None)), *(part.get(name) for name in LABELS))
                for name in ("spectrum", "singular_values"):
                    _are((int, float), *(part.get(name) or ()))
            _are((int, float, type(None)), *(layer.get("cosines") or ()))


def _are(types: type | tuple[type, ...], *values: object) -> None:
    if not all(isinstance(value, types) for value in values):
        raise TypeError


def check_target(path: Path, suffixes: str | Sequence[str]) -> None:
    """Raise UsageError for another suffix, OutputError for a folder that is missing or in the place of
    the file."""
    allowed = [suffixes] if isinstance(suffixes, str) else list(suffixes)
    if path.suffix.lower() not in allowed:
        raise UsageError("the suffix says no known format", path=path, expected=", ".join(allowed))
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", path=path)
    if path.is_dir():
        raise OutputError("is a folder", path=path)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file that takes the place of `path` once it is complete. Raises OutputError."""
    draft = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        write(draft)
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
