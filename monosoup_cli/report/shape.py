"""The fields of a report that tables, pages and pictures use, to refuse files that lack them.

docs/report.schema.json describes the whole report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosoup_cli.report.measures import LABELS

__all__ = ["is_report"]


class Values:
    """The shape of an object with any names, whose values all have the same shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


NUMBER = (int, float)
NUMBER_OR_NONE = (int, float, type(None))
SUMMARY = {
    "tensors": int,
    "edited": int,
    "kept": Values(int),
    "parameters?": int,
    "parameters_edited": int,
    "means": Values(NUMBER_OR_NONE),
    "ranges": Values(([NUMBER], type(None))),
    "clamped?": int,
}
CHECKPOINT = {
    "path": str,
    "files": [{"name": str, "bytes": int}],
    "side_files?": [str],
    "left_out?": [{"name": str, "why": str}],
}
MEASURES = {
    **{f"{name}?": NUMBER_OR_NONE for name in LABELS},
    "spectrum?": ([NUMBER], type(None)),
    "singular_values?": ([NUMBER], type(None)),
    "rounding_sigma?": NUMBER_OR_NONE,
    "rounding_share?": NUMBER_OR_NONE,
    "gap_above_rounding?": NUMBER_OR_NONE,
    "reason": (str, type(None)),
}
SPECTRAL = (
    "rank",
    "effective_rank",
    "k",
    "rho",
    "cos_alpha",
    "lambda_high",
    "lambda_low",
    "equivalent_alpha",
    "anisotropy",
    "sigma_max",
    "update_norm",
)
"""Measures that a layer has all together or not at all."""
LAYER = {
    "name": str,
    "shape": [int],
    "dtype": str,
    "action": str,
    "stack?": (str, type(None)),
    "block?": (int, type(None)),
    "cosines?": ([NUMBER_OR_NONE], type(None)),
}
SPREAD = ({"mean": NUMBER, "min": NUMBER, "max": NUMBER}, type(None))
MAX_DEPTH = 20
"""How deep values may be nested."""
THRESHOLD = {"highest": NUMBER_OR_NONE, "members": [str]}
SLICE = {**MEASURES, "index": int}
REPORT = {
    "command": str,
    "tool": {"name": str, "version": str},
    "arguments": dict,
    "environment": dict,
    "inputs": [{"role": str, "source": str}],
    "timing": {"seconds": NUMBER, "bytes_read": int, "bytes_written": int},
    "output?": CHECKPOINT,
    "outputs?": [{**CHECKPOINT, "summary": SUMMARY}],
    "summary?": SUMMARY,
    "layers?": [LAYER],
    "stacks?": [{"name": str, "length": int}],
    "selection?": {
        "order": [str],
        "members": [str],
        "candidates?": [str],
        "layers?": int,
        "similarity?": [[NUMBER]],
        "thresholds?": [THRESHOLD],
        "decisions?": [{"candidate": str, "similarity": NUMBER, "joined": bool}],
        "trials?": [{"candidate": str, "score": NUMBER, "joined": bool}],
    },
    "verdict?": {"findings": [{"sentence": str}], "interpolation": ({"sentence": str}, type(None))},
    "similarity?": {
        "layers": int,
        "candidates": [str],
        "relative_updates": [NUMBER_OR_NONE],
        "similarity": [[NUMBER]],
        "thresholds": [THRESHOLD],
        "histogram": {"edges": [NUMBER], "counts": [int]},
        "stock": {"cosine": SPREAD, "ratio": SPREAD, "clamped": int},
    },
}
"""Shapes by name. A name with ? may be missing; a tuple lists alternatives."""


def is_report(report: Any) -> bool:
    """Whether a JSON value has all the fields that are used, with the right types."""
    if not _fits(report, REPORT) or not _is_shallow(report, MAX_DEPTH):
        return False
    for choice in (report.get("similarity"), report.get("selection")):
        if choice is not None and not _is_consistent(choice):
            return False
    if "outputs" in report:
        return bool(report["outputs"]) and all(_has_means(output["summary"]) for output in report["outputs"])
    if not {"summary", "layers"} <= report.keys():
        return False
    return _has_means(report["summary"]) and all(
        _fits(part, SLICE if "slices" in layer else MEASURES)
        and (part.get("k") is None or all(part.get(name) is not None for name in SPECTRAL))
        for layer in report["layers"]
        for part in layer.get("slices", [layer])
    )


def _has_means(summary: Mapping[str, Any]) -> bool:
    """Whether the same measures have means and ranges."""
    means, ranges = (
        {n for n, value in summary[name].items() if value is not None} for name in ("means", "ranges")
    )
    return means == ranges and all(len(summary["ranges"][name]) == 2 for name in ranges)


def _is_consistent(choice: Mapping[str, Any]) -> bool:
    """Whether all members are candidates, and the matrix has a row and a column per candidate."""
    candidates = choice.get("candidates", choice.get("order"))
    chosen = [choice.get("members", ()), *(one["members"] for one in choice.get("thresholds", ()))]
    named = [name for names in chosen for name in names]
    named += [trial["candidate"] for name in ("decisions", "trials") for trial in choice.get(name, ())]
    matrix = choice.get("similarity")
    relative = choice.get("relative_updates", candidates)
    is_square = matrix is None or {len(relative), len(matrix), *map(len, matrix)} == {len(candidates)}
    return bool(candidates) and set(named) <= set(candidates) and is_square


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, Mapping):
        return isinstance(value, dict) and all(
            _fits(value[name.rstrip("?")], inner) if name.rstrip("?") in value else name.endswith("?")
            for name, inner in shape.items()
        )
    if isinstance(shape, Values):
        return isinstance(value, dict) and all(_fits(inner, shape.shape) for inner in value.values())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(inner, shape[0]) for inner in value)
    if isinstance(shape, tuple):
        return any(_fits(value, option) for option in shape)
    return isinstance(value, shape)


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inside)
