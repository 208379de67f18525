"""Two reports side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from monosoup_cli.declaration import as_word
from monosoup_cli.errors import ReportError
from monosoup_cli.options import PROGRAMS, RunOptions
from monosoup_cli.report.files import OF_SEVERAL
from monosoup_cli.report.grid import grid
from monosoup_cli.report.layers import short
from monosoup_cli.report.measures import ALIASES, WITH_UNIT, label_of, measures_in
from monosoup_cli.report.opening import reach_of, reach_of_layer
from monosoup_cli.report.rows import Row, rows_of
from monosoup_cli.report.steps import BEFORE, OF_THE_EDIT, before_step, step_of
from monosoup_cli.report.words import plural, printable, settings_words

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "CHANGE",
    "ONLY_BOTH",
    "ORDER",
    "WITHOUT_MEASURE",
    "action_words",
    "arrow",
    "before_wise",
    "change_words",
    "compare_reports",
    "compared_measures",
    "comparison_table",
    "heading_of",
    "is_same",
    "value_text",
]

CHANGE = "change"
ORDER = (
    "matrices before vectors, each by its largest difference in a measure; differences of r, k, σ and ‖·‖ are"
    " shares of the larger value"
)
"""How tables of changed layers are sorted."""
ONLY_BOTH = "only the measures of both are compared"
WITHOUT_MEASURE = "without a measure in both reports; `monosoup diff` compares the values"

REACHED = "reach"
"""The measure that all methods between base and fine-tuned weights share: how far the output goes."""
ROUNDING = 1e-6
"""Relative difference up to which measures are equal, because machines differ in the last digits."""
NOTHING = 1e-9
"""Absolute difference up to which measures without a unit are equal."""

SHOWN = (
    REACHED,
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
"""The measures that tables show first, in this order, as far as they fit."""
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
"""The measures that tables leave out where no layer is sorted by them. All others, such as those of a new
method, come last."""


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two reports layer by layer, by the measures that both have.

    Returns:
        The `commands`; the `arguments` that differ; the `changed` layers, matrices before vectors, the most
        changed of each first; how many layers are the `same`; the names that are `not_compared`, because both
        edited the tensor and share no measure of it; those of `action_alone`, by `reason`: one report edited
        the tensor and the other kept it, or both kept it for two reasons, and no measure differs; whether
        measures are from `before_wise`; the names `only_in_first` and `only_in_second`; and the `means` over
        the layers of each report, as pairs. Outputs of two methods share the `reach`, how far they are from
        the base (0) to the fine-tuned weights (1). A changed layer has its `measures` that differ, as pairs;
        its `change`, the largest difference among them; and `by`, the measure that has it. Differences of
        measures with a unit are relative to the larger of the two values.

    Raises:
        ReportError: A report has no layers.
    """
    for report in (first, second):
        if "layers" not in report:
            raise ReportError("no layers to compare: the report covers several checkpoints", hint=OF_SEVERAL)
    rows, others = ({row["name"]: row for row in rows_of(report)} for report in (first, second))
    if has_reach := _has_reach(first, second):
        for report, its in ((first, rows), (second, others)):
            for row in its.values():
                row[REACHED] = reach_of_layer(report, row)
    measured = [name for name in measures_in(rows.values()) if name in measures_in(others.values())]
    both = [name for name in rows if name in others]
    changes = [_change(rows[name], others[name], ["reason", *measured]) for name in both]
    alone = [one for one in changes if one["measures"].keys() == {"reason"}]
    changed = sorted(
        (one for one in changes if one["measures"] and one not in alone),
        key=lambda one: (len(rows[one["name"]]["shape"]) < 2, -one["change"]),
    )
    not_compared = [name for name in both if _shares_nothing(rows[name], others[name], measured)]
    of_first, of_second = first["arguments"], second["arguments"]
    return {
        "commands": [first["command"], second["command"]],
        "arguments": {
            name: [of_first[name], of_second[name]]
            for name in of_first
            if name in of_second
            and _plain_path(of_first[name]) != _plain_path(of_second[name])
            and changes_layers(name)
        },
        "same": len(both) - len(changed) - len(not_compared) - len(alone),
        "changed": changed,
        "not_compared": not_compared,
        "action_alone": _by_action(alone),
        "before_wise": any(map(before_step, (first, second))),
        "only_in_first": [name for name in rows if name not in others],
        "only_in_second": [name for name in others if name not in rows],
        "means": {
            **({REACHED: [reach_of(each, each) for each in (first, second)]} if has_reach else {}),
            **_means(first["summary"]["means"], second["summary"]["means"]),
        },
    }


