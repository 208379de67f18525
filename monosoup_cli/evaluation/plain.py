"""A table of scores that anybody can write: JSONL or CSV with id, score or correct, and perhaps task."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from typing import Any

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.evaluation.place import Place
from monosoup_cli.evaluation.task import Choice, Task, add_score, lines_of
from monosoup_cli.evaluation.values import is_number
from monosoup_cli.formats.header import parse_json

__all__ = ["Plain"]

METRICS = ("correct", "score")
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
MAX_TASKS = 10_000


class Plain:
    """Files with a line for each sample. Higher scores are better."""

    name = "plain"
    files = "JSONL or CSV with id, and score or correct"

    def read(self, place: Place, choice: Choice) -> list[Task] | None:
        """Read a file; its tasks are those in the column `task`, or it is one of the file's name."""
        if place.path.suffix.lower() not in (".jsonl", ".csv") or place.is_folder():
            return None
        shown, stem = place.shown, place.path.stem
        tasks: dict[str, dict[str, dict[str, float]]] = {}
        for where, row in _rows(place):
            name, key = _text(row, "task", stem, where, shown), _text(row, "id", None, where, shown)
            if name not in tasks and len(tasks) >= MAX_TASKS:
                raise CheckpointError(f"has more than {MAX_TASKS:,} tasks", path=shown)
            metrics = [metric for metric in METRICS if row.get(metric) not in (None, "")]
            if not metrics:
                raise CheckpointError(f"{where}: has neither score nor correct", path=shown)
            for metric in metrics:
                scores = tasks.setdefault(name, {}).setdefault(metric, {})
                add_score(scores, key, _number(row, metric, where, shown), where, shown)
        if not tasks:
            raise CheckpointError("has no scores", path=shown)
        return [_task(name, found, choice, shown) for name, found in tasks.items()]


def _task(name: str, found: Mapping[str, dict[str, float]], choice: Choice, shown: str) -> Task:
    metric = choice.of(name, [metric for metric in METRICS if metric in found], shown)
    scores = found[metric]
    lacking = next((key for other in found.values() for key in other if key not in scores), None)
    if lacking is not None:
        raise CheckpointError(
            f"the task {crop(repr(name), 80)}: the id {crop(repr(lacking), 80)} has no {metric}",
            path=shown,
            expected="one for each id, or for none",
        )
    return Task(name, metric, True, math.fsum(scores.values()) / len(scores), shown, scores, harness="plain")


def _rows(place: Place) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the fields of every line, and where it is."""
    shown, lines = place.shown, lines_of(place)
    if place.path.suffix.lower() == ".jsonl":
        for number, line in lines:
            row = parse_json(line, f"{shown}, line {number:,}", "sample")
            if not isinstance(row, dict):
                raise CheckpointError(f"line {number:,}: is no object", path=shown)
            yield f"line {number:,}", row
        return
    try:
        reader = csv.DictReader(_decoded(lines, shown), strict=True)
        for row in reader:
            yield f"row {reader.line_num - 1:,}", row
    except csv.Error as error:
        raise CheckpointError(f"is not CSV: {error}", path=shown) from None


def _decoded(lines: Iterator[tuple[int, bytes]], shown: str) -> Iterator[str]:
    for number, line in lines:
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"line {number:,}: is not UTF-8", path=shown) from None


def _text(row: Mapping[str, Any], name: str, default: str | None, where: str, shown: str) -> str:
    value = row.get(name, default)
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
        return str(value)
    raise CheckpointError(
        f"{where}: has no {name}" if value in (None, "") else f"{where}: its {name} is no text", path=shown
    )


def _number(row: Mapping[str, Any], name: str, where: str, shown: str) -> float:
    value = row[name]
    if name == "correct":
        number = TRUTH.get(str(value).strip().lower().removesuffix(".0"))
    else:
        try:
            number = None if isinstance(value, bool | list | dict) else float(value)
        except (ValueError, OverflowError):
            number = None
    if not is_number(number):
        expected = "true, false, 1 or 0" if name == "correct" else "a number"
        raise CheckpointError(
            f"{where}: not a value of {name}", path=shown, expected=expected, found=crop(repr(value), 60)
        )
    return number
