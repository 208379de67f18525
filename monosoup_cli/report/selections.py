"""How checkpoints were chosen, as tables: trials of a greedy soup, similarities of updates, and members."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from monosoup_cli.report.grid import grid
from monosoup_cli.report.verdict import AS_LARGE
from monosoup_cli.report.words import joined_label, plural, printable, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["selection_table", "similarity_table", "trials_table"]

SHADES = " ░▒▓█"
BAR_WIDTH = 40
MAX_NUMBERED = 10
"""How many checkpoints' similarities fit into a terminal as numbers."""


def trials_table(
    trials: Sequence[tuple[str, float, bool]], now: str = "", alone: Mapping[str, float] | None = None
) -> RenderableType:
    """Show the trials of a greedy soup.

    Args:
        trials: Candidate, score, and whether it joined the soup.
        now: What is being scored now.
        alone: The score of every candidate by itself, once all are known.
    """
    headings = ["score"] if alone is None else ["alone", "with members"]
    table = grid("", "candidate", *headings, "", show_header=True)
    table.columns[1].justify = table.columns[-1].justify = "left"
    for number, (source, score, joined) in enumerate(trials, start=1):
        scores = [score] if alone is None else [alone[source], score]
        table.add_row(str(number), Text(printable(source)), *map(shown, scores), joined_label(joined))
    return Group(table, Text(printable(now))) if now else table


def selection_table(selection: Mapping[str, Any]) -> RenderableType:
    """Show how `soup --greedy` or `sfgs` chose: trials, or similarities and decisions; and members."""
    members = grid("", "")
    count = f"{len(selection['members'])} of {len(selection['order'])}"
    members.add_row(
        "members", Text(f"{count}: {', '.join(printable(source) for source in selection['members'])}")
    )
    if "trials" in selection:
        trials = [(trial["candidate"], trial["score"], trial["joined"]) for trial in selection["trials"]]
        alone = {one["source"]: one["score"] for one in selection.get("scores", ())}
        has_all = all(source in alone for source, *_ in trials)
        return Group(trials_table(trials, alone=alone if has_all else None), Text(""), members)
    number_of = {source: number for number, source in enumerate(selection["candidates"], start=1)}
    decisions = grid("", "", "similarity", "", show_header=True)
    decisions.columns[1].justify = decisions.columns[3].justify = "left"
    first = selection["order"][0]
    decisions.add_row(str(number_of[first]), Text(printable(first)), "", "first")
    for decision in selection["decisions"]:
        source, mean = decision["candidate"], f"{decision['similarity']:.4f}"
        decisions.add_row(
            str(number_of[source]), Text(printable(source)), mean, joined_label(decision["joined"])
        )
    choices = _thresholds(selection["thresholds"], number_of)
    return Group(decisions, Text(""), *_similarities(selection), Text(""), choices, Text(""), members)


def similarity_table(similarity: Mapping[str, Any]) -> RenderableType:
    """Show how similar the updates of checkpoints are, and what `sfgs` and `stock` would make of them."""
    number_of = {source: number for number, source in enumerate(similarity["candidates"], start=1)}
    stock = similarity["stock"]
    if not similarity["layers"]:
        return Text("no layer to compare")
    words = "{mean:.4g} ({min:.4g} to {max:.4g})"
    made = grid("", "")
    clamped = f"{stock['clamped']:,} of them clamped from below 0" if stock["clamped"] else "none below 0"
    made.add_row("stock", f"ratio {words.format(**stock['ratio'])}, {clamped}")
    made.add_row("sfgs", "by threshold:")
    checkpoints = grid("", "", "overall ‖Δ‖/‖W0‖", "", show_header=True)
    checkpoints.columns[1].justify = checkpoints.columns[3].justify = "left"
    for source, relative in zip(similarity["candidates"], similarity["relative_updates"], strict=True):
        size = "" if relative is None else f"{relative:.4g}"
        checkpoints.add_row(str(number_of[source]), Text(printable(source)), size, _doubt_about(relative))
    histogram = [Text(line, no_wrap=True) for line in _histogram(similarity["histogram"])]
    heading = Text(f"cosine of two updates in a layer; mean of a layer {words.format(**stock['cosine'])}")
    return Group(
        checkpoints,
        Text(""),
        heading,
        *histogram,
        Text(""),
        *_similarities(similarity),
        Text(""),
        made,
        _thresholds(similarity["thresholds"], number_of),
    )


def _doubt_about(relative: float | None) -> str:
    """Return what is unusual about one of several checkpoints; "" for most."""
    if relative == 0.0:
        return "a copy of the base"
    return "as large as the weights: wrong base?" if relative is not None and relative >= AS_LARGE else ""


def _histogram(histogram: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each bin from the first to the last that is not empty."""
    counts, edges = histogram["counts"], histogram["edges"]
    filled = [number for number, count in enumerate(counts) if count]
    for number in range(filled[0], filled[-1] + 1) if filled else ():
        bar = "█" * math.ceil(BAR_WIDTH * counts[number] / max(counts))
        yield f"{edges[number]:5.2f} to {edges[number + 1]:5.2f}  {counts[number]:6,}  {bar}".rstrip()


def _similarities(selection: Mapping[str, Any]) -> list[RenderableType]:
    """Draw the similarities in five shades from 0 to 1, with numbers where they fit."""
    matrix = selection["similarity"]

    def shade(value: float) -> str:
        return SHADES[min(max(int(value * len(SHADES)), 0), len(SHADES) - 1)]

    is_numbered = len(matrix) <= MAX_NUMBERED
    lines = []
    for number, row in enumerate(matrix, start=1):
        cells = [f"{value:6.3f}{shade(value)}" if is_numbered else 2 * shade(value) for value in row]
        lines.append(Text(f"{number:>3} {''.join(cells)}", no_wrap=True))
    return [Text(f"cosine of updates, mean of {plural(selection['layers'], 'layer')}"), *lines]


def _rounded_down(threshold: float) -> str:
    """Round to four digits that choose the same members when the user types them."""
    return f"{math.floor(threshold * 1e4) / 1e4:.4f}"


def _thresholds(choices: Sequence[Mapping[str, Any]], number_of: Mapping[str, int]) -> Table:
    """List which members each range of thresholds would choose."""
    table = grid("threshold", "", "members", show_header=True)
    table.columns[2].justify = "left"
    for number, choice in enumerate(choices):
        after = choices[number + 1 : number + 2]
        above = "" if not after else f"above {_rounded_down(after[0]['highest'])}"
        up_to = "" if choice["highest"] is None else f"up to {_rounded_down(choice['highest'])}"
        words = ", ".join(word for word in (above, up_to) if word) or "any"
        table.add_row(
            words,
            str(len(choice["members"])),
            ", ".join(str(number_of[source]) for source in choice["members"]),
        )
    return table
