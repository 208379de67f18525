"""What the commands that show layers do with a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import ReportError
from monosoup_cli.report.files import OF_SEVERAL, check_target, replace_file
from monosoup_cli.report.layers import as_csv, layers_table, measures_in, shown_of
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.tables import selection_table, similarity_table, summary_table
from monosoup_cli.report.verdict import sentences, verdict_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monosoup_cli.cli.options import Looking
    from monosoup_cli.report.rows import Row

__all__ = ["show"]


def show(make: Callable[[], dict[str, Any]], looking: Looking) -> None:
    """Make a report and show it: the table, the summary and the verdict, or data; a page; pictures."""
    if looking.html is not None:
        check_target(looking.html, ".html")
    if looking.plot is not None:
        from monosoup_cli.report.plots import check_plot

        check_plot(looking.plot)
    report = make()
    if "layers" not in report and (looking.plot is not None or looking.format == "csv"):
        raise ReportError("has no layers: it is of several checkpoints", hint=OF_SEVERAL)
    rows = rows_of(report)
    chosen = looking.view.rows(rows)
    said = sentences(report.get("verdict") or verdict_of(report, rows))
    if looking.format == "json":
        looking.console.data(json.dumps(report, indent=1) + "\n")
    elif looking.format == "csv":
        looking.console.data(as_csv(chosen))
    else:
        _show_table(report, rows, chosen, said, looking)
    if looking.format != "json" and looking.view.lacks(chosen):
        looking.console.note(f"note: nothing here has a {looking.view.sort}, to be sorted by")
    if looking.html is not None:
        from monosoup_cli.report.page import page

        text = page(report, said)
        replace_file(looking.html, lambda path: path.write_text(text, encoding="utf-8"))
        looking.console.note(f"wrote {looking.html}")
    if looking.plot is not None:
        from monosoup_cli.report.plots import plot

        plot(report, looking.plot, [row for row in rows if looking.view.matches(row["name"])])
        looking.console.note(f"wrote {looking.plot}")


def _show_table(
    report: dict[str, Any], rows: Sequence[Row], chosen: Sequence[Row], said: Sequence[str], looking: Looking
) -> None:
    console = looking.console
    if measures_in(chosen):
        console.data(layers_table(chosen, console.width))
    if measures_in(rows):
        console.text(*filter(None, [shown_of(len(chosen), rows, looking.view)]), "")
    console.table(summary_table(report), to_stdout=True)
    if "layers" not in report:
        console.text(OF_SEVERAL)
    if "selection" in report:
        console.text("")
        console.table(selection_table(report["selection"]), to_stdout=True)
    if "similarity" in report:
        console.text("")
        console.table(similarity_table(report["similarity"]), to_stdout=True)
    console.text(*(["", *said] if said else []))
