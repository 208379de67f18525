"""The scores of a sweep's checkpoints: as a table, and as charts that pages and pictures draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from monosoup_cli.report.records import outputs_in
from monosoup_cli.report.words import in_column, printable, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Chart",
    "Curve",
    "Scored",
    "cells_of",
    "scored_in",
    "scores_table",
    "sweep_charts",
    "sweep_sentences",
]

AXES = {"alpha": "WiSE α", "energy": "R", "wise": "--wise (1 = full edit)"}
OF_LINES = {"alpha": "LiNeS α", "beta": "LiNeS β"}
"""What papers call the options that take lists."""


class Scored(NamedTuple):
    """A checkpoint, the arguments that only it has, and its scores by name."""

    label: str
    arguments: Mapping[str, float]
    scores: Mapping[str, float]


class Curve(NamedTuple):
    """Points, from left to right; whether a line joins them; the names beside them, if they have any; and on
    which sides of the points these stand, as steps to the right and up: a line leads to one of several."""

    label: str
    points: Sequence[tuple[float, float]]
    is_line: bool = True
    names: Sequence[str] = ()
    sides: Sequence[tuple[int, int]] = ()


class Chart(NamedTuple):
    """One picture: its title, the names of its axes, what is drawn, a note on it, and where its axes begin
    and end, if it says so."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    note: str = ""
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None


def scored_in(report: Mapping[str, Any]) -> list[Scored]:
    """The checkpoints of a report that were scored, in its order."""
    return [
        Scored(PurePath(one["path"]).name, one.get("arguments", {}), one["scores"])
        for one in outputs_in(report)
        if one.get("scores")
    ]


def cells_of(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[list[str]]:
    """For each of some scores, the cells of a table with these columns, whose decimal points line up."""
    columns = [in_column([one[name] for one in scores]) for name in names]
    return [[column[row] for column in columns] for row in range(len(scores))]


def scores_table(rows: Sequence[Scored]) -> RenderableType:
    """Show the scores of checkpoints; the best in each score is marked."""
    from rich.text import Text

    from monosoup_cli.report.grid import grid

    names = list(rows[0].scores)
    of_each = {name: [row.scores[name] for row in rows] for name in names}
    best = {name: max(values) for name, values in of_each.items() if max(values) > min(values)}
    table = grid("", *names, "", show_header=True)
    table.columns[-1].justify = "left"
    for row, numbers in zip(rows, cells_of([row.scores for row in rows], names), strict=True):
        of_row = [name for name in names if row.scores[name] == best.get(name)]
        words = f"best: {', '.join(of_row)}" if len(names) > 1 else "best"
        table.add_row(Text(printable(row.label)), *numbers, words if of_row else "")
    return table


def sweep_charts(report: Mapping[str, Any]) -> list[Chart]:
    """The charts of the scores in a report: every score over what was swept, and the first two scores against
    each other. Fewer than two checkpoints make none."""
    rows = scored_in(report)
    if len(rows) < 2:
        return []
    names, axes = list(rows[0].scores), OF_LINES if report["command"] == "lines" else AXES
    *others, along = rows[0].arguments
    curves: dict[str, list[Scored]] = {}
    for row in rows:
        label = ", ".join(f"{axes.get(one, one)} = {row.arguments[one]:g}" for one in others)
        curves.setdefault(label, []).append(row)
    x = axes.get(along, along)
    charts = [
        Chart(
            f"{name} over {x}",
            x,
            name,
            [
                Curve(label, sorted((row.arguments[along], row.scores[name]) for row in some))
                for label, some in curves.items()
            ],
        )
        for name in names
    ]
    if len(names) > 1:
        first, second = names[:2]
        points = [
            Curve(
                label,
                [(row.scores[first], row.scores[second]) for row in some],
                is_line=False,
                names=[_named(report, along, row.arguments[along]) for row in some],
            )
            for label, some in curves.items()
        ]
        note = f"The numbers beside the points are values of {x}. Higher scores are up and to the right."
        charts.append(Chart(f"{second} against {first}", first, second, points, note))
    return charts


ENDS = {0.0: "base", 1.0: "fine-tuned"}
"""What WiSE-FT gives at its ends."""
OF_EDITS = {0.0: "base", 1.0: "full edit"}
"""What --wise gives at its ends."""


def _named(report: Mapping[str, Any], along: str, value: float) -> str:
    ends = {("wise", "alpha"): ENDS, ("edit", "wise"): OF_EDITS}.get((report["command"], along), {})
    end = ends.get(value)
    return f"{value:g}" + (f" ({end})" if end else "")


def sweep_sentences(report: Mapping[str, Any]) -> list[str]:
    """Say which checkpoints of a sweep score best, and what choosing the best does to its score.

    They are compared with the fine-tuned checkpoint where the sweep has it. Fewer than two have no best.
    """
    rows = scored_in(report)
    if len(rows) < 2 or "search" in report:
        return []
    said = []
    ends = {ENDS.get(row.arguments.get("alpha", -1.0)): row for row in rows if report["command"] == "wise"}
    named = [f"{ends[end].label} is the {end} checkpoint" for end in ENDS.values() if end in ends]
    named += [f"{row.label} is the full edit" for row in rows if row.arguments.get("wise") == 1.0]
    if named:
        said.append(f"{' and '.join(named)}.")
    finetuned, has_best = ends.get("fine-tuned"), False
    for name in rows[0].scores:
        values = [row.scores[name] for row in rows]
        most = max(values)
        if most == min(values):
            said.append(f"All {len(rows)} have the same score {name!r}, {shown(most)}.")
            continue
        has_best = True
        best = [row for row in rows if row.scores[name] == most]
        of = [f"{row.label} (the fine-tuned checkpoint)" if row is finetuned else row.label for row in best]
        words = f"{' and '.join(of)} {'has' if len(best) == 1 else 'have'} the best {name!r}, {shown(most)}"
        if finetuned is not None and finetuned not in best:
            words += f": {most - finetuned.scores[name]:+.4g} against fine-tuned"
        said.append(f"{words}.")
    if has_best:
        said.append(
            f"A best of {len(rows)} that is picked by a score is flattered by it: before you report that"
            " score, score the checkpoint on other data."
        )
    return said
