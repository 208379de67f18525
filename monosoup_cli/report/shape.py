"""The fields of a report that tables, pages and pictures use, to refuse files that lack them.

docs/report.schema.json describes the whole report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from monosoup_cli.errors import crop
from monosoup_cli.report.measures import LABELS

__all__ = ["fault_of"]


class Values:
    """The shape of an object with any names, whose values all have the same shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


KINDS = {
    type(None): "null",
    dict: "object",
    list: "list",
    str: "text",
    int: "integer",
    float: "number",
    bool: "truth value",
}
"""What JSON's types are called."""
NUMBER = (float, int)
NUMBER_OR_NONE = (float, int, type(None))
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
    "files": [{"name": str, "bytes": int, "sha256?": str}],
    "other_files?": [{"name": str, "bytes": int, "sha256": str}],
    "side_files?": [str],
    "left_out?": [{"name": str, "why": str}],
    "arguments?": Values((float, int, str)),
    "scores?": Values(NUMBER),
}
OPTIONAL_MEASURES = {
    **{f"{name}?": NUMBER_OR_NONE for name in LABELS},
    "spectrum?": ([NUMBER], type(None)),
    "singular_values?": ([NUMBER], type(None)),
    "rounding_sigma?": NUMBER_OR_NONE,
    "rounding_share?": NUMBER_OR_NONE,
    "gap_above_rounding?": NUMBER_OR_NONE,
}
MEASURES = {**OPTIONAL_MEASURES, "reason": (str, type(None))}
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
    **OPTIONAL_MEASURES,
    "name": str,
    "shape": [int],
    "dtype": str,
    "action": str,
    "settings?": dict,
    "stack?": (str, type(None)),
    "block?": (int, type(None)),
    "cosines?": ([NUMBER_OR_NONE], type(None)),
}
SPREAD = ({"mean": NUMBER, "min": NUMBER, "max": NUMBER}, type(None))
MAX_COSINE = 1.0 + 1e-9
"""1, and what rounding may add to a mean of cosines."""
MAX_DEPTH = 20
"""How deep values may be nested."""
OF_SFGS = ("candidates", "layers", "similarity", "decisions", "thresholds")
"""What a selection without trials has."""
THRESHOLD = {"highest": NUMBER_OR_NONE, "members": [str]}
SLICE = {**MEASURES, "index": int}
COUNT = {"count": int, "of": int}
SCORED = {
    "base": NUMBER,
    "finetuned": NUMBER,
    "edited": [
        {
            "value": NUMBER,
            "difference": NUMBER,
            "interval": ([NUMBER], type(None)),
            "test": (str, type(None)),
            "p": NUMBER_OR_NONE,
            "corrected_p": NUMBER_OR_NONE,
            **{
                f"{kind}?": COUNT
                for kind in ("healed", "preserved", "newly_damaged", "retained", "like_base")
            },
        }
    ],
}
SCORES = {
    "models": {"base": str, "finetuned": str, "edited": [str]},
    "tasks": [{**SCORED, "name": str, "metric": str, "higher_is_better": bool}],
    "groups": [
        {**SCORED, "name": str, "higher_is_better": (bool, type(None)), "tasks": [str], "metrics": [str]}
    ],
    "notes": [str],
}
REPORT = {
    "command": str,
    "tool": {"name": str, "version": str},
    "arguments": {"layers?": (Values(dict), type(None)), "weights?": ([NUMBER], type(None))},
    "environment": dict,
    "inputs": [
        {
            "role": str,
            "source": str,
            "revision?": (str, type(None)),
            "files?": [{"name": str, "bytes": int, "header_sha256": str, "modified?": str}],
            "other_files?": [{"name": str, "bytes": int, "modified": str}],
            "config_sha256?": str,
        }
    ],
    "timing": {"seconds": NUMBER, "score_seconds?": NUMBER, "bytes_read": int, "bytes_written": int},
    "doubts?": [str],
    "output?": CHECKPOINT,
    "outputs?": [{**CHECKPOINT, "summary": SUMMARY}],
    "summary?": SUMMARY,
    "layers?": [LAYER],
    "stacks?": [{"name": str, "length": int}],
    "selection?": {
        "order": [str],
        "members": [str],
        "scores?": [{"source": str, "score": NUMBER}],
        "candidates?": [str],
        "layers?": int,
        "similarity?": [[NUMBER]],
        "thresholds?": [THRESHOLD],
        "decisions?": [{"candidate": str, "similarity": NUMBER, "joined": bool}],
        "trials?": [{"candidate": str, "score": NUMBER, "joined": bool}],
    },
    "search?": {
        "scores": [str],
        "finetuned": [{"source": str, "scores": Values(NUMBER), "final_scores?": Values(NUMBER)}],
        "candidates": [{"candidate": str, "scores": Values(NUMBER)}],
        "prefer": str,
        "max_loss": Values(NUMBER),
        "front": [str],
        "chosen": str,
        "is_within": bool,
        "not_tried": [str],
        "command": str,
    },
    "scores?": SCORES,
    "verdict?": {
        "findings": [{"sentence": str}],
        "size?": ({"sentence": str}, type(None)),
        "interpolation": ({"sentence": str}, type(None)),
        "rounding_loss?": ({"sentence": str}, type(None)),
    },
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


def fault_of(report: Any) -> str | None:
    """What a JSON value lacks to be a report, with the name of the field; None for a report."""
    if not isinstance(report, dict):
        return "no object"
    fault = _misfit(report, REPORT, "")
    if fault is not None or not _is_shallow(report, MAX_DEPTH):
        return fault or "values are nested too deep"
    for name in ("similarity", "selection"):
        if name in report and not _is_consistent(report[name]):
            return f"{name} contradicts itself"
    if "search" in report and not _is_whole_search(report["search"], report):
        return "search contradicts itself"
    scores = report.get("scores")
    if scores is not None and not _has_all_scores(scores):
        return "scores contradicts itself"
    selection = report.get("selection")
    if selection is not None and "trials" not in selection:
        lacking = next((name for name in OF_SFGS if name not in selection), None)
        if lacking is not None:
            return f"selection.{lacking} is missing"
    if "outputs" in report:
        summaries = {f"outputs[{n}].summary": output["summary"] for n, output in enumerate(report["outputs"])}
        if not summaries:
            return "outputs is empty"
    else:
        missing = next((name for name in ("summary", "layers") if name not in report), None)
        if missing is not None:
            return f"{missing} is missing"
        summaries = {"summary": report["summary"]}
    bad = next((where for where, summary in summaries.items() if not _has_means(summary)), None)
    if bad is not None:
        return f"{bad} contradicts itself: its means and ranges are of other measures"
    faults = (_fault_of_layer(number, layer) for number, layer in enumerate(report.get("layers", ())))
    return next(filter(None, faults), None)


def _fault_of_layer(number: int, layer: Mapping[str, Any]) -> str | None:
    """What the measures of a layer, or of its slices, lack."""
    where = f"layers[{number}]"
    if "slices" in layer and not isinstance(layer["slices"], list):
        return f"{where}.slices is no list"
    for index, part in enumerate(layer.get("slices", [layer])):
        inner, shape = (f"{where}.slices[{index}]", SLICE) if "slices" in layer else (where, MEASURES)
        fault = _misfit(part, shape, inner)
        if fault is None and part.get("k") is not None:
            lacking = next((name for name in SPECTRAL if part.get(name) is None), None)
            fault = lacking and f"{inner}.{lacking} is missing"
        if fault is not None:
            return fault
    return None


def _has_means(summary: Mapping[str, Any]) -> bool:
    """Whether the same measures have means and ranges."""
    means, ranges = (
        {n for n, value in summary[name].items() if value is not None} for name in ("means", "ranges")
    )
    return means == ranges and all(len(summary["ranges"][name]) == 2 for name in ranges)


def _has_all_scores(scores: Mapping[str, Any]) -> bool:
    """Whether every task and group has a score of each edited model, and every interval two ends."""
    records = [*scores["tasks"], *scores["groups"]]
    intervals = [one["interval"] for record in records for one in record["edited"]]
    has_all = all(len(record["edited"]) == len(scores["models"]["edited"]) for record in records)
    return has_all and all(interval is None or len(interval) == 2 for interval in intervals)


def _is_consistent(choice: Mapping[str, Any]) -> bool:
    """Whether all that is named are candidates, and there are as many numbers as these and bins need."""
    candidates = choice.get("candidates", choice.get("order"))
    order, thresholds = choice.get("order", candidates), choice.get("thresholds", ())
    chosen = [order, choice.get("members", ()), *(one["members"] for one in thresholds)]
    named = [name for names in chosen for name in names]
    named += [trial["candidate"] for name in ("decisions", "trials") for trial in choice.get(name, ())]
    matrix = choice.get("similarity")
    relative = choice.get("relative_updates", candidates)
    is_square = matrix is None or {len(relative), len(matrix), *map(len, matrix)} == {len(candidates)}
    histogram = choice.get("histogram", {"counts": [1], "edges": [0, 1]})
    counts, stock = histogram["counts"], choice.get("stock", {})
    has_bins = len(histogram["edges"]) == len(counts) + 1 and min(counts, default=0) >= 0
    has_all = is_square and has_bins and (choice.get("layers") == 0 or None not in stock.values())
    return bool(order) and set(named) <= set(candidates) and has_all and _has_cosines(choice)


def _has_cosines(choice: Mapping[str, Any]) -> bool:
    """Whether similarities and thresholds are cosines; the first threshold may be null."""
    first, *later = [one["highest"] for one in choice.get("thresholds", ())] or [None]
    cells = [value for row in choice.get("similarity", ()) for value in row]
    are_cosines = all(value is not None and abs(value) <= MAX_COSINE for value in (*cells, *later))
    return are_cosines and (first is None or abs(first) <= MAX_COSINE)


def _is_whole_search(search: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    """Whether it has one or two scores of everything, and its choices are among its candidates."""
    tried = {one["candidate"] for one in search["candidates"]}
    scored = [*search["candidates"], *search["finetuned"]]
    has_all = bool(search["finetuned"]) and all({*search["scores"]} <= one["scores"].keys() for one in scored)
    is_known = {search["chosen"], *search["front"]} <= tried
    is_known &= {search["prefer"], *search["max_loss"]} <= {*search["scores"]}
    return 1 <= len(search["scores"]) <= 2 and has_all and is_known and "output" in report


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    """The first field in a value that is missing or has another type; None where it has the shape."""
    if isinstance(shape, tuple):
        faults = [_misfit(value, option, where) for option in shape]
        return None if None in faults else faults[0]
    kinds = ((Mapping, dict), (Values, dict), (list, list))
    expected: Any = next((kind for outer, kind in kinds if isinstance(shape, outer)), shape)
    # JSON's true is no number, although Python's is
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        return f"{where} is no {KINDS[expected]}"
    inside: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(shape, Mapping):
        missing = next((name for name in shape if not name.endswith("?") and name not in value), None)
        if missing is not None:
            return f"{_field(where, missing)} is missing"
        names = {name.rstrip("?"): inner for name, inner in shape.items()}
        inside = ((_field(where, n), value[n], inner) for n, inner in names.items() if n in value)
    elif isinstance(shape, Values):
        inside = ((_field(where, name), inner, shape.shape) for name, inner in value.items())
    elif isinstance(shape, list):
        inside = ((f"{where}[{number}]", inner, shape[0]) for number, inner in enumerate(value))
    return next(filter(None, (_misfit(inner, kind, name) for name, inner, kind in inside)), None)


def _field(where: str, name: str) -> str:
    return f"{where}.{crop(name, 60)}" if where else crop(name, 60)


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inside)
