"""The layers of a report, chosen, grouped, and as a table or as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from monosoup_cli.errors import UsageError, cropped
from monosoup_cli.names import KINDS
from monosoup_cli.report.records import spread
from monosoup_cli.report.rows import LABELS, Row
from monosoup_cli.report.words import plural, shown

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Grouping", "View", "as_csv", "layers_table", "measures_in", "short", "shown_of", "sparkline"]

Grouping = Literal["kind", "depth"]

BARS = "▁▂▃▄▅▆▇█"
MIN_NAME, MIN_SPARKLINE, MAX_SPARKLINE = 32, 8, 24
GAP = 2

DISPENSABLE = (
    "sigma_max", "update_norm", "rank_above_rounding", "kind", "clamped", "shape", "energy_high", "rank",
    "anisotropy", "equivalent_alpha", "k", "effective_rank", "relative_update", "ratio", "cosine",
)  # fmt: skip
"""What a narrow table leaves out, in this order."""


OF_ONE_LAYER = {"rank", "effective_rank", "k", "sigma_max", "update_norm", "clamped", "rank_above_rounding"}
"""Measures whose mean over layers of different sizes says nothing."""


@dataclass(frozen=True)
class View:
    """Which layers are shown, and in which order.

    `layer`: globs over names. `group`: one row for each kind of layer, or for each block. `sort`: a
    measure, the largest first, or a name; `reverse`: the smallest first. `top`: no more than so many
    rows.
    """

    layer: Sequence[str] = ()
    group: Grouping | None = None
    sort: str | None = None
    reverse: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        known = ["name", *LABELS]
        if self.sort is not None and self.sort.replace("-", "_") not in known:
            raise UsageError("--sort knows no such measure", expected=", ".join(known), found=self.sort)

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of the edited layers, as asked for."""
        chosen = [row for row in rows if row["action"] == "edited" and self._matches(row["name"])]
        if self.layer and not chosen:
            raise UsageError(f"--layer {' '.join(self.layer)!r} matches no layer that was edited")
        if self.group is not None:
            chosen = grouped(chosen, self.group)
        if self.sort is not None:
            key = self.sort.replace("-", "_")
            there = [row for row in chosen if row.get(key) is not None]
            is_rising = self.reverse != (key == "name")
            chosen = sorted(there, key=lambda row: row[key], reverse=not is_rising)
        elif self.reverse:
            chosen.reverse()
        return chosen[: self.top]

    def _matches(self, name: str) -> bool:
        names = {name, name.rpartition("[")[0]}  # of a slice, and of its tensor
        return not self.layer or any(fnmatchcase(each, glob) for each in names for glob in self.layer)


def grouped(rows: Sequence[Row], group: Grouping) -> list[Row]:
    """One row for each kind of layer, or for each block, with the means of what was measured."""
    groups: dict[str, list[Row]] = {}
    order = {kind: number for number, kind in enumerate(KINDS)}
    if group == "kind":
        rows = sorted(rows, key=lambda row: order[row["kind"]])
    for row in rows:
        groups.setdefault(row["kind"] if group == "kind" else _depth(row), []).append(row)
    return [
        {
            "name": name,
            "layers": len(members),
            **{measure: _mean(members, measure) for measure in LABELS if measure not in OF_ONE_LAYER},
            "spectrum": _mean_spectrum([row["spectrum"] for row in members if row.get("spectrum")]),
        }
        for name, members in groups.items()
    ]


def _depth(row: Row) -> str:
    return "outside blocks" if row["block"] is None else f"{row['stack'] or 'block'} {row['block']}"


def _mean(rows: Sequence[Row], measure: str) -> float | None:
    found = spread(row.get(measure) for row in rows)
    return None if found is None else found["mean"]


def _mean_spectrum(spectra: Sequence[Sequence[float]]) -> list[float]:
    """The mean over spectra of any lengths, at `MAX_SPARKLINE` evenly spaced places."""
    sampled = [list(_sampled(spectrum, MAX_SPARKLINE)) for spectrum in spectra]
    return [sum(values) / len(values) for values in zip(*sampled, strict=True)]


