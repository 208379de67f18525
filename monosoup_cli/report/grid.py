"""Tables without lines, for terminals and pipes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table

__all__ = ["aligned", "grid"]


def grid(first: str, *others: str, show_header: bool = False) -> Table:
    """Return a table without lines, with these headings."""
    table = Table(box=None, show_header=show_header, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right" if show_header else "left", overflow="fold")
    return table


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, as `grid` has them, a line each."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
