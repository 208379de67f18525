"""Pictures of a report, with matplotlib: the optional dependency `plot`.

The pictures are legible in print, in grey and for colour-blind readers: the colours are Okabe and Ito's, and
lines also differ in style or marker.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from monosoup_cli.errors import ReportError, UsageError, crop
from monosoup_cli.report.charts import BLACK, BLUE, CURVES, SKY, VERMILLION, draw_chart
from monosoup_cli.report.files import OF_SEVERAL, check_own, check_target, replace_file
from monosoup_cli.report.measures import LABELS
from monosoup_cli.report.records import histogram
from monosoup_cli.report.rows import Row, rows_of
from monosoup_cli.report.searched import charts_of
from monosoup_cli.report.steps import before_step
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

__all__ = ["WIDTH", "check_plot", "drawable", "figure", "in_style", "plot", "save"]

METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "monosoup"},
    ".svg": {"Creator": "monosoup", "Date": None},
    ".pdf": {"Creator": "monosoup", "CreationDate": None},
}
"""Metadata by suffix, without the time, so that the same report makes the same bytes."""
PICTURE = re.compile(rb"Software\x00monosoup|<dc:title>monosoup</dc:title>|/Creator \(monosoup\)")
"""What only monosoup's pictures have."""

FONT = "DejaVu Sans"
"""Matplotlib includes it."""
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.09,
    "font.family": FONT,
    "font.size": 8.5,
    "grid.color": "0.9",
    "hatch.color": "0.75",
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,  # what journals ask for, and text that can be searched
    "svg.fonttype": "none",
    "svg.hashsalt": "monosoup",
    "text.parse_math": False,  # names may hold dollar signs
}
WIDTH = 4.8
"""Width of the figure in inches. Shrunk to a column, its text is still 6 pt."""

OVER_DEPTH = {("lambda_high", "lambda_low"): "factor", ("ratio",): "ratio", ("scale",): "factor"}
"""Measures to plot over depth, those of a tuple together, and the label of their axis."""

MAX_COLUMNS = 16
MAX_MARKED = 60
"""The most layers over depth whose points get markers."""
MAX_STACKS = 4
MAX_TICKS = 14
SMALLEST = 1e-8
"""Share of σ_1. Smaller singular values are rounding errors, and would squeeze the others."""

_drawing = threading.RLock()


class _Panel(NamedTuple):
    height: float
    draw: Callable[[SubFigure], None]


def check_plot(path: Path) -> None:
    """Check that `plot` can write to `path`. It may replace a picture of monosoup's, which can be made again.

    Raises:
        UsageError: The suffix is unsupported, or matplotlib is missing.
        OutputError: The file cannot be written, or there is something else.
    """
    check_target(path, list(METADATA))
    check_own(path, PICTURE, at_end=True)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("pictures need matplotlib", hint="pip install 'monosoup[plot]'") from None


