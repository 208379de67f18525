"""A report as one HTML page that needs nothing beside itself: a table of layers, their spectra, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from monosoup_cli.report.measures import LABELS
from monosoup_cli.report.rows import Row, rows_of
from monosoup_cli.report.words import shown

__all__ = ["page"]

ASSETS = {
    "css": "page.css",
    "js": "page.js",
    "uplot_css": "uPlot.min.css",
    "uplot_js": "uPlot.iife.min.js",
    "uplot_licence": "uPlot.LICENSE",
}
MAX_SENTENCE = 2000
MAX_POINTS = 256
"""Of a spectrum, where the report holds all of it; no screen shows more."""


def page(report: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """The page of any command's report; `sentences` say in words what it comes to, and stand first.

    Whoever made the checkpoints may have chosen the names in a report: they travel as JSON in which
    no markup can begin, are escaped as everywhere, and are only ever shown as text.
    """
    rows = [_thinned(row) for row in rows_of(report)] if "layers" in report else []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = {
        "report": {name: value for name, value in report.items() if name != "layers"},
        "labels": LABELS,
        "columns": columns,
        "rows": [[row.get(name) for name in columns] for row in rows],
    }
    harmless = {**_harmless(data), "sentences": [shown(sentence, MAX_SENTENCE) for sentence in sentences]}
    texts = {name: _asset(file) for name, file in ASSETS.items()}
    return Template(_asset("page.html")).substitute(texts, data=_script_json(harmless))


def _thinned(row: Row) -> Row:
    """The row with a spectrum as exact and as fine as a screen shows it."""
    thin = {name: value for name, value in row.items() if name != "singular_values"}
    ratios = row.get("spectrum") or []
    if values := row.get("singular_values"):
        last, count = len(values) - 1, min(len(values), MAX_POINTS)
        # evenly spaced with both ends, as the report's own quantiles are
        places = [round(point * last / max(count - 1, 1)) for point in range(count)]
        ratios = [values[place] / (values[0] or 1) for place in places]
    return {**thin, "spectrum": [float(f"{ratio:.4g}") for ratio in ratios] or None}


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {shown(name): _harmless(inner) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_harmless(inner) for inner in value]
    return value


def _script_json(data: Any) -> str:
    """JSON, in ASCII, that ends no script element and begins no comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _asset(name: str) -> str:
    return (files("monosoup_cli.report") / "assets" / name).read_text("utf-8")
