"""`monosoup compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", readable=False, help="A report, or the output that has one.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", readable=False, help="Another one.")],
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Show N layers at most.")] = None,
    format: Annotated[
        Literal["table", "json"], typer.Option("--format", help="json prints all differences on stdout.")
    ] = "table",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page that shows both, for any browser.")
    ] = None,
) -> None:
    """Show two reports side by side.

    The table shows which layers changed, and by how much: matrices before vectors, those with the largest
    difference in a measure first. `monosoup diff` compares checkpoints.

    Example: monosoup compare out-a/monosoup_report.json out-b/monosoup_report.json
    """
    from monosoup_cli.cli.console import Console
    from monosoup_cli.report.comparison import compare_reports, comparison_table
    from monosoup_cli.report.comparison_page import comparison_page
    from monosoup_cli.report.files import check_page, read_report, write_page

    console = Console()
    if html is not None:
        check_page(html)
    reports = read_report(first), read_report(second)
    comparison = compare_reports(*reports)
    if format == "json":
        console.data(json.dumps(comparison, indent=1) + "\n")
    else:
        console.table(comparison_table(comparison, console.width, top), to_stdout=True)
    if html is not None:
        write_page(html, comparison_page(comparison, reports, (str(first), str(second))))
        console.note(f"wrote {html}")
