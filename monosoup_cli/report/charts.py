"""Charts with matplotlib: points and lines with names, in colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monosoup_cli.report.scored import Chart
from monosoup_cli.report.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["BLACK", "BLUE", "CURVES", "SKY", "VERMILLION", "draw_chart"]

BLACK, ORANGE, SKY, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
CURVES: tuple[tuple[str, Any, str], ...] = (
    (BLACK, "-", "o"),
    (ORANGE, "-.", "s"),
    (BLUE, (0, (5, 1)), "^"),
    (VERMILLION, ":", "D"),
    (SKY, "-", "v"),
    (PURPLE, (0, (3, 1, 1, 1, 1, 1)), ">"),
)
"""Colour, line style and marker of the first curves of a picture."""
OF_CHARTS = (*CURVES, (BLACK, "--", "*"))
"""As many as a search has: its families, its front, the fine-tuned model and the choice."""
ALIGNED = ({-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"})
"""Which end of a name is at its point, by its side."""


def draw_chart(panel: SubFigure, chart: Chart) -> None:
    """Draw a chart: a line with markers for each curve, or markers alone.

    Markers are hollow, and each curve's are larger than those before: where points are the same, all show.
    """
    axes = panel.subplots()
    for number, curve in enumerate(chart.curves):
        place = number % len(OF_CHARTS)
        colour, style, marker = OF_CHARTS[place]
        axes.plot(
            *zip(*curve.points, strict=True),
            color=colour,
            linestyle=style if curve.is_line else "none",
            marker=marker,
            markersize=4 + place,
            markerfacecolor="none",
            markeredgewidth=1,
            label=printable(curve.label, 44),
        )
        for name, point, side in zip(curve.names, curve.points, curve.sides, strict=False):
            if name:
                _write_beside(axes, printable(name, 44), point, side)
    if chart.limits is not None:
        axes.set(xlim=chart.limits[0], ylim=chart.limits[1])
    axes.set_title(printable(chart.title))
    axes.set_xlabel(printable(chart.x))
    axes.set_ylabel(printable(chart.y))
    if any(curve.label for curve in chart.curves):
        panel.legend(loc="outside lower center", ncols=2, fontsize=8)


def _write_beside(axes: Axes, name: str, point: tuple[float, float], side: tuple[int, int]) -> None:
    """Write the name of a point on this side of it. No line strikes it through: it has a white edge."""
    from matplotlib.patheffects import withStroke

    gap = 5 if all(side) else 8
    right, up = (max(min(step, 1), -1) for step in side)
    leader = {"arrowstyle": "-", "color": "0.4", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate(
        name,
        point,
        xytext=(gap * side[0], gap * side[1]),
        textcoords="offset points",
        ha=ALIGNED[0][right],
        va=ALIGNED[1][up],
        fontsize=8,
        arrowprops=leader if side != (right, up) else None,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
