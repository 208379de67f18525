"""Two reports side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import ReportError
from monosoup_cli.options import RunOptions
from monosoup_cli.report.files import OF_SEVERAL
from monosoup_cli.report.grid import grid
from monosoup_cli.report.layers import short
from monosoup_cli.report.measures import WITH_UNIT, label_of, measures_in
from monosoup_cli.report.rows import Row, rows_of
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["compare_reports", "comparison_table"]

ROUNDING = 1e-6
"""Relative difference up to which measures are equal, because machines differ in the last digits."""
NOTHING = 1e-9
"""Absolute difference up to which measures without a unit are equal."""

SHOWN = (
    "k_ratio",
    "lambda_high",
    "lambda_low",
    "cosine",
    "ratio",
    "scale",
    "alpha",
    "rho",
    "cos_alpha",
    "equivalent_alpha",
    "anisotropy",
    "relative_update",
)
"""The measures that the table shows first, in this order, as far as they fit."""
NOT_SHOWN = (
    "rank",
    "effective_rank",
    "k",
    "energy_high",
    "sigma_max",
    "update_norm",
    "clamped",
    "k_entropy",
    "k_energy_entropy",
    "k_noise",
    "rank_above_rounding",
)
"""The measures that the table leaves out. It shows all others, such as those of a new method, last."""


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two reports layer by layer, by the measures that both have.

    Returns:
        The `commands`; the `arguments` that differ; the `changed` layers, most changed first; how many layers
        are the `same`; and the names `only_in_first` and `only_in_second`. A changed layer has its `measures`
        that differ, as pairs, and its `change`, the largest difference among them. Differences of measures
        with a unit are relative to the larger of the two values.

    Raises:
        ReportError: A report has no layers.
    """
    for report in (first, second):
        if "layers" not in report:
            raise ReportError("no layers to compare: the report covers several checkpoints", hint=OF_SEVERAL)
    rows, others = ({row["name"]: row for row in rows_of(report)} for report in (first, second))
    measured = [name for name in measures_in(rows.values()) if name in measures_in(others.values())]
    both = [name for name in rows if name in others]
    changes = [_change(rows[name], others[name], ["reason", *measured]) for name in both]
    changed = sorted((one for one in changes if one["measures"]), key=lambda one: -one["change"])
    of_first, of_second = first["arguments"], second["arguments"]
    return {
        "commands": [first["command"], second["command"]],
        "arguments": {
            name: [of_first[name], of_second[name]]
            for name in of_first
            if name in of_second and of_first[name] != of_second[name] and changes_layers(name)
        },
        "same": len(both) - len(changed),
        "changed": changed,
        "only_in_first": [name for name in rows if name not in others],
        "only_in_second": [name for name in others if name not in rows],
    }


def changes_layers(name: str) -> bool:
    """Whether the layers may depend on an argument. The device changes their last bits."""
    shared = RunOptions.declared()
    is_beside = name in {"output", "side_files"}
    return not is_beside and (name == "device" or name not in shared or shared[name].option.changes_bytes)


def _change(first: Row, second: Row, measures: Sequence[str]) -> dict[str, Any]:
    """Compare one layer. `reason` is among its measures if only one report kept the layer."""
    pairs = {name: [first.get(name), second.get(name)] for name in measures}
    pairs = {name: pair for name, pair in pairs.items() if not _is_same(name, *pair)}
    return {
        "name": first["name"],
        "change": max((_difference(name, *pair) for name, pair in pairs.items()), default=0.0),
        "measures": pairs,
    }


def _is_same(name: str, first: Any, second: Any) -> bool:
    numbers = [value for value in (first, second) if isinstance(value, (int, float))]
    if len(numbers) == 2 and any(isinstance(value, float) for value in numbers):
        return math.isclose(first, second, rel_tol=ROUNDING, abs_tol=0.0 if name in WITH_UNIT else NOTHING)
    return bool(first == second)


def _difference(name: str, first: Any, second: Any) -> float:
    if not (isinstance(first, (int, float)) and isinstance(second, (int, float))):
        return 1.0
    return float(abs(first - second) / (max(abs(first), abs(second)) if name in WITH_UNIT else 1.0))


def comparison_table(comparison: Mapping[str, Any], width: int | None, top: int | None) -> RenderableType:
    """Show a comparison.

    Args:
        comparison: What `compare_reports` returns.
        width: Characters in a line; None for a pipe.
        top: The largest number of layers to show.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    changed = comparison["changed"][:top]
    names = dict.fromkeys(("reason", *SHOWN, *(name for change in changed for name in change["measures"])))
    columns = {
        name: [_arrow(change["measures"].get(name)) for change in changed]
        for name in names
        if name not in NOT_SHOWN
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold", min_width=20)
    taken = 20
    kept: list[Sequence[str]] = []
    for name, cells in columns.items():
        label = label_of(name)
        needed = 2 + max(map(len, [label, *cells]))
        if any(cells) and (width is None or taken + needed <= width):
            taken += needed
            table.add_column(label, justify="right", no_wrap=True)
            kept.append(cells)
    for number, change in enumerate(changed):
        name = change["name"].removesuffix(".weight") if width else change["name"]
        table.add_row(Text(printable(name)), *(Text(cells[number]) for cells in kept))
    facts = grid("", "")
    commands = comparison["commands"]
    if commands[0] != commands[1]:
        facts.add_row("commands", f"{' → '.join(commands)}: only the measures of both are compared")
    for name, pair in comparison["arguments"].items():
        facts.add_row(name, Text(" → ".join(map(_value_text, pair)), overflow="fold"))
    some = f" ({len(changed):,} shown)" if len(changed) < len(comparison["changed"]) else ""
    facts.add_row("changed", plural(len(comparison["changed"]), "layer") + some)
    facts.add_row("no difference", plural(comparison["same"], "tensor"))
    for side in ("first", "second"):
        if names := comparison[f"only_in_{side}"]:
            first = ", ".join([*(printable(name, 60) for name in names[:3]), *(names[3:] and ["…"])])
            facts.add_row(f"only in the {side}", Text(f"{plural(len(names), 'tensor')}: {first}"))
    return Group(table, Text(""), facts) if changed else facts


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(printable(item, 60) for item in value) or "none"
    return "–" if value is None else printable(value, 60)


def _arrow(pair: Sequence[Any] | None) -> str:
    if pair is None:
        return ""
    first, second = (short(value) or "–" for value in pair)
    return f"{first} → {second}"
