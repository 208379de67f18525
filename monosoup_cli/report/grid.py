"""Tables without lines, for terminals and pipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["Name", "aligned", "first_that_fits", "grid"]

UNLIMITED = 1_000_000


def grid(first: str, *others: str, show_header: bool = False) -> Table:
    """Return a table without lines, with these headings."""
    table = Table(box=None, show_header=show_header, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right" if show_header else "left", overflow="fold")
    return table


@dataclass(frozen=True)
class Name:
    """The name of a tensor in a cell, which is folded after dots where the column is narrow."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, self._parts())), cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self._parts():
            if lines[-1] and cell_len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")

    def _parts(self) -> list[str]:
        return re.split(r"(?<=\.)", self.text)


def first_that_fits(wide: Table, narrow: RenderableType) -> RenderableType:
    """Return what shows a table if the terminal is wide enough for it, and something else otherwise."""
    return _Fitting(wide, narrow)


@dataclass(frozen=True)
class _Fitting:
    wide: Table
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wanted = console.measure(self.wide, options=options.update(max_width=UNLIMITED)).maximum
        yield self.wide if wanted <= options.max_width else self.narrow


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, as `grid` has them, a line each."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
