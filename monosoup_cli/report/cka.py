"""The tables of `cka`: for a terminal, as CSV, as a page and as heat maps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from monosoup_cli.report.markup import frame, header, text
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["as_csv", "as_lines", "figure", "notes_on", "page", "title"]

CELL = 6
"""Characters of a column."""
MAX_NAME = 30
MAX_NOTED = 16
"""The most columns whose cells have their number in a picture."""
MAX_TICKS = 40
FIRST_TINT, LAST_TINT = (247, 251, 255), (8, 48, 107)
DARK = 0.55
"""The share above which the text of a cell is white."""

Map = Mapping[str, Any]


def title(one: Map) -> str:
    """Return what a table shows, in words."""
    if one["kind"] == "files":
        return "CKA of every file with every file"
    if one["kind"] == "matching":
        return f"CKA of each block with the same block of {printable(one['first'], MAX_NAME)}"
    first, second = (printable(one[side], MAX_NAME) for side in ("first", "second"))
    return f"CKA of the blocks of {first} (down) with those of {second} (across)"


def as_lines(one: Map, width: int | None) -> Iterator[str]:
    """Yield the lines of a table, in stretches of columns where the terminal is too narrow.

    Columns have numbers where they are also rows; the table of matching blocks has blocks down.
    """
    rows, columns, cells = one["rows"], one["columns"], one["cka"]
    if one["kind"] == "matching":
        rows, columns, cells = columns, rows, [list(column) for column in zip(*cells, strict=True)]
    yield title(one)
    heads = [str(number) for number in range(1, len(columns) + 1)]
    if columns != rows:
        yield from (
            f"{head:>4}  {printable(name, MAX_NAME)}" for head, name in zip(heads, columns, strict=True)
        )
    names = [printable(name, MAX_NAME) for name in rows]
    if columns == rows:
        names = [f"{head:>4}  {name}" for head, name in zip(heads, names, strict=True)]
    margin = max(map(len, names))
    count = len(columns) if width is None else max((width - margin) // CELL, 1)
    for start in range(0, len(columns), count):
        yield " " * margin + "".join(f"{head:>{CELL}}" for head in heads[start : start + count])
        for name, row in zip(names, cells, strict=True):
            yield f"{name:<{margin}}" + "".join(
                f"{_short(value):>{CELL}}" for value in row[start : start + count]
            )


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def notes_on(result: Mapping[str, Any], features: int) -> Iterator[str]:
    """What to keep in mind of the tables.

    Args:
        result: The tables.
        features: The largest number of features.
    """
    if result["samples"] < features:
        yield (
            f"{plural(result['samples'], 'sample')} of {features:,} features: with so few samples, unrelated"
            " features look alike, too"
        )
    if any(value is None for one in result["maps"] for row in one["cka"] for value in row):
        yield "– stands where features do not vary: they have no CKA"


def as_csv(result: Mapping[str, Any]) -> str:
    """Return a line for each number. The fields for blocks are empty where files are compared."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["kind", "first", "first_block", "second", "second_block", "cka"])
    for one in result["maps"]:
        for row, values in zip(one["rows"], one["cka"], strict=True):
            for column, value in zip(one["columns"], values, strict=True):
                names = {
                    "files": (row, "", column, ""),
                    "matching": (one.get("first"), column, row, column),
                    "blocks": (one.get("first"), row, one.get("second"), column),
                }[one["kind"]]
                writer.writerow([one["kind"], *map(printable, names), value])
    return lines.getvalue()


def page(result: Mapping[str, Any]) -> str:
    """Return a page with every table, whose cells are tinted. Names are untrusted, and shown as text."""
    what = f"Over {plural(result['samples'], 'sample')}. 1: the features are alike up to rotation and scale."
    head = header("Linear CKA of features", "cka", f'<p class="opening">{what}</p>')
    tables = "".join(map(_table, result["maps"]))
    return frame(
        title(result["maps"][0]), "cka", f"{head}<main>\n{tables}</main>", css=["page.css", "cka.css"]
    )


def _table(one: Map) -> str:
    heads = "".join(f"<th scope=col>{text(name)}</th>" for name in one["columns"])
    rows = "".join(
        f"<tr><th scope=row>{text(name)}</th>{''.join(map(_cell, values))}</tr>\n"
        for name, values in zip(one["rows"], one["cka"], strict=True)
    )
    caption = text(title(one))
    return f"<table><caption>{caption}</caption>\n<tr><td></td>{heads}</tr>\n{rows}</table>\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    tint = (round(low + (high - low) * value) for low, high in zip(FIRST_TINT, LAST_TINT, strict=True))
    style = f"background:rgb({','.join(map(str, tint))});color:{'#fff' if value > DARK else '#1b1f24'}"
    return f'<td style="{style}" title="{value}">{value:.2f}</td>'


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw every table as a heat map, one above the other; that of matching blocks as Fig. 8 of the paper."""
    from matplotlib.figure import Figure

    from monosoup_cli.report.plots import WIDTH, in_style

    heights = [
        1.2 + 0.2 * min(len(one["rows"]), MAX_TICKS) + 0.06 * min(max(map(len, one["columns"])), MAX_NAME)
        for one in result["maps"]
    ]
    with in_style():
        whole = Figure(figsize=(1.4 * WIDTH, sum(heights)), layout="constrained")
        parts = whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
        for one, part in zip(result["maps"], parts, strict=True):
            _draw(part, one)
    return whole


def _draw(panel: SubFigure, one: Map) -> None:
    import numpy as np

    from monosoup_cli.report.plots import drawable

    values = np.array(one["cka"], dtype=float)
    axes = panel.subplots()
    axes.grid(False)
    axes.patch.set(hatch="////", edgecolor="0.75")
    edges = (np.arange(size + 1) - 0.5 for size in values.shape[::-1])
    mesh = axes.pcolormesh(*edges, values, cmap="viridis", vmin=0, vmax=1, edgecolors="face", linewidth=0.1)
    axes.invert_yaxis()
    ticks = {}
    for side in ("rows", "columns"):
        shown = range(0, len(one[side]), -(-len(one[side]) // MAX_TICKS))
        ticks[side] = shown, [drawable(one[side][place], MAX_NAME) for place in shown]
    axes.set_yticks(*ticks["rows"])
    axes.set_xticks(*ticks["columns"], rotation=40, ha="right", rotation_mode="anchor")
    if len(one["columns"]) <= MAX_NOTED:
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if not value > DARK else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=6.5)
    if np.isnan(values).any():
        axes.set_xlabel("hatched: the features do not vary")
    axes.set_title(drawable(title(one), 120))
    panel.colorbar(mesh, ax=axes, label="CKA", pad=0.02)
