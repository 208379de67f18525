"""A comparison of scores as one self-contained HTML page, without scripts: tables, and arrows in a plane.

The arrows lead from the fine-tuned model to each edited one, in distribution (across) against out of
distribution (up), as in Fig. 12 of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from string import Template
from typing import Any

from monosoup_cli.report.files import asset
from monosoup_cli.report.markup import items, table, text
from monosoup_cli.report.scores import (
    CHANGES,
    LOWER,
    change,
    direction,
    has_lower,
    metric_of,
    number,
    shown_interval,
    shown_p,
    shown_rows,
    signed,
)
from monosoup_cli.report.words import printable
from monosoup_cli.version import __version__

__all__ = ["scores_page"]

WIDTH, HEIGHT = 640, 480
LEFT, TOP, RIGHT, BOTTOM = 70, 20, 150, 50
"""The margins of the picture; names of points are to the right of them."""
TICKS = 5
MAX_LABEL = 24
LINE, CHARACTER = 14, 8
"""How high a label is, and how wide its widest characters are on average."""
HEADINGS = ("base", "fine-tuned", "edited", "difference", "95% interval", "test", "p", "corrected p")


def scores_page(comparison: Mapping[str, Any]) -> str:
    """Return the page. Names are untrusted: they are escaped, and the page runs no script."""
    texts = {
        "css": asset("page.css"),
        "version": text(__version__),
        "sentences": items(comparison["notes"]),
        "picture": _picture(comparison),
        "tables": "\n".join(_tables(comparison)),
        "lower": f'<p class="note">{LOWER}</p>' if has_lower(comparison) else "",
    }
    return Template(asset("scores.html")).substitute(texts)


def _tables(comparison: Mapping[str, Any]) -> Iterator[str]:
    names = comparison["models"]
    for at, name in enumerate(names["edited"]):
        yield f"<section><h2>{text(name)} against {text(names['finetuned'])}</h2>"
        body, counted = [], []
        for shown, record in shown_rows(comparison):
            one = record["edited"][at]
            values = map(number, (record["base"], record["finetuned"], one["value"]))
            cells = [*values, signed(one["difference"]), shown_interval(one["interval"]), one["test"] or "–"]
            body.append([shown, metric_of(record), *cells, shown_p(one["p"]), shown_p(one["corrected_p"])])
            if "like_base" in one:
                counted.append([shown, *(change(one.get(kind)) for kind in CHANGES)])
        yield table(["task", "metric", *HEADINGS], body)
        if counted:
            yield "<h3>What became of the samples</h3>"
            yield table(["task", *CHANGES.values()], counted)
        yield "</section>"


def _picture(comparison: Mapping[str, Any]) -> str:
    """The arrows; empty where there are not both groups, or one has no better direction."""
    groups = {group["name"]: group for group in comparison["groups"]}
    if not {"in", "out"} <= groups.keys() or any(
        group["higher_is_better"] is None for group in groups.values()
    ):
        return ""
    across, up = groups["in"], groups["out"]
    names = comparison["models"]
    base, tuned = ((across[role], up[role]) for role in ("base", "finetuned"))
    edited = [(a["value"], b["value"]) for a, b in zip(across["edited"], up["edited"], strict=True)]
    x, y = (_scale([point[axis] for point in (base, tuned, *edited)], axis) for axis in (0, 1))
    parts = [
        *_axis(x, 0, f"mean in distribution{direction(across)}"),
        *_axis(y, 1, f"mean out of distribution{direction(up)}"),
    ]
    for point in edited:
        parts += _arrow((x(tuned[0]), y(tuned[1])), (x(point[0]), y(point[1])))
    for role, point in (("base", base), ("tuned", tuned)):
        parts.append(f'<circle class="{role}" cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="5"/>')
    named = zip((base, tuned, *edited), (names["base"], names["finetuned"], *names["edited"]), strict=True)
    parts += _labels([(x(point[0]), y(point[1]), point, name) for point, name in named])
    title = "From the fine-tuned model to each edited one"
    return (
        f'<section class="arrows"><h2>{title}</h2>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">\n'
        + "\n".join(parts)
        + "\n</svg></section>"
    )


class _scale:
    """Maps scores to places in the picture, with a little room around them."""

    def __init__(self, values: Sequence[float], axis: int) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - room, high + room
        self.start, self.stop = ((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP))[axis]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def _axis(scale: _scale, axis: int, name: str) -> Iterator[str]:
    for tick in range(TICKS + 1):
        value = scale.low + tick / TICKS * (scale.high - scale.low)
        at = f"{scale(value):.1f}"
        if axis == 0:
            yield f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            below = HEIGHT - BOTTOM + 16
            yield f'<text class="tick" x="{at}" y="{below}" text-anchor="middle">{value:.4g}</text>'
        else:
            yield f'<line class="grid" y1="{at}" y2="{at}" x1="{LEFT}" x2="{WIDTH - RIGHT}"/>'
            yield f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{value:.4g}</text>'
    if axis == 0:
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{name}</text>'
    else:
        middle = (TOP + HEIGHT - BOTTOM) / 2
        place = f'transform="translate(14 {middle:.0f}) rotate(-90)"'
        yield f'<text class="axis" {place} text-anchor="middle">{name}</text>'


def _arrow(start: tuple[float, float], stop: tuple[float, float]) -> Iterator[str]:
    length = math.dist(start, stop)
    yield (
        f'<line class="arrow" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{stop[0]:.1f}" y2="{stop[1]:.1f}"/>'
    )
    if length < 1:
        yield f'<circle class="head" cx="{stop[0]:.1f}" cy="{stop[1]:.1f}" r="3"/>'
        return
    along = ((stop[0] - start[0]) / length, (stop[1] - start[1]) / length)
    back = (stop[0] - 10 * along[0], stop[1] - 10 * along[1])
    corners = [
        stop,
        (back[0] - 4 * along[1], back[1] + 4 * along[0]),
        (back[0] + 4 * along[1], back[1] - 4 * along[0]),
    ]
    yield f'<polygon class="head" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>'


def _labels(points: Sequence[tuple[float, float, tuple[float, float], str]]) -> Iterator[str]:
    """Names beside places; one that would hide another goes below it, with a line to its place."""
    taken: list[tuple[float, float, float]] = []
    for x, y, point, name in sorted(points, key=lambda one: one[1]):
        left, top = x + 8, y - 6
        right = left + CHARACTER * len(printable(name, MAX_LABEL))
        for start, stop, line in taken:  # from the top down
            if left < stop and start < right and abs(top - line) < LINE:
                top = line + LINE
        taken = sorted([*taken, (left, right, top)], key=lambda one: one[2])
        if top > y + LINE:
            yield f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{left:.1f}" y2="{top - 4:.1f}"/>'
        where = f"{text(name)}: {number(point[0])} in, {number(point[1])} out"
        label = f"{text(name, MAX_LABEL)}<title>{where}</title>"
        yield f'<text x="{left:.1f}" y="{top:.1f}">{label}</text>'
