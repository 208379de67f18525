"""The layers of a report as a table, or as comma-separated values."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monosoup_cli.report.grouping import MAX_SPARKLINE, sample
from monosoup_cli.report.measures import ABBREVIATED, LABELS, label_of, measures_in
from monosoup_cli.report.rows import Row
from monosoup_cli.report.view import View
from monosoup_cli.report.words import plural, printable, shortened

__all__ = ["as_csv", "floor_of", "hidden_note", "layers_table", "notes_on_table", "short", "sparkline"]

BARS = "▁▂▃▄▅▆▇█"
MIN_NAME, LEAST_NAME, MIN_SPARKLINE = 32, 16, 8
"""Cells for names: columns go to leave the first; those that count most, only to leave the second."""
GAP = 2
END = ".weight"
"""How most names end. They are given whole where there is room, for people copy them into globs."""

DISPENSABLE = (
    "k_entropy",
    "k_energy_entropy",
    "k_noise",
    "sigma_max",
    "update_norm",
    "rank_above_rounding",
    "kind",
    "clamped",
    "shape",
    "energy_high",
    "rank",
    "anisotropy",
    "equivalent_alpha",
    "effective_rank",
    "relative_update",
    "ratio",
    "cosine",
    "rho",
)
"""The columns that a narrow table leaves out, in this order."""
FLOORS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4)
"""Where the scale of sparklines may end."""


def floor_of(spectra: Iterable[Sequence[float]]) -> float:
    """Return where a scale for spectra σ_i/σ_1 ends: half of them fall that far in 9/10 of their length."""
    ends = sorted(spectrum[(len(spectrum) - 1) * 9 // 10] for spectrum in spectra)
    median = ends[len(ends) // 2] if ends else 0.0
    return next((floor for floor in FLOORS if floor <= median), FLOORS[-1])


def sparkline(spectrum: Sequence[float], width: int = MIN_SPARKLINE, floor: float = FLOORS[-1]) -> str:
    """Draw σ_i/σ_1 as bars for `width` evenly spaced values, on a log scale from `floor` to 1."""
    shares = (1.0 - math.log(max(value, floor)) / math.log(floor) for value in sample(spectrum, width))
    return "".join(BARS[min(round(share * (len(BARS) - 1)), len(BARS) - 1)] for share in shares)


def short(value: Any) -> str:
    """Format a measure in a few characters."""
    if value is None:
        return ""
    return str(value) if isinstance(value, (int, str)) else f"{value:.3g}"


def layers_table(rows: Sequence[Row], width: int | None, told: Sequence[str] = ()) -> str:
    """Draw a table with a line per layer.

    Args:
        rows: The layers.
        width: Cells in a line of the terminal; None for a pipe, which gets all columns and full names.
        told: The measures that sentences are about, the most important last. Their columns stay as long as
            they can.
    """
    return "".join(f"{line}\n" for line in _fitted(rows, width, told)[0])


def notes_on_table(rows: Sequence[Row], width: int | None, told: Sequence[str] = ()) -> list[str]:
    """Return what to know of the table with these rows: the scale of the spectra, and what it leaves out."""
    spectra = [row["spectrum"] for row in rows if row.get("spectrum")]
    scale = f"spectrum: σ_i/σ_1 on a log scale, from 1 (█) down to {floor_of(spectra):g} (▁)"
    _, left_out, lacks_ends = _fitted(rows, width, told)
    return [
        *([scale] if spectra else []),
        *([f"no room for: {', '.join(left_out)}; a wider terminal and csv have all"] if left_out else []),
        *([f"names are shown without {END}"] if lacks_ends else []),
    ]


def _fitted(rows: Sequence[Row], width: int | None, told: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The lines of a table, the labels of columns that it leaves out, and whether names lack their end."""
    from rich.cells import cell_len

    names = [printable(row["name"]) for row in rows]
    columns: dict[str, list[str]] = {"layers": [short(row.get("layers")) for row in rows]}
    columns["kind"] = [row.get("kind", "") for row in rows]
    columns["shape"] = [" × ".join(map(str, row.get("shape", ()))) for row in rows]
    columns |= {name: [short(row.get(name)) for row in rows] for name in measures_in(rows)}
    widths = {
        name: max(map(cell_len, [_label(name), *cells])) for name, cells in columns.items() if any(cells)
    }
    all_columns = list(widths)
    spectra = [row.get("spectrum") or () for row in rows]
    has_spectra = any(spectra)
    floor = floor_of(filter(None, spectra))
    stems = [name.removesuffix(END) for name in names]
    whole, shortest = (max(map(cell_len, ["layer", *each])) for each in (names, stems))

    def room() -> int:
        """Return the cells left for names, next to the other columns and the shortest sparkline."""
        assert width is not None
        return width - sum(size + GAP for size in widths.values()) - has_spectra * (MIN_SPARKLINE + GAP)

    widest, bars, lacks_ends = whole, MAX_SPARKLINE, False
    if width is not None:
        unknown = [name for name in measures_in(rows) if name not in LABELS]
        first = [name for name in (*unknown, *DISPENSABLE) if name not in told]
        last = [*({"cos_alpha"} - {*told}), *told, "k"]
        for name, least in [*((name, MIN_NAME) for name in first), *((name, LEAST_NAME) for name in last)]:
            if room() < min(shortest, least):
                widths.pop(name, None)
        lacks_ends = room() < whole and stems != names
        names = stems if lacks_ends else names
        widest = max(min(shortest if lacks_ends else whole, room()), len("layer"))
        bars = min(MAX_SPARKLINE, MIN_SPARKLINE + max(room() - widest, 0))
        names = [shortened(name, widest) for name in names]

    def line(name: str, cells: Mapping[str, str], spectrum: str) -> str:
        parts = [f"{name}{' ' * (widest - cell_len(name))}"]
        parts += [f"{cells[key]:{'<' if key == 'kind' else '>'}{size}}" for key, size in widths.items()]
        return (" " * GAP).join([*parts, spectrum]).rstrip()

    lines = [line("layer", {name: _label(name) for name in widths}, "spectrum" if has_spectra else "")]
    for number, name in enumerate(names):
        cells = {column: columns[column][number] for column in widths}
        lines.append(line(name, cells, sparkline(spectra[number], bars, floor)))
    return lines, [_label(name) for name in all_columns if name not in widths], lacks_ends


def _label(name: str) -> str:
    return ABBREVIATED.get(name) or label_of(name)


def hidden_note(chosen: int, rows: Sequence[Row], view: View) -> str:
    """Return the note below a table that does not show every layer; "" below others."""
    edited = sum(row["action"] == "edited" for row in rows)
    if view.group is not None or chosen == edited:
        return ""
    return f"{chosen:,} of {plural(edited, 'layer')} shown"


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a header. All singular values of a row are in one field."""
    facts = ["name", "layers", "kind", "stack", "block", "part", "shape", "dtype"]
    names = [name for name in facts if any(name in row for row in rows) or (not rows and name != "layers")]
    names += measures_in(rows) if rows else list(LABELS)
    names += [name for name in FURTHER if any(row.get(name) is not None for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([printable(name) for name in names])
    writer.writerows([_field(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


MAX_TEXT = 1 << 20
FURTHER = ("rounding_sigma", "rounding_share", "gap_above_rounding", "singular_values")


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, MAX_TEXT)
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
