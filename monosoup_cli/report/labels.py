"""Where the names of a chart's points stand: beside their own point, inside the axes, and off other names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple, TypeAlias

from monosoup_cli.report.scored import Chart

__all__ = ["placed"]

Place: TypeAlias = "tuple[float, float]"
"""Across and up, as shares of the chart."""
Limits: TypeAlias = "tuple[float, float]"
"""Where an axis begins and ends."""

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Right, left, above, below and the corners: the first of those that cost the same is taken."""
FAR = 3
"""How many times further than beside its point a name begins that a line leads to."""
LETTER, LINE = 0.016, 0.1
"""The size of a letter in the smallest charts: those of pictures, and of pages on small screens."""
GAP = (0.027, 0.06)
"""How far from its point a name begins there."""
ROOMS = sorted(product((0.05, 0.16, 0.26), (0.05, 0.16, 0.26), (0.06, 0.18), (0.06, 0.18)), key=sum)
"""Shares of the chart that the axes may add on the left, on the right, below and above the points."""
LEFT_OUT = 4
"""As how many faults of names that have a place one counts that has none."""
NEARER = 0.1
"""How many gaps a name is nearer to its own point than to any other one."""
MANY = 40
"""How many names no room helps: trying them all would take seconds."""
STEP = 0.01
"""How close together the places on a line are that names should not cover."""


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def beside(cls, place: Place, side: tuple[int, int], name: str) -> _Box:
        """The room of a name on this side of its point."""
        width, height = LETTER * len(name), LINE
        x, y = (
            at + math.copysign(bool(towards), towards) * size / 2
            for at, towards, size in zip(_beyond(place, side), side, (width, height), strict=True)
        )
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def is_inside(self) -> bool:
        return min(self) >= 0 and max(self) <= 1

    def covers(self, place: Place) -> bool:
        return self.left <= place[0] <= self.right and self.bottom <= place[1] <= self.top

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def distance(self, place: Place) -> float:
        """How far a point is from the name, in gaps."""
        x, y = place
        return _gaps(max(self.left - x, 0.0, x - self.right), max(self.bottom - y, 0.0, y - self.top))


class _Named(NamedTuple):
    """A name that has a place: which one it is, on which side of its point, its room, whether a line crosses
    it, and how many other points the line to it runs through."""

    curve: int
    number: int
    side: tuple[int, int]
    box: _Box
    is_crossed: bool
    met: int

    @property
    def faults(self) -> int:
        is_far = max(map(abs, self.side)) > 1
        return is_far + self.is_crossed + (self.met > 0)


def placed(chart: Chart) -> Chart:
    """Give every name a side of its point, and the axes the room for it.

    A name is nearer to its own point than to any other one; else it stands further off, and a line leads to
    it. One that finds no room there either is left out.
    """
    if not any(any(curve.names) for curve in chart.curves):
        return chart
    count = sum(name != "" for curve in chart.curves for name in curve.names)
    best: tuple[int, tuple[Limits, Limits], list[_Named]] | None = None
    for left, right, below, above in ROOMS[: 1 if count > MANY else None]:
        limits = _limits(chart, 0, left, right), _limits(chart, 1, below, above)
        named = _named(chart, limits)
        lacking = LEFT_OUT * (count - len(named)) + sum(one.faults for one in named)
        if best is None or lacking < best[0]:
            best = lacking, limits, named
        if not lacking:
            break
    assert best is not None
    _, limits, named = best
    sides = {(one.curve, one.number): one.side for one in named}
    curves = [
        curve._replace(
            names=[name if (at, number) in sides else "" for number, name in enumerate(curve.names)],
            sides=[sides.get((at, number), SIDES[0]) for number in range(len(curve.names))],
        )
        for at, curve in enumerate(chart.curves)
    ]
    return chart._replace(curves=curves, limits=limits)


def _limits(chart: Chart, axis: int, before: float, after: float) -> Limits:
    """Where an axis begins and ends that has this room before and after the points."""
    values = [point[axis] for curve in chart.curves for point in curve.points]
    low, high = min(values), max(values)
    if low == high:
        half = 0.05 * abs(low) or 0.5
        return low - half, high + half
    length = (high - low) / (1 - before - after)
    return low - before * length, high + after * length


def _named(chart: Chart, limits: tuple[Limits, Limits]) -> list[_Named]:
    """The names that find room in axes with these limits, the longest first: such as of an end of a sweep."""

    def scaled(point: Place) -> Place:
        x, y = ((value - low) / (high - low) for value, (low, high) in zip(point, limits, strict=True))
        return x, y

    points = [[scaled(point) for point in curve.points] for curve in chart.curves]
    dots = sorted({dot for some in points for dot in some})
    lines = zip(chart.curves, points, strict=True)
    line = [place for curve, some in lines if curve.is_line for place in _along(some)]
    every = [
        (at, number, name)
        for at, curve in enumerate(chart.curves)
        for number, name in enumerate(curve.names)
        if name
    ]
    named: list[_Named] = []
    for at, number, name in sorted(every, key=lambda one: -len(one[2])):
        own = points[at][number]
        others = [dot for dot in dots if dot != own]
        for far in (1, FAR):
            free = []
            for side in SIDES:
                side = far * side[0], far * side[1]
                box = _Box.beside(own, side, name)
                least = box.distance(own) + NEARER if far == 1 else 1.0
                if (
                    box.is_inside
                    and not any(box.meets(one.box) for one in named)
                    and all(box.distance(dot) > least for dot in others)
                ):
                    leader = [] if far == 1 else list(_along([own, _beyond(own, side)]))
                    met = sum(any(_gaps(x - a, y - b) < 0.4 for a, b in leader) for x, y in others)
                    free.append(_Named(at, number, side, box, any(map(box.covers, line)), met))
            if free:
                named.append(min(free, key=lambda one: (one.is_crossed, one.met)))
                break
    return named


def _gaps(across: float, up: float) -> float:
    """How many gaps a way is long."""
    return math.hypot(across / GAP[0], up / GAP[1])


def _beyond(point: Place, side: tuple[int, int]) -> Place:
    """Where a name on this side of a point begins."""
    x, y = (
        at + towards * gap / (2 if all(side) else 1)
        for at, towards, gap in zip(point, side, GAP, strict=True)
    )
    return x, y


def _along(points: Sequence[Place]) -> Iterator[Place]:
    """Places on the line that joins points."""
    for (x, y), (to_x, to_y) in pairwise(points):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / STEP))
        for step in range(steps):
            share = step / steps
            yield x + share * (to_x - x), y + share * (to_y - y)
