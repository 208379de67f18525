"""Which layers of a report are shown, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from monosoup_cli.errors import UsageError
from monosoup_cli.report.rows import LABELS, Row

__all__ = ["Grouping", "View"]

Grouping = Literal["kind", "depth"]


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
        chosen = [row for row in rows if row["action"] == "edited" and self.matches(row["name"])]
        if self.layer and not chosen:
            raise UsageError(f"--layer {' '.join(self.layer)!r} matches no layer that was edited")
        if self.group is not None:
            from monosoup_cli.report.layers import grouped

            chosen = grouped(chosen, self.group)
        if self.sort is not None:
            key = self.sort.replace("-", "_")
            there = [row for row in chosen if row.get(key) is not None]
            if chosen and not there:
                rows_are = "layers" if self.group is None else f"groups by {self.group}"
                raise UsageError(f"the {rows_are} of this report have no {key}")
            is_rising = self.reverse != (key == "name")
            chosen = sorted(there, key=lambda row: row[key], reverse=not is_rising)
        elif self.reverse:
            chosen.reverse()
        return chosen[: self.top]

    def matches(self, name: str) -> bool:
        """Whether a layer, or a matrix of a stack, is among those asked for."""
        # a slice goes by its tensor's name, too; and its own, experts[3], would be a glob for experts3
        names = [name, name.rpartition("[")[0]] if name.endswith("]") else [name]
        return not self.layer or any(
            each == glob or fnmatchcase(each, glob) for each in names for glob in self.layer
        )
