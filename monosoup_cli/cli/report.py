"""`monosoup report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monosoup_cli.cli import options as opt

ReportArg = Annotated[
    Path, typer.Argument(metavar="REPORT.json", help="A report that a command has written.")
]


@opt.looking
def report(looking: opt.Looking, path: ReportArg) -> None:
    """Show a report that was written before: its layers, its summary, and what they say in words.

    Example: monosoup report out/monosoup_report.json --html report.html
    """
    from monosoup_cli.report.files import read_report

    looking.show(lambda: read_report(path))