def _by_action(alone: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The names of tensors, by the reasons for which each report kept them."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for one in alone:
        names.setdefault(tuple(one["measures"]["reason"]), []).append(one["name"])
    return [{"reason": list(reasons), "names": some} for reasons, some in names.items()]


def _plain_path(value: Any) -> Any:
    """The value of an option, of which `base/` and `./base` are the same as `base`."""
    if isinstance(value, list):
        return [_plain_path(one) for one in value]
    return PurePath(value) if isinstance(value, str) else value


def _has_reach(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the outputs differ in how far they are from the base by more than their own measures tell."""
    is_known = all(reach_of(report, report) is not None for report in (first, second))
    return is_known and (first["command"] != second["command"] or step_of(first) != step_of(second))


def _shares_nothing(first: Row, second: Row, measures: Sequence[str]) -> bool:
    """Whether both reports edited a layer, and have no measure of it in common."""
    is_edited = first["reason"] is None and second["reason"] is None
    return is_edited and all(None in (first.get(name), second.get(name)) for name in measures)


def _means(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[float]]:
    """The means that both reports have."""
    both = {name: [first[name], second.get(name)] for name in first if name not in ALIASES.values()}
    return {name: pair for name, pair in both.items() if None not in pair}


def changes_layers(name: str) -> bool:
    """Whether the layers may depend on an argument. The device changes their last bits."""
    shared = RunOptions.declared()
    is_beside = name in {"output", "side_files", *PROGRAMS}
    return not is_beside and (name == "device" or name not in shared or shared[name].option.changes_bytes)


def _change(first: Row, second: Row, measures: Sequence[str]) -> dict[str, Any]:
    """Compare one layer. `reason` is among its measures if only one report kept the layer."""
    pairs = {name: [first.get(name), second.get(name)] for name in measures}
    pairs = {name: pair for name, pair in pairs.items() if not is_same(name, *pair)}
    # where both are known to lie between base and fine-tuned, that says more than that one was kept
    is_placed = None not in (first.get(REACHED), second.get(REACHED))
    told = [name for name in pairs if name != "reason" or not is_placed]
    by = max(told, key=lambda name: _difference(name, *pairs[name]), default=None)
    return {
        "name": first["name"],
        "change": 0.0 if by is None else _difference(by, *pairs[by]),
        "by": by,
        "measures": pairs,
    }


def is_same(name: str, first: Any, second: Any) -> bool:
    """Whether two values of a measure are equal, up to rounding."""
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
    names = compared_measures(changed)
    columns = {
        heading_of(name): [arrow(change["measures"].get(name), name) for change in changed] for name in names
    }
    columns = {CHANGE: [change_words(change) for change in changed], **columns}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold", min_width=20)
    taken = 20
    kept: list[Sequence[str]] = []
    left_out = []
    for label, cells in columns.items():
        needed = 2 + max(map(len, [label, *cells]))
        if width is None or taken + needed <= width:
            taken += needed
            table.add_column(label, justify="right", no_wrap=True)
            kept.append(cells)
        else:
            left_out.append(label)
    for number, change in enumerate(changed):
        table.add_row(Text(printable(change["name"])), *(Text(cells[number]) for cells in kept))
    facts = grid("", "")
    if changed:
        facts.add_row("order", ORDER)
    if left_out:
        facts.add_row("no room for", f"{', '.join(left_out)}; a wider terminal and json have all")
    commands = comparison["commands"]
    if commands[0] != commands[1]:
        facts.add_row("commands", f"{' → '.join(commands)}: {ONLY_BOTH}")
    for name, pair in comparison["arguments"].items():
        facts.add_row(name, Text(" → ".join(map(value_text, pair)), overflow="fold"))
    some = f" ({len(changed):,} shown)" if len(changed) < len(comparison["changed"]) else ""
    facts.add_row("changed", plural(len(comparison["changed"]), "tensor") + some)
    facts.add_row("no difference", plural(comparison["same"], "tensor"))
    if apart := comparison["not_compared"]:
        facts.add_row("not compared", f"{plural(len(apart), 'tensor')} {WITHOUT_MEASURE}")
    for words in action_words(comparison):
        facts.add_row("action alone", Text(words))
    if before := before_wise(comparison, names):
        facts.add_row("note", before)
    for side in ("first", "second"):
        if only := comparison[f"only_in_{side}"]:
            first = ", ".join([*(printable(name, 60) for name in only[:3]), *(only[3:] and ["…"])])
            facts.add_row(f"only in the {side}", Text(f"{plural(len(only), 'tensor')}: {first}"))
    return Group(table, Text(""), facts) if changed else facts


def compared_measures(changed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the measures that tables of changed layers show: those by which they are sorted come first."""
    differing = {name for change in changed for name in change["measures"]}
    sorted_by = dict.fromkeys(change["by"] for change in changed)
    others = sorted(differing - {*NOT_SHOWN, *SHOWN, "reason"})
    return [name for name in dict.fromkeys((*sorted_by, "reason", *SHOWN, *others)) if name in differing]


def action_words(comparison: Mapping[str, Any]) -> list[str]:
    """Say of how many tensors the action alone differs, and how."""
    return [
        f"{plural(len(one['names']), 'tensor')}, {arrow(one['reason'], 'reason')}: no measure differs, and"
        " `monosoup diff` compares the values"
        for one in comparison["action_alone"]
    ]


def before_wise(comparison: Mapping[str, Any], measures: Collection[str]) -> str:
    """Say which measures are from before the step of --wise; "" where none of these is."""
    if not comparison["before_wise"] or not {*OF_THE_EDIT} & {*measures}:
        return ""
    return f"{BEFORE}; the reach includes it" if REACHED in comparison["means"] else BEFORE


def change_words(change: Mapping[str, Any]) -> str:
    """Say how much a layer changed, and in what."""
    if change["by"] == "reason":
        return heading_of("reason")
    return f"{short(change['change'])} in {heading_of(change['by'])}"


def heading_of(measure: str) -> str:
    """Return what tables call a measure, or what became of a tensor."""
    return "kept or edited" if measure == "reason" else label_of(measure)


def value_text(value: Any) -> str:
    """Format the value of an option."""
    if isinstance(value, list):
        return ", ".join(printable(item, 60) for item in value) or "none"
    if isinstance(value, dict):
        words = "; ".join(f"{name}: {settings_words(inner)}" for name, inner in value.items())
        return printable(words, 1000)
    return "not set" if value is None else printable(as_word(value), 60)


def arrow(pair: Sequence[Any] | None, measure: str) -> str:
    """Format the values of a measure in both reports; "" where they do not differ."""
    if pair is None:
        return ""
    if measure == "reason":
        first, second = (f"kept ({printable(value, 60)})" if value else "edited" for value in pair)
    else:
        first, second = (short(value) or "–" for value in pair)
    return f"{first} → {second}"
