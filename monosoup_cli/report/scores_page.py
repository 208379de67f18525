"""A comparison of scores as HTML without scripts, a page or a part of one: sentences, tables, and arrows.

The arrows lead from the fine-tuned model to each edited one, in distribution (across) against out of
distribution (up), as in Fig. 12 of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.errors import some
from monosoup_cli.report.glossary import OF_SCORES
from monosoup_cli.report.markup import Markup, frame, glossary, header, items, table, text
from monosoup_cli.report.outcome import outcomes, side_by_side
from monosoup_cli.report.scores import (
    CHANGES,
    LOWER,
    against,
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

__all__ = ["scores_page", "scores_part"]

WIDTH, HEIGHT = 640, 480
LEFT, TOP, RIGHT, BOTTOM = 70, 20, 150, 50
"""The margins of the picture; names of points are to the right of them."""
TICKS = 5
MAX_LABEL = 24
NAMED = 3
"""How many edited models the title names."""
LINE, CHARACTER = 14, 8
"""How high a label is, and how wide its widest characters are on average."""
HEADINGS = ("difference", "95% interval", "test", "p", "corrected p")
TESTS = {"mcnemar": "McNemar"}
CLOSE = 0.25
"""The share of both axes up to which fine-tuned and edited models have a picture of their own."""
HEAD, FAR = 6, 30
"""How far a label is at least from every point, and how far from its own that has no room beside it."""
Point = tuple[float, float]
Named = tuple[str, Point]
Box = tuple[float, float, float]
"""Left, right and base line of a label."""


def scores_page(comparison: Mapping[str, Any]) -> str:
    """Return the page. Names are untrusted: they are escaped, and the page runs no script."""
    names = comparison["models"]
    title = f"{some(names['edited'], NAMED)} against {names['finetuned']}"
    head = header(title, "scores", items(outcomes(comparison)))
    scores = f'<div id="scores">\n{scores_part(comparison)}\n</div>'
    return frame(title, "scores", f"{head}<main>\n{scores}\n{glossary(OF_SCORES)}\n</main>")


def scores_part(comparison: Mapping[str, Any]) -> Markup:
    """Return what a page shows of a comparison below the sentences: notes, the picture and tables."""
    parts = [items(comparison["notes"]), *_overview(comparison), _picture(comparison), *_tables(comparison)]
    if has_lower(comparison):
        parts.append(f'<p class="note">{LOWER}</p>')
    return Markup("\n".join(parts))


def _overview(comparison: Mapping[str, Any]) -> Iterator[str]:
    if rows := side_by_side(comparison):
        yield f"<section><h2>All models</h2>{table(rows[0], rows[1:], is_wide=True)}</section>"


def _tables(comparison: Mapping[str, Any]) -> Iterator[str]:
    names = comparison["models"]
    for at, name in enumerate(names["edited"]):
        yield f"<section><h2>Scores: {text(against(comparison, name))}</h2>"
        body, counted = [], []
        for shown, record in shown_rows(comparison):
            one = record["edited"][at]
            values = map(number, (record["base"], record["finetuned"], one["value"]))
            test = TESTS.get(one["test"], one["test"]) or "–"
            cells = [*values, signed(one["difference"]), shown_interval(one["interval"], " to "), test]
            body.append([shown, metric_of(record), *cells, shown_p(one["p"]), shown_p(one["corrected_p"])])
            if "like_base" in one:
                counted.append([shown, *(change(one.get(kind)) for kind in CHANGES)])
        head = ["task", "metric", "base", "fine-tuned", printable(name, MAX_LABEL), *HEADINGS]
        yield table(head, body, is_wide=True)
        if counted:
            yield "<h3>What became of the samples</h3>"
            yield table(["task", *CHANGES.values()], counted, is_wide=True)
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
    points = (base, tuned, *edited)
    if not all(math.isfinite(max(values) - min(values)) for values in zip(*points, strict=True)):
        return ""
    names_of = (names["base"], names["finetuned"], *names["edited"])
    named = list(zip(names_of, points, strict=True))
    axes = f"mean in distribution{direction(across)}", f"mean out of distribution{direction(up)}"
    better = "up" if up["higher_is_better"] else "down", "right" if across["higher_is_better"] else "left"
    note = f"Better is {better[0]} and to the {better[1]}."
    title = "From the fine-tuned model to each edited one"
    near = _near(named)
    if not near:
        return _drawn(title, named, axes, note)
    far = [text(name) for name, point in named[2:] if (name, point) not in near]
    named_next = f"the edited models near {text(names['finetuned'])}" if far else "the edited models"
    wide = _drawn(title, named, axes, f"{note} The next picture names {named_next}.", unnamed=near)
    outside = [f"{text(names['base'])} is outside, at {number(base[0])} in and {number(base[1])} out."]
    outside += [f"So {'is' if len(far) == 1 else 'are'} {', '.join(far)}."] if far else []
    few = [named[1], *near]
    return wide + _drawn(f"{title}, enlarged", few, axes, " ".join([note, *outside]), has_base=False)


def _near(named: Sequence[Named]) -> list[Named]:
    """The edited models near the fine-tuned one in the picture, but not at its place: all or several."""
    tuned, edited = named[1][1], named[2:]
    sizes = [max(one) - min(one) for one in zip(*(point for _, point in named), strict=True)]
    near = [
        (name, point)
        for name, point in edited
        if all(abs(a - b) <= CLOSE * size for a, b, size in zip(point, tuned, sizes, strict=True))
    ]
    is_one_point = all(point == tuned for _, point in near)
    return [] if is_one_point or len(near) == 1 < len(edited) else near


def _drawn(
    title: str,
    named: Sequence[Named],
    axes: tuple[str, str],
    note: str,
    *,
    has_base: bool = True,
    unnamed: Sequence[Named] = (),
) -> str:
    """A picture of the base, the fine-tuned model, and the edited ones, some of which may have no name."""
    x, y = (_scale([point[axis] for _, point in named], axis) for axis in (0, 1))
    places = [(x(point[0]), y(point[1]), point, name) for name, point in named]
    first = 1 + has_base
    *dots, tuned = [place[:2] for place in places[:first]]
    tips = [place[:2] for place in places[first:]]
    parts = [*_axis(x, 0, axes[0]), *_axis(y, 1, axes[1])]
    for tip in tips:
        parts += _arrow(tuned, tip)
    for role, (across, down) in (*(("base", dot) for dot in dots), ("tuned", tuned)):
        parts.append(f'<circle class="{role}" cx="{across:.1f}" cy="{down:.1f}" r="5"/>')
    labelled = [place for place, one in zip(places, named, strict=True) if one not in unnamed]
    parts += _labels(labelled, [(tuned, tip) for tip in tips])
    return (
        f'<section class="arrows"><h2>{title}</h2>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">\n'
        + "\n".join(parts)
        + f'\n</svg>\n<p class="note">{note}</p></section>'
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

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Multiples of 1, 2 or 5 times a power of ten, about as many as `TICKS`, with their digits."""
        least = (self.high - self.low) / TICKS
        power = math.floor(math.log10(least))
        step = next(step for step in (first * 10.0**power for first in (1, 2, 5, 10)) if step >= least)
        decimals = max(-math.floor(math.log10(step)), 0)
        for multiple in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            value = multiple * step
            yield value, f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.4g}"


