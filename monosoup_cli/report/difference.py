"""The differences of two checkpoints as a table and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from monosoup_cli.errors import some
from monosoup_cli.report.grid import grid
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_csv", "difference_table"]

NAMED = 4
"""How many names a line has."""
SHOWN = 40
"""How many tensors are shown where nobody says how many."""
COLUMNS = ("name", "shape", "changed", "max_abs", "relative")


def difference_table(found: Mapping[str, Any], top: int | None = None) -> RenderableType:
    """Lines on headers, then a row for every tensor whose values differ.

    Args:
        found: The differences, as JSON has them.
        top: How many tensors are shown at most.
    """
    lines = grid("what", "how")

    def line(what: str, words: str) -> None:
        lines.add_row(what, Text(words))

    line("A", printable(found["a"]))
    line("B", printable(found["b"]))
    for key in ("a", "b"):
        if names := found[f"only_in_{key}"]:
            line(f"only in {key.upper()}", f"{plural(len(names), 'tensor')}: {_some(map(printable, names))}")
    for what in ("shapes", "dtypes"):
        if rows := found[what]:
            words = [f"{printable(one['name'])} {_shown(one['a'])} → {_shown(one['b'])}" for one in rows]
            line(what, f"{plural(len(rows), 'tensor')}: {_some(words)}")
    if rows := found["config"]:
        words = [f"{printable(one['key'])} {_value(one['a'])} → {_value(one['b'])}" for one in rows]
        line("config", _some(words))
    values, compared = found["values"], found["compared"]
    if compared is None:
        line("values", "not compared")
    elif not compared:
        line("values", "none to compare")
    elif not values:
        line("values", f"equal in {plural(compared, 'tensor')}")
    else:
        line("values", f"differ in {len(values):,} of {plural(compared, 'tensor')}")
    if found["same"]:
        line("", "nothing differs")
    if not values:
        return lines
    table = grid("tensor", "shape", "changed", "max |Δ|", "‖Δ‖/‖A‖", show_header=True)
    limit = SHOWN if top is None else top
    for one in values[:limit]:
        table.add_row(
            Text(printable(one["name"])),
            _shown(one["shape"]),
            f"{one['changed'] / max(math.prod(one['shape']), 1):.1%}",
            _number(one["max_abs"]),
            _number(one["relative"]),
        )
    hidden = len(values) - limit
    more = [Text(f"{hidden:,} more: --format csv has all of them")] if hidden > 0 else []
    return Group(lines, Text(""), table, *more)


def as_csv(found: Mapping[str, Any]) -> str:
    """A row for every tensor whose values differ."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in found["values"]:
        rows.writerow(["x".join(map(str, one[key])) if key == "shape" else one[key] for key in COLUMNS])
    return text.getvalue()


def _some(words: Iterable[str]) -> str:
    return some(list(words), NAMED)


def _shown(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value), 60)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