def plot(report: Mapping[str, Any], path: Path, rows: Sequence[Row] | None = None) -> None:
    """Write `figure` to a .png (200 dpi), .svg or .pdf file. The same report makes the same bytes.

    An existing picture of monosoup's is replaced once the new one is complete.

    Raises:
        UsageError: The suffix is unsupported, or matplotlib is missing.
        OutputError: The file cannot be written.
        ReportError: The report has nothing to draw.
    """
    save(lambda: figure(report, rows), path)


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write what `draw` returns, as `plot` does."""
    check_plot(path)
    suffix = path.suffix.lower()
    with in_style():
        drawn = draw()
        replace_file(
            path, lambda draft: drawn.savefig(draft, format=suffix[1:], dpi=200, metadata=METADATA[suffix])
        )


def figure(report: Mapping[str, Any], rows: Sequence[Row] | None = None) -> Figure:
    """Draw every panel that the report has data for, one above the other.

    Args:
        report: The report of any command.
        rows: The layers to draw; None for all.

    Raises:
        ReportError: There is nothing to draw.
        ImportError: Matplotlib is missing.
    """
    charts = charts_of(report)
    if "layers" not in report and not charts:
        raise ReportError("no layers to draw: the report covers several checkpoints", hint=OF_SEVERAL)
    panels = [_Panel(2.8, partial(draw_chart, chart=chart)) for chart in charts]
    if "layers" in report:
        panels += _panels(rows_of(report) if rows is None else rows, before_step(report))
    if not panels:
        raise ReportError(f"this report of {report['command']} has nothing to draw")
    from matplotlib.figure import Figure

    heights = [panel.height for panel in panels]
    with in_style():
        whole = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = whole.subfigures(len(panels), 1, height_ratios=heights, squeeze=False).flat
        for panel, part in zip(panels, parts, strict=True):
            panel.draw(part)
    return whole


@contextmanager
def in_style() -> Iterator[None]:
    """Use matplotlib's defaults and `STYLE` instead of the user's settings.

    One thread at a time: the settings belong to the process.
    """
    from matplotlib import style

    with _drawing, style.context(["default", STYLE]):
        yield


def _panels(rows: Sequence[Row], before: str) -> Iterator[_Panel]:
    if with_spectra := [row for row in rows if _spectrum(row)]:
        height = 3 + 0.15 * min(len(with_spectra), len(CURVES))
        yield _Panel(height, partial(_draw_spectra, rows=with_spectra))
    for measures in OVER_DEPTH:
        if measured := _with(rows, measures[0]):
            yield _Panel(2.6, partial(_draw_over_depth, rows=measured, measures=measures, before=before))
    measured = _with(rows, "k_ratio")
    sizes = Counter(row["stack"] for row in measured if row["block"] is not None)
    stacks = [stack for stack, _ in sizes.most_common(MAX_STACKS)]
    left_out = sum(row["stack"] not in stacks for row in measured)
    for stack in stacks:
        inside = [row for row in rows if row["stack"] == stack]
        blocks = 1 + max(row["block"] for row in inside)
        draw = partial(_draw_heat_map, rows=_with(inside, "k_ratio"), blocks=blocks, left_out=left_out)
        yield _Panel(2.4 + min(max(0.1 * blocks, 0.8), 4), draw)
        left_out = 0  # noted once
    if with_cosines := [row for row in rows if _cosines(row)]:
        yield _Panel(2.3, partial(_draw_cosines, rows=with_cosines))


def _with(rows: Sequence[Row], measure: str) -> list[Row]:
    return [row for row in rows if row.get(measure) is not None]


def drawable(text: str, limit: int) -> str:
    """Return `text` with everything that cannot be printed, or that the font lacks, as escapes."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont(FONT)).get_charmap()
    drawn = (
        char if ord(char) in glyphs else char.encode("ascii", "backslashreplace").decode()
        for char in printable(text, limit)
    )
    return crop("".join(drawn), limit)


def _cosines(row: Row) -> list[float]:
    return [cosine for cosine in row.get("cosines") or () if cosine is not None]


def _spectrum(row: Row) -> Sequence[float] | None:
    return (row.get("singular_values") or row.get("spectrum")) if row.get("sigma_max") else None