def _axis(scale: _scale, axis: int, name: str) -> Iterator[str]:
    for value, shown in scale.ticks():
        at = f"{scale(value):.1f}"
        if axis == 0:
            yield f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            below = HEIGHT - BOTTOM + 16
            yield f'<text class="tick" x="{at}" y="{below}" text-anchor="middle">{shown}</text>'
        else:
            yield f'<line class="grid" y1="{at}" y2="{at}" x1="{LEFT}" x2="{WIDTH - RIGHT}"/>'
            yield f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{shown}</text>'
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


def _labels(
    points: Sequence[tuple[float, float, Point, str]], arrows: Sequence[tuple[Point, Point]]
) -> Iterator[str]:
    """Names beside places, where they hide no other name, no dot and no head of an arrow, no arrow runs
    through them, and no other place is nearer.

    One that finds no room beside its place goes further off, with a line to its place.
    """
    taken: list[Box] = []
    at = {(x, y) for x, y, *_ in points}
    for x, y, point, name in sorted(points, key=lambda one: one[1]):
        width = CHARACTER * len(printable(name, MAX_LABEL))
        lines = sorted(range(-len(points), len(points) + 1), key=lambda line: (abs(line), -line))
        places = [
            (left, left + width, y - 6 + LINE * line)
            for line in lines
            for left in (x + 8, x - 8 - width, x + FAR, x - FAR - width, x - width / 2)
            if left >= LEFT and TOP <= y - 6 + LINE * line <= HEIGHT - BOTTOM
        ]
        free = [place for place in places if not any(_overlap(place, other) for other in taken)]

        def faults(place: Box, own: Point = (x, y)) -> tuple[bool, bool, bool, bool]:
            """Whether the label hides a point, an arrow runs through it, the line to it runs through another
            label, and another point is nearer."""
            nearest = min(_distance(one, place) for one in at)
            crossed = any(_crosses(*arrow, place) for arrow in arrows)
            led = any(_crosses(own, ((place[0] + place[1]) / 2, place[2] - 4), label) for label in taken)
            return nearest < HEAD, crossed, led, nearest < _distance(own, place)

        left, right, top = place = min(free or places, key=faults)
        taken.append(place)
        if abs(top + 6 - y) > LINE / 2 or _distance((x, y), place) > FAR - 1 or faults(place)[-1]:
            under = top - LINE + 2 if top > y else top + 2
            end = (left, top - 4) if left > x else (right, top - 4) if right < x else (x, under)
            yield f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        where = f"{text(name)}: {number(point[0])} in, {number(point[1])} out"
        label = f"{text(name, MAX_LABEL)}<title>{where}</title>"
        anchor = (f'x="{right:.1f}"', ' text-anchor="end"') if left < x else (f'x="{left:.1f}"', "")
        yield f'<text {anchor[0]} y="{top:.1f}"{anchor[1]}>{label}</text>'


def _distance(point: Point, box: Box) -> float:
    """How far a point is from a label."""
    left, right, line = box
    return math.hypot(
        max(left - point[0], 0.0, point[0] - right), max(line - LINE + 2 - point[1], 0.0, point[1] - line - 2)
    )


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < LINE


def _crosses(start: tuple[float, float], stop: tuple[float, float], box: Box) -> bool:
    """Whether a line goes through a label."""
    sides = ((box[0], box[1]), (box[2] - LINE + 2, box[2] + 2))
    first, last = 0.0, 1.0
    for begin, end, (low, high) in zip(start, stop, sides, strict=True):
        if begin == end:
            if not low < begin < high:
                return False
            continue
        enters, leaves = sorted(((low - begin) / (end - begin), (high - begin) / (end - begin)))
        first, last = max(first, enters), min(last, leaves)
    return first < last
