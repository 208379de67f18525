"""Which layers of a report are shown, and in which order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from monosoup_cli.errors import UsageError
from monosoup_cli.report.grouping import Grouping, group_rows
from monosoup_cli.report.measures import ABBREVIATED, ALIASES, LABELS
from monosoup_cli.report.rows import Row

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """Which layers are shown, and in which order.

    Attributes:
        layer: Globs over names; none for all layers.
        group: One row per kind of layer, or per block.
        sort: A measure, largest first, or "name".
        reverse: Whether to reverse the order.
        top: The largest number of rows.

    Raises:
        UsageError: `sort` is not a known measure.
    """

    layer: Sequence[str] = ()
    group: Grouping | None = None
    sort: str | None = None
    reverse: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        for name, label in LABELS.items():
            if self.sort is not None and self.sort in (label, ABBREVIATED.get(name), ALIASES.get(name)):
                object.__setattr__(self, "sort", name)
        if self.sort is not None and self.key not in ("name", *LABELS):
            headings = {name: ABBREVIATED.get(name, label) for name, label in LABELS.items()}
            named = (name if name == head else f"{name} ({head})" for name, head in headings.items())
            known = ", ".join(["name", *named])
            raise UsageError("--sort names an unknown measure", expected=known, found=self.sort)

    @property
    def key(self) -> str:
        """The measure to sort by, as the report names it; "" for the order of depth."""
        return (self.sort or "").replace("-", "_")

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Select, group and sort the rows of edited layers; rows without the measure to sort by come last.

        Raises:
            UsageError: `layer` matches no row.
        """
        if self.layer and rows and not any(map(self._matches, rows)):
            raise UsageError(f"--layer {' '.join(self.layer)!r} matches no tensor of the report")
        chosen = [row for row in rows if row["action"] == "edited" and self._matches(row)]
        if self.group is not None:
            chosen = group_rows(chosen, self.group)
        if self.sort is not None:
            there = [row for row in chosen if row.get(self.key) is not None]
            is_rising = self.reverse != (self.key == "name")
            there.sort(key=self._rank, reverse=not is_rising)
            chosen = [*there, *(row for row in chosen if row.get(self.key) is None)]
        elif self.reverse:
            chosen.reverse()
        return chosen[: self.top]

    def lacks(self, chosen: Sequence[Row]) -> bool:
        """Whether none of the rows from `rows` has the measure to sort by."""
        return self.sort is not None and bool(chosen) and all(row.get(self.key) is None for row in chosen)

    def _rank(self, row: Row) -> Any:
        """Return the sort key of a row. Numbers in names count as numbers: block 2 comes before block 10."""
        if self.key != "name":
            return row[self.key]
        return [
            (len(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", row["name"])
        ]

    def _matches(self, row: Row) -> bool:
        """Whether `layer` selects a row, by its own name or that of the fused tensor that it is a part of."""
        return self.matches(row["name"]) or ("tensor" in row and self.matches(row["tensor"]))

    def matches(self, name: str) -> bool:
        """Whether `layer` selects a layer or a matrix of a stack."""
        # a slice matches by its tensor's name, too; its own name, experts[3], would be a glob for experts3
        names = [name, name.rpartition("[")[0]] if name.endswith("]") else [name]
        return not self.layer or any(
            name == glob or fnmatchcase(name, glob) for name in names for glob in self.layer
        )