def _singular_values(row: Row) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return i, from 1, and σ_i: all singular values, or the quantiles in the report."""
    import numpy as np

    if row.get("singular_values"):
        values = np.array(row["singular_values"])
        return np.arange(1, len(values) + 1), values
    ratios = np.array(row["spectrum"])
    return 1 + np.linspace(0, row["rank"] - 1, len(ratios)).round(), row["sigma_max"] * ratios


def _smallest(row: Row) -> float:
    """Return the smallest singular value to show on the axis."""
    _, values = _singular_values(row)
    return float(max(values[values > 0].min(), SMALLEST * values[0]))


def _choose_layers(rows: Sequence[Row], count: int) -> list[Row]:
    """Choose a row from each of `count` equal stretches of depth, preferring new kinds and parts."""
    stretches = min(count, len(rows))
    ends = [number * len(rows) // stretches for number in range(stretches + 1)]
    used: Counter[tuple[str, str]] = Counter()
    chosen = []
    for start, end in pairwise(ends):
        row = min(rows[start:end], key=lambda row: (used["kind", row["kind"]], used["part", row["part"]]))
        used.update([("kind", row["kind"]), ("part", row["part"])])
        chosen.append(row)
    return chosen


def _draw_spectra(panel: SubFigure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter

    axes = panel.subplots()
    chosen = _choose_layers(rows, len(CURVES))
    is_relative = len({row["rank"] for row in chosen}) > 1
    handles = [
        _draw_spectrum(axes, row, *curve, width=row["rank"] if is_relative else 1)
        for row, curve in zip(chosen, CURVES, strict=False)
    ]
    noises = [row["rounding_sigma"] for row in chosen if row.get("rounding_sigma")]
    smallest = min(map(_smallest, chosen))
    bottom = max(min([smallest, *noises]), smallest / 100)  # far noise would squeeze the curves
    if noises:
        where = " (below the axis)" if max(noises) < bottom else ""
        label = f"largest σ that rounding alone would make{where}"
        handles.append(Line2D([], [], color="0.4", linestyle="--", linewidth=0.8, label=label))
    axes.set_yscale("log", nonpositive="clip")
    top = max([*(row["sigma_max"] for row in chosen), *noises])
    axes.set_ylim(bottom / 1.5, top * 1.5)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.set_xlim(0, 1 if is_relative else chosen[0]["rank"])
    is_sampled = any(len(_singular_values(row)[1]) < row["rank"] for row in chosen)
    sampled = " (lines join the 64 values that the report has)" if is_sampled else ""
    axes.set_xlabel(("i / r" if is_relative else "i") + sampled)
    axes.set_ylabel("σ_i (in units of the weights)")
    axes.set_title(f"Singular values of the update, {len(chosen)} of {plural(len(rows), 'layer')}")
    panel.legend(handles=handles, loc="outside lower left", handlelength=3.2, fontsize=8)


def _draw_spectrum(axes: Axes, row: Row, colour: str, line: Any, marker: str, width: int) -> Line2D:
    """Draw a layer's curve, its k and its noise, and return their legend entry."""
    import numpy as np
    from matplotlib.lines import Line2D

    index, values = _singular_values(row)
    axes.plot(index / width, values, color=colour, linestyle=line)
    # on the line, which is straight where the axis is logarithmic
    at_k = math.exp(np.interp(row["k"], index, np.log(np.maximum(values, _smallest(row)))))
    point: dict[str, Any] = {"color": colour, "marker": marker, "mec": BLACK, "mew": 0.6}
    axes.plot([row["k"] / width], [at_k], linestyle="none", clip_on=False, zorder=3, **point)
    if row.get("rounding_sigma"):
        axes.axhline(row["rounding_sigma"], color=colour, linestyle="--", linewidth=0.8)
    name = drawable(row["name"].removesuffix(".weight"), 44)
    return Line2D([], [], linestyle=line, label=f"k = {row['k']:,} of {row['rank']:,}   {name}", **point)


def _draw_over_depth(
    panel: SubFigure, rows: Sequence[Row], measures: tuple[str, ...], before: str = ""
) -> None:
    axes = panel.subplots()
    depth = range(len(rows))
    values = [[row[measure] for row in rows] for measure in measures]
    lines = ((BLUE, "-", "o"), (VERMILLION, "--", "s"))
    for measure, line, (colour, style, marker) in zip(measures, values, lines, strict=False):
        axes.plot(
            depth,
            line,
            color=colour,
            linestyle=style,
            label=LABELS[measure],
            marker=marker if len(rows) <= MAX_MARKED else "",
            markersize=3.5,
        )
    if len(values) == 2:
        axes.fill_between(depth, values[0], values[1], color="0.85", linewidth=0, label="gap")
    lowest, highest = min(0, *map(min, values)), max(1, *map(max, values))
    margin = 0.04 * (highest - lowest)
    axes.set_ylim(lowest - margin, highest + margin)
    axes.margins(x=0.01)
    names = " and ".join(LABELS[measure] for measure in measures)
    has_names = len({row["stack"] for row in rows} - {None}) > 1
    axes.set_title(f"{names} over depth, {plural(len(rows), 'layer')}", pad=16 if has_names else None)
    axes.set_ylabel(OVER_DEPTH[measures])
    _mark_blocks(axes, rows)
    if len(values) == 2:
        panel.legend(loc="outside lower center", ncols=3, title=before or None, title_fontsize=8)


