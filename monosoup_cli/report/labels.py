"""Where the names of a chart's points stand: beside them, and off other names, points and lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from monosoup_cli.report.scored import Chart

__all__ = ["placed"]

Place: TypeAlias = "tuple[float, float]"
"""Across and up, as shares of the chart."""

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Right, left, above, below and the corners: the first of those that cost the same is taken."""
LETTER, LINE = 0.016, 0.1
"""The size of a letter in the smallest charts: those of pictures, and of pages on small screens."""
GAP = (0.027, 0.06)
"""How far from its point a name begins there."""
MARGIN = 0.05
STEP = 0.01
"""How close together the places on a line are that names should not cover."""
OUTSIDE, ON_POINT, ON_LINE = 10.0, 1.0, 0.2
"""What it costs a name to leave the chart by the whole of it, and to cover a point or a place on a line."""


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
            at + towards * (gap / (2 if all(side) else 1) + size / 2)
            for at, towards, gap, size in zip(place, side, GAP, (width, height), strict=True)
        )
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def covers(self, place: Place) -> bool:
        return self.left <= place[0] <= self.right and self.bottom <= place[1] <= self.top

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def cost(self, points: Sequence[Place], line: Sequence[Place]) -> float:
        across = max(0.0, -self.left, self.right - 1.0) / (self.right - self.left)
        along = max(0.0, -self.bottom, self.top - 1.0) / (self.top - self.bottom)
        covered = ON_POINT * sum(map(self.covers, points)) + ON_LINE * sum(map(self.covers, line))
        return OUTSIDE * (across + along) + covered


def placed(chart: Chart) -> Chart:
    """Give every name a side of its point. A name that would cover another one on every side is left out."""
    every = [point for curve in chart.curves for point in curve.points]
    bounds = [(min(values), max(values)) for values in zip(*every, strict=True)]

    def scaled(point: Place) -> Place:
        x, y = (
            MARGIN + (1 - 2 * MARGIN) * (value - low) / ((high - low) or 1.0)
            for value, (low, high) in zip(point, bounds, strict=True)
        )
        return x, y

    points = [[scaled(point) for point in curve.points] for curve in chart.curves]
    dots = [point for some in points for point in some]
    line = [
        place
        for curve, some in zip(chart.curves, points, strict=True)
        if curve.is_line
        for place in _along(some)
    ]
    named = [(at, number) for at, curve in enumerate(chart.curves) for number in range(len(curve.names))]
    taken: list[_Box] = []
    sides: dict[tuple[int, int], tuple[int, int]] = {}
    for at, number in sorted(named, key=lambda one: -len(chart.curves[one[0]].names[one[1]])):
        # long names, such as that of an end of a sweep, say most
        name = chart.curves[at].names[number]
        boxes = {side: _Box.beside(points[at][number], side, name) for side in SIDES}
        free = {side: box for side, box in boxes.items() if not any(map(box.meets, taken))}
        if name and free:
            sides[at, number] = side = min(free, key=lambda side: free[side].cost(dots, line))
            taken.append(free[side])
    curves = [
        curve._replace(
            names=[name if (at, number) in sides else "" for number, name in enumerate(curve.names)],
            sides=[sides.get((at, number), SIDES[0]) for number in range(len(curve.names))],
        )
        for at, curve in enumerate(chart.curves)
    ]
    return chart._replace(curves=curves)


def _along(points: Sequence[Place]) -> Iterator[Place]:
    """Places on the line that joins points."""
    for (x, y), (to_x, to_y) in pairwise(points):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / STEP))
        for step in range(steps):
            share = step / steps
            yield x + share * (to_x - x), y + share * (to_y - y)
