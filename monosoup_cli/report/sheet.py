"""What a command found that only looks: lines, and a table with a row for each thing of a kind."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monosoup_cli.report.words import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Column", "Sheet", "as_csv", "sheet_table"]

MAX_LINE = 10_000
"""How long a line is at most: those who make it crop the names in it."""
SHOWN = 40
"""How many rows are shown where nobody says how many."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: What a row calls its value, and CSV its column.
        heading: What a person reads.
        show: The text of the cell, from the row.
    """

    key: str
    heading: str
    show: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Sheet:
    """How people see what a command found.

    Attributes:
        lines: Pairs of a word and what it says, from what was found.
        rows: The key of a list in what was found, each of which is a row; None for no table.
        columns: The columns of the table.
        order: What rows of a table are sorted by, the largest first; None for the order that they have.
    """

    lines: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
    rows: str | None = None
    columns: Sequence[Column] = ()
    order: Callable[[Mapping[str, Any]], float] | None = None

    def chosen(self, found: Mapping[str, Any], top: int | None) -> Sequence[Mapping[str, Any]]:
        """The rows, at most `top` of them, in their order."""
        rows = found[self.rows] if self.rows else []
        if self.order is not None:
            rows = sorted(rows, key=self.order, reverse=True)
        return rows[:top]


def sheet_table(sheet: Sheet, found: Mapping[str, Any], top: int | None = None) -> RenderableType:
    """The lines, then the rows.

    Args:
        sheet: How it is shown.
        found: What was found, as JSON has it.
        top: How many rows are shown at most.
    """
    from rich.console import Group
    from rich.text import Text

    from monosoup_cli.report.grid import Name, grid

    lines = grid("what", "how")
    for what, words in sheet.lines(found):
        lines.add_row(what, Text(printable(words, MAX_LINE)))
    count = len(found[sheet.rows]) if sheet.rows else 0
    if not count:
        return lines
    first, *others = (column.heading for column in sheet.columns)
    table = grid(first, *others, show_header=True)
    rows = sheet.chosen(found, SHOWN if top is None else top)
    for row in rows:
        name, *cells = (printable(column.show(row)) for column in sheet.columns)
        table.add_row(Name(name), *map(Text, cells))
    hidden = count - len(rows)
    more = [Text(f"{hidden:,} more: --format csv has all of them")] if hidden > 0 else []
    return Group(lines, Text(""), table, *more)


def as_csv(sheet: Sheet, found: Mapping[str, Any], top: int | None = None) -> str:
    """A line for every row, with all digits."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([column.key for column in sheet.columns])
    for row in sheet.chosen(found, top):
        lines.writerow(_plain(row[column.key]) for column in sheet.columns)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A shape as 3x2."""
    return "x".join(map(str, value)) if isinstance(value, list) else value