def _mark_blocks(axes: Axes, rows: Sequence[Row]) -> None:
    """Add ticks where blocks begin, as many as fit, and a line and a name for each of several stacks."""
    from matplotlib.ticker import MaxNLocator

    starts: dict[tuple[str, int], int] = {}
    spans = defaultdict(list)
    for x, row in enumerate(rows):
        if row["block"] is not None:
            starts.setdefault((row["stack"], row["block"]), x)
            spans[row["stack"]].append(x)
    if not starts:
        axes.set_xlabel("layer, by depth")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    step = 2 ** math.ceil(math.log2(max(len(starts) / MAX_TICKS, 1)))
    ticks: dict[int, str] = {}
    for (_, block), x in starts.items():
        if block % step == 0 and (not ticks or x - max(ticks) >= len(rows) / MAX_TICKS / 2):
            ticks[x] = str(block)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("first layer of block")
    for stack, span in spans.items() if len(spans) > 1 else ():
        axes.axvline(span[0] - 0.5, color="0.5", linewidth=0.8)
        room = int(70 * len(span) / len(rows))
        if room > 5:
            middle = (span[0] + span[-1]) / 2
            axes.text(
                middle,
                1.02,
                drawable(stack, room),
                transform=axes.get_xaxis_transform(),
                ha="center",
                fontsize=8,
                color="0.3",
            )


def _draw_heat_map(panel: SubFigure, rows: Sequence[Row], blocks: int, left_out: int) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    column = "part" if len({row["part"] for row in rows}) <= MAX_COLUMNS else "kind"
    columns = list(dict.fromkeys(row[column] for row in rows))
    cells = defaultdict(list)
    for row in rows:
        cells[row["block"], columns.index(row[column])].append(row["k_ratio"])
    ratios = np.full((blocks, len(columns)), np.nan)
    for cell, values in cells.items():
        ratios[cell] = fmean(values)

    axes = panel.subplots()
    axes.grid(False)
    axes.patch.set(hatch="////", edgecolor="0.75")
    edges = np.arange(len(columns) + 1) - 0.5, np.arange(blocks + 1) - 0.5
    mesh = axes.pcolormesh(*edges, ratios, cmap="viridis", vmin=0, vmax=1, edgecolors="face", linewidth=0.1)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("block")
    axes.set_xticks(
        range(len(columns)),
        [drawable(name, 26) for name in columns],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    notes = [{"part": "part of the block", "kind": "kind of layer"}[column]]
    if np.isnan(ratios).any():
        notes.append("hatched: not edited")
    if left_out:
        notes.append(f"not shown: {plural(left_out, 'layer')} elsewhere")
    axes.set_xlabel("; ".join(notes))
    stack = drawable(rows[0]["stack"], 30)
    axes.set_title(f"k / r by block{f', {stack}' if stack else ''}")
    panel.colorbar(mesh, ax=axes, label="k / r", pad=0.02)


def _draw_cosines(panel: SubFigure, rows: Sequence[Row]) -> None:
    import numpy as np

    axes = panel.subplots()
    cosines = [cosine for row in rows for cosine in _cosines(row)]
    bins = histogram(cosines)
    edges, counts = np.array(bins["edges"]), bins["counts"]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=SKY, edgecolor="black", linewidth=0.4)
    mean = float(np.mean(cosines))
    axes.axvline(mean, color=VERMILLION, linestyle="--", label=f"mean {mean:.3f}")
    filled = np.flatnonzero(counts)
    axes.set_xlim(edges[filled[0]], edges[filled[-1] + 1])
    pairs = plural(len(rows[0]["cosines"]), "pair")
    axes.set_title(f"Cosines of updates, {plural(len(rows), 'layer')} × {pairs}")
    axes.set_xlabel("cosine")
    axes.set_ylabel("layers and pairs")
    axes.legend()