def sparkline(spectrum: Sequence[float], width: int = MIN_SPARKLINE) -> str:
    """σ_i/σ_1 from the first to the last, a bar for each of `width` evenly spaced values."""
    return "".join(BARS[min(int(value * len(BARS)), len(BARS) - 1)] for value in _sampled(spectrum, width))


def _sampled(values: Sequence[float], count: int) -> Iterator[float]:
    for number in range(count if values else 0):
        yield values[round(number * (len(values) - 1) / max(count - 1, 1))]


def short(value: Any) -> str:
    """A measure in few characters."""
    if value is None:
        return ""
    return str(value) if isinstance(value, (int, str)) else f"{value:.3g}"


def measures_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that some row has, in the order of LABELS."""
    return [name for name in LABELS if any(row.get(name) is not None for row in rows)]


def layers_table(rows: Sequence[Row], width: int | None) -> Table:
    """A line a layer; `width` in characters, None for a pipe: all columns, and names in full."""
    from rich.table import Table
    from rich.text import Text

    names = [shown(row["name"].removesuffix(".weight") if width else row["name"]) for row in rows]
    columns: dict[str, list[str]] = {"layers": [short(row.get("layers")) for row in rows]}
    columns["kind"] = [row.get("kind", "") for row in rows]
    columns["shape"] = [" × ".join(map(str, row.get("shape", ()))) for row in rows]
    columns |= {name: [short(row.get(name)) for row in rows] for name in measures_in(rows)}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    has_spectrum = any(row.get("spectrum") for row in rows)
    wanted, bars = max(map(len, ["layer", *names])), MAX_SPARKLINE
    if width is not None:
        bars = MIN_SPARKLINE

        def room() -> int:
            """For names, beside the other columns."""
            widths = [max(map(len, [_label(name), *cells])) for name, cells in columns.items()]
            return width - sum(each + GAP for each in widths) - (bars + GAP if has_spectrum else 0)

        for name in DISPENSABLE:
            if room() < min(wanted, MIN_NAME):
                columns.pop(name, None)
        bars = min(MAX_SPARKLINE, bars + max(room() - wanted, 0))
        names = [cropped(name, max(min(wanted, room()), 1)) for name in names]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in columns:
        table.add_column(_label(name), justify="left" if name == "kind" else "right", no_wrap=True)
    if has_spectrum:
        table.add_column("spectrum", no_wrap=True)
    for number, row in enumerate(rows):
        cells = [names[number], *(column[number] for column in columns.values())]
        cells += [sparkline(row.get("spectrum") or (), bars)] if has_spectrum else []
        table.add_row(*map(Text, cells))
    return table


ABBREVIATED = {
    "effective_rank": "eff. rank",
    "energy_high": "energy",
    "equivalent_alpha": "equiv. α",
}


def _label(name: str) -> str:
    return ABBREVIATED.get(name) or LABELS.get(name, name)


def shown_of(chosen: int, rows: Sequence[Row], view: View) -> str:
    """What to say below a table that does not show every layer; else nothing."""
    edited = sum(row["action"] == "edited" for row in rows)
    if view.group is not None or chosen == edited:
        return ""
    return f"{chosen:,} of {plural(edited, 'layer')} shown"


def as_csv(rows: Iterable[Row]) -> str:
    """The rows as comma-separated values, with a line of names; all singular values in one field, if
    there are any."""
    rows = list(rows)
    facts = ["name", "layers", "kind", "stack", "block", "part", "shape", "dtype"]
    names = [name for name in facts if any(name in row for row in rows)] + measures_in(rows)
    names += [name for name in FURTHER if any(row.get(name) is not None for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_field(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


MAX_TEXT = 1 << 20
FURTHER = ("rounding_sigma", "rounding_share", "gap_above_rounding", "singular_values")


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value, MAX_TEXT)
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
