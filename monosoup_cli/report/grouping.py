"""Group the layers of a report by kind or by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from monosoup_cli.names import KINDS
from monosoup_cli.report.measures import COMPARABLE, LABELS, measures_in
from monosoup_cli.report.records import spread
from monosoup_cli.report.rows import Row

__all__ = ["MAX_SPARKLINE", "Grouping", "group_rows", "sample"]

Grouping = Literal["kind", "depth"]

MAX_SPARKLINE = 24
"""How many values of a spectrum are shown at most."""


def group_rows(rows: Sequence[Row], group: Grouping) -> list[Row]:
    """Return one row per kind of layer or per block, with the mean of each measure."""
    groups: dict[str, list[Row]] = {}
    order = {kind: number for number, kind in enumerate(KINDS)}
    rows = sorted(rows, key=_by_depth if group == "depth" else lambda row: order[row["kind"]])
    for row in rows:
        groups.setdefault(row["kind"] if group == "kind" else _depth(row), []).append(row)
    unknown = [measure for measure in measures_in(rows) if measure not in LABELS]
    measures = [*(measure for measure in LABELS if measure in COMPARABLE), *unknown]
    return [
        {
            "name": name,
            "layers": len(members),
            **{measure: _mean(members, measure) for measure in measures},
            "spectrum": _mean_spectrum([row["spectrum"] for row in members if row.get("spectrum")]),
        }
        for name, members in groups.items()
    ]


def _by_depth(row: Row) -> tuple[Any, ...]:
    """Sort key of a layer: layers outside blocks come first, then each stack block by block."""
    return (0,) if row["block"] is None else (1, row["stack"], row["block"])


def _depth(row: Row) -> str:
    return "outside blocks" if row["block"] is None else f"{row['stack'] or 'block'} {row['block']}"


def _mean(rows: Sequence[Row], measure: str) -> float | None:
    values = spread(row.get(measure) for row in rows)
    return None if values is None else values["mean"]


def _mean_spectrum(spectra: Sequence[Sequence[float]]) -> list[float]:
    """Average spectra of any lengths, sampled at `MAX_SPARKLINE` evenly spaced positions."""
    samples = [list(sample(spectrum, MAX_SPARKLINE)) for spectrum in spectra]
    return [sum(values) / len(values) for values in zip(*samples, strict=True)]


def sample(values: Sequence[float], count: int) -> Iterator[float]:
    """Yield `count` of the values at evenly spaced positions; nothing where there are no values."""
    for number in range(count if values else 0):
        yield values[round(number * (len(values) - 1) / max(count - 1, 1))]
