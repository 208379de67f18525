"""The measures of reports, collected from the methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from monosoup_cli.methods import MEASURES
from monosoup_cli.methods.splits import COMPARED
from monosoup_cli.report.words import printable
from monosoup_cli.tensors.method import Measure

__all__ = [
    "ABBREVIATED",
    "ABOVE_ROUNDING",
    "ALIASES",
    "COMPARABLE",
    "FACTS",
    "LABELS",
    "SPLITS",
    "WITH_UNIT",
    "derived_measures",
    "is_number",
    "label_of",
    "measures_in",
    "with_aliases",
]

ABOVE_ROUNDING = ("rounding_sigma", "rank_above_rounding", "rounding_share", "gap_above_rounding")
"""Measures that only an inspection takes (spectral/rounding.py)."""

SPLITS = tuple(COMPARED.values())
"""k by each of the rules without parameters, which only an inspection compares."""

_INSPECTED = {
    **{measure: f"k {rule}" for rule, measure in COMPARED.items()},
    "rank_above_rounding": "above rounding",
}
_ALL = (
    *MEASURES,
    *(Measure(name, label, unit="directions", is_comparable=False) for name, label in _INSPECTED.items()),
)

LABELS = {measure.name: measure.label for measure in _ALL if measure.label}
"""The labels of measures, in the order in which tables show them."""

ABBREVIATED = {"effective_rank": "eff. rank", "energy_high": "energy", "equivalent_alpha": "equiv. α"}
"""What columns of a terminal's table call them instead."""

COMPARABLE = {measure.name for measure in _ALL if measure.label and measure.is_comparable}
"""Measures whose mean over layers of different sizes is meaningful."""

WITH_UNIT = {measure.name for measure in _ALL if measure.unit is not None}
"""Measures whose differences are relative to the larger of two values."""

ALIASES = {"cos_alpha": "cos_low", "alpha": "wise_alpha"}
"""Second names in the report of measures whose names do not tell which α they are."""

FACTS = {
    *ALIASES.values(),
    *("name", "layers", "shape", "shared_rows", "dtype", "action", "reason", "index", "settings"),
    *("kind", "stack", "block", "part", "adapter_rank", "adapter_scale", "adapter_error", "computed_on"),
    *("rounding_sigma", "rounding_share", "gap_above_rounding"),
}
"""Numbers and words of a row that tables do not show as measures."""


def label_of(name: str) -> str:
    """Return the label of a measure, or its name where no method of this version declares it."""
    return LABELS.get(name) or printable(name, 60)


def measures_in(rows: Collection[Mapping[str, Any]]) -> list[str]:
    """Return the measures that some row has: first those of `LABELS`, then any that a newer version wrote."""
    known = [name for name in LABELS if any(row.get(name) is not None for row in rows)]
    others = dict.fromkeys(name for row in rows for name in row if name not in FACTS and name not in LABELS)
    return [*known, *(name for name in others if _are_numbers([row.get(name) for row in rows]))]


def with_aliases(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of a report with the aliases of its measures."""
    return {**entry, **{alias: entry[name] for name, alias in ALIASES.items() if name in entry}}


def derived_measures(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures that reports do not store, from those that they do."""
    k, rank = part.get("k"), part.get("rank")
    return {"k_ratio": k / rank if k is not None and rank else None}


def is_number(value: object) -> bool:
    """Return whether a value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(values: Collection[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(map(is_number, present))
