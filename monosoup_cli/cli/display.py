"""The options of the commands that show layers, and the way these commands show a report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monosoup_cli.cli.console import Console
from monosoup_cli.cli.options import LayerFormat, NoProgress, QuietTable
from monosoup_cli.errors import ReportError
from monosoup_cli.report.grouping import Grouping
from monosoup_cli.report.view import View

if TYPE_CHECKING:
    from monosoup_cli.report.rows import Row

__all__ = ["Display", "display_options", "show", "with_display"]


@dataclass(frozen=True)
class Display:
    """How a report is shown.

    Attributes:
        view: Which layers are shown, and in which order.
        format: A table, the whole report as JSON, or the rows as CSV.
        html: Where to write a page; None for no page.
        plot: Where to write pictures; None for no pictures.
        console: Where the command prints.
    """

    view: View
    format: LayerFormat
    html: Path | None
    plot: Path | None
    console: Console


def display_options(
    layer: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Show only layers whose names match. Repeatable.")
    ] = None,
    group: Annotated[
        Grouping | None,
        typer.Option(help="Show one row for each kind of layer or for each block, with means."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE", help="Sort by a measure, largest first (k_ratio, rho, …); or by name."
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Show N rows at most.")] = None,
    format: Annotated[
        LayerFormat,
        typer.Option(
            "--format", help="json prints the whole report with all layers; csv prints the rows of the table."
        ),
    ] = "table",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page that shows the report, for any browser."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write pictures, as .png, .svg or .pdf (needs matplotlib)."),
    ] = None,
    quiet: QuietTable = False,
    no_progress: NoProgress = False,
) -> Display:
    """Return how to show layers. The signature declares the options."""
    view = View(layer or (), group, sort, reverse, top)
    return Display(view, format, html, plot, Console(quiet=quiet, live=not no_progress))


def with_display(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `display_options` to a command, which gets the `Display` as its first argument."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    common = list(inspect.signature(display_options, eval_str=True).parameters.values())

    @wraps(command)
    def complete(**words: Any) -> None:
        command(display_options(**{one.name: words.pop(one.name) for one in common}), **words)

    complete.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    complete.__annotations__ = {one.name: one.annotation for one in (*own, *common)}
    return complete


def show(make: Callable[[], dict[str, Any]], display: Display) -> None:
    """Make a report and show it: as tables with the verdict, or as data; and as a page or pictures."""
    from monosoup_cli.report.files import OF_SEVERAL, as_text, check_page, write_page
    from monosoup_cli.report.layers import as_csv
    from monosoup_cli.report.rows import rows_of
    from monosoup_cli.report.searched import charts_of
    from monosoup_cli.report.verdict import sentences, told_by, verdict_of

    if display.html is not None:
        check_page(display.html)
    if display.plot is not None:
        from monosoup_cli.report.plots import check_plot

        check_plot(display.plot)
    report = make()
    has_pictures = "layers" in report or bool(charts_of(report))
    if (display.plot is not None and not has_pictures) or (
        display.format == "csv" and "layers" not in report
    ):
        raise ReportError("has no layers: it covers several checkpoints", hint=OF_SEVERAL)
    rows = rows_of(report)
    chosen = display.view.rows(rows)
    verdict = report.get("verdict") or verdict_of(report, rows)
    words = [f"In doubt: {one}." for one in report.get("doubts", ())]
    words += sentences(
        verdict if report.keys().isdisjoint(("scores", "search")) else {**verdict, "size": None}
    )
    if display.format == "json":
        display.console.data(as_text(report))
    elif display.format == "csv":
        display.console.data(as_csv(chosen))
    elif not (display.console.quiet and (display.html or display.plot)):
        _show_table(report, rows, chosen, words, [*told_by(verdict), display.view.key], display)
    if display.format != "json" and display.view.lacks(chosen):
        display.console.note(f"note: no layer here has {display.view.sort}, so the rows are not sorted")
    if display.html is not None:
        from monosoup_cli.report.page import page

        if display.view.group is not None:
            display.console.note("note: the page has a row for each layer: --group is for tables and csv")
        text = page(report, words)
        write_page(display.html, text)
        display.console.note(f"wrote {display.html}")
    if display.plot is not None:
        from monosoup_cli.report.plots import plot

        plot(report, display.plot, [row for row in rows if display.view.matches(row["name"])])
        display.console.note(f"wrote {display.plot}")


def _show_table(
    report: dict[str, Any],
    rows: Sequence[Row],
    chosen: Sequence[Row],
    words: Sequence[str],
    told: Sequence[str],
    display: Display,
) -> None:
    from monosoup_cli.report.files import OF_SEVERAL
    from monosoup_cli.report.layers import hidden_note, layers_table, notes_on_table
    from monosoup_cli.report.measures import measures_in
    from monosoup_cli.report.searched import made_by, notes_on_search, search_table
    from monosoup_cli.report.selections import selection_table, similarity_table
    from monosoup_cli.report.steps import before_step
    from monosoup_cli.report.tables import summary_table

    console = display.console
    if measures_in(chosen):
        console.data(layers_table(chosen, console.width, told))
    if measures_in(rows):
        console.text(*filter(None, [hidden_note(len(chosen), rows, display.view)]), "")
    if measures_in(chosen):
        before = before_step(report)
        console.text(*notes_on_table(chosen, console.width, told), *([before] if before else []), "")
    console.table(summary_table(report), to_stdout=True)
    if "layers" not in report:
        console.text(OF_SEVERAL)
    if "selection" in report:
        console.text("")
        console.table(selection_table(report["selection"]), to_stdout=True)
    if "search" in report:
        console.text("")
        console.table(search_table(report), to_stdout=True)
        console.data(f"{made_by(report)}\n")
        console.text("", *(f"note: {note}" for note in notes_on_search(report)))
    if "similarity" in report:
        console.text("")
        console.table(similarity_table(report["similarity"]), to_stdout=True)
    if "scores" in report:
        from monosoup_cli.report.outcome import scores_shown

        console.text("")
        console.table(scores_shown(report["scores"]), to_stdout=True)
    console.text(*(["", *words] if words else []))
