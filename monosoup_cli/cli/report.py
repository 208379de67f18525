"""`monosoup report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monosoup_cli.cli.display import Display, show, with_display


@with_display
def report(
    display: Display,
    path: Annotated[
        Path, typer.Argument(metavar="REPORT", readable=False, help="A report, or the output that has one.")
    ],
) -> None:
    """Show a report that a command wrote.

    Example: monosoup report out/monosoup_report.json
    """
    from monosoup_cli.report.files import read_report

    show(lambda: read_report(path), display)
