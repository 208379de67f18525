"""A report as one self-contained HTML page: a table of layers, their spectra, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from string import Template
from typing import Any

from monosoup_cli.errors import some
from monosoup_cli.options import PROGRAMS
from monosoup_cli.report.files import asset
from monosoup_cli.report.glossary import MEANINGS, OF_SCORES, OF_SEARCH, OF_SWEEPS, WORDS
from monosoup_cli.report.kept import kept_line, moved_by_step
from monosoup_cli.report.layers import floor_of
from monosoup_cli.report.markup import frame
from monosoup_cli.report.measures import ALIASES, LABELS
from monosoup_cli.report.opening import OF_REACH, REACH, opening, reach_of
from monosoup_cli.report.outcome import outcomes
from monosoup_cli.report.records import sources_in, summary_in
from monosoup_cli.report.rows import Row, rows_of
from monosoup_cli.report.scores_page import scores_part
from monosoup_cli.report.searched import charts_of, notes_on_search, roles_of
from monosoup_cli.report.steps import before_step
from monosoup_cli.report.words import name_parts, printable

__all__ = ["page"]

ASSETS = {
    "words_js": "words.js",
    "outputs_js": "outputs.js",
    "layers_js": "layers.js",
    "pictures_js": "pictures.js",
    "js": "page.js",
    "uplot_js": "uPlot.iife.min.js",
    "uplot_licence": "uPlot.LICENSE",
}
NAMED = 3
"""How many checkpoints the title names."""
MAX_SENTENCE = 2000
MAX_POINTS = 256
"""The most points of a spectrum; no screen shows more."""


def page(report: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """Return the page of a report, with the `sentences` of its verdict at the top.

    Names in a report are untrusted. The page gets them escaped, in JSON without markup, and shows them only
    as text.
    """
    scores, name = report.get("scores"), _name_of(report)
    arguments, measured = report["arguments"], outcomes(scores) if scores else []
    rows = [_thin_row(row) for row in rows_of(report)] if "layers" in report else []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = {
        "report": {
            **{name: value for name, value in report.items() if name not in ("layers", "scores")},
            "arguments": {name: value for name, value in arguments.items() if value or name not in PROGRAMS},
        },
        "labels": LABELS,
        "meanings": MEANINGS,
        "words": _words_of(report, rows),
        "reach": [
            *(names.get(report["command"]) for names in (REACH, OF_REACH)),
            [reach_of(report, one) for one in report.get("outputs", ())],
        ],
        "floor": floor_of(row["spectrum"] for row in rows if row["spectrum"]),
        "kept": _kept_in(report),
        "moved": moved_by_step(report["command"], arguments),
        "before": before_step(report),
        "roles": roles_of(report["search"]) if "search" in report else {},
        "columns": columns,
        "rows": [[row.get(name) for name in columns] for row in rows],
        "charts": [
            {**chart._asdict(), "curves": [curve._asdict() for curve in chart.curves]}
            for chart in charts_of(report)
        ],
    }
    notes = notes_on_search(report) if "search" in report else []
    told = [*(f"{note[0].upper()}{note[1:]}." for note in notes), *sentences]
    harmless = {
        **_make_printable(data),
        "title": printable(name),
        "opening": [
            " ".join(printable(sentence, MAX_SENTENCE) for sentence in paragraph)
            for paragraph in (measured, opening(report))
            if paragraph
        ],
        "sentences": [printable(sentence, MAX_SENTENCE) for sentence in told],
    }
    texts = {
        **{one: asset(file) for one, file in ASSETS.items()},
        "scores": f'<div id="scores">{scores_part(scores)}</div>' if scores else "",
        "data": _script_json(harmless),
    }
    body = Template(asset("page.html")).substitute(texts)
    return frame(
        name,
        "search" if "search" in report else report["command"],
        body,
        css=["uPlot.min.css", "page.css"],
        has_scripts=True,
    )


def _words_of(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """The words of the page that are no measures, with what they mean."""
    left_out = set() if any(row["spectrum"] for row in rows) else {"spectrum"}
    made = report.get("outputs") or [report]
    if all(one["summary"]["means"].get("lambda_high") is None for one in made):
        left_out.add("strong and weak part")
    return {
        **{word: meaning for word, meaning in WORDS.items() if word not in left_out},
        **(OF_SEARCH if "search" in report else {}),
        **(OF_SWEEPS if isinstance(report["arguments"].get("wise"), list) else {}),
        **(OF_SCORES if "scores" in report else {}),
    }


def _kept_in(report: Mapping[str, Any]) -> tuple[str, str]:
    """The line on tensors that are not edited; every output of a sweep has the same."""
    roles = [entry["role"] for entry in report["inputs"]]
    return kept_line(summary_in(report)["kept"], report["command"], report["arguments"], roles)


def _name_of(report: Mapping[str, Any]) -> str:
    """What a report is on: its output, or the fine-tuned checkpoints that it looks at."""
    paths = sources_in(report, "finetuned")
    if "output" in report or "outputs" in report:
        output = report["output"]["path"] if "output" in report else report["arguments"].get("output")
        paths = [str(output or report["outputs"][0]["path"])]
    return some([PurePath(path).name or path for path in paths], NAMED) or "report"


def _thin_row(row: Row) -> Row:
    """Reduce a row's spectrum to the precision and the points that a screen shows."""
    left_out = {"singular_values", *ALIASES.values()}
    thin = {name: value for name, value in row.items() if name not in left_out}
    ratios = row.get("spectrum") or []
    if values := row.get("singular_values"):
        last, count = len(values) - 1, min(len(values), MAX_POINTS)
        # evenly spaced with both ends, as the report's own quantiles are
        places = [round(point * last / max(count - 1, 1)) for point in range(count)]
        ratios = [values[place] / (values[0] or 1) for place in places]
    thin["parts"] = name_parts(printable(row["name"]))
    return {**thin, "spectrum": [float(f"{ratio:.4g}") for ratio in ratios] or None}


def _make_printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(name): _make_printable(inner) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_make_printable(inner) for inner in value]
    return value


def _script_json(data: Any) -> str:
    """Return ASCII JSON that cannot end a script element or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
