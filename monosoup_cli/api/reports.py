"""`read_report` and `compare`: reports that commands wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monosoup_cli.options import StrPath

__all__ = ["compare", "read_report"]


def read_report(path: StrPath) -> dict[str, Any]:
    """Read a report, and check that it is one.

    Args:
        path: A report, or the output that has one.

    Raises:
        monosoup_cli.errors.MonosoupError: It cannot be read, or is none.
    """
    from monosoup_cli.report.files import read_report

    return read_report(Path(path))


def compare(first: StrPath, second: StrPath) -> dict[str, Any]:
    """Compare two reports layer by layer.

    Args:
        first: A report, or the output that has one.
        second: Another one.

    Returns:
        What `monosoup compare --format json` prints: the settings that differ, and the layers, the most
        changed first.

    Raises:
        monosoup_cli.errors.MonosoupError: One cannot be read, or is of several checkpoints.
    """
    from monosoup_cli.report.comparison import compare_reports

    return compare_reports(read_report(first), read_report(second))
