"""A table of scores that anybody can write: JSONL or CSV with id, score or correct, and perhaps task."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from monosoup_cli.errors import CheckpointError, crop, some
from monosoup_cli.evaluation.place import Place
from monosoup_cli.evaluation.task import NAMED, Choice, Samples, Task, lines_of
from monosoup_cli.evaluation.values import MAX_SIZE, is_number
from monosoup_cli.formats.header import parse_json

__all__ = ["Plain"]

METRICS = ("correct", "score")
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
MAX_TASKS = 10_000
AGAIN = "evaluate this sample again, or remove it from the scores of every model"


class Plain:
    """Files with a line for each sample. Higher scores are better."""

    name = "plain"
    files = "JSONL or CSV with id, and score or correct"
    suffixes: ClassVar[Sequence[str]] = (".jsonl", ".csv")

    def read(self, file: Place, choice: Choice) -> list[Task]:
        """Read a file; its tasks are those in the column `task`, or it is one of the file's name."""
        shown, stem = file.shown, file.path.stem
        tasks: dict[str, dict[str, Samples]] = {}
        faults: dict[tuple[str, str], CheckpointError] = {}  # of metrics of tasks, which may not be chosen
        named = set[str]()
        for where, row in _rows(file):
            name, key = _text(row, "task", stem, where, shown), _text(row, "id", None, where, shown)
            if name not in tasks and len(tasks) >= MAX_TASKS:
                raise CheckpointError(f"has more than {MAX_TASKS:,} tasks", path=shown)
            metrics = [metric for metric in METRICS if row.get(metric) not in (None, "")]
            if "task" in row:
                named.add(name)
            if not metrics:
                is_there = any(metric in row for metric in METRICS)
                raise CheckpointError(
                    f"{where}: {_named(name, key)} has neither score nor correct",
                    path=shown,
                    found=None if is_there else _columns(row),
                    hint=AGAIN if is_there else None,
                )
            for metric in metrics:
                samples = tasks.setdefault(name, {}).setdefault(metric, Samples(name, shown))
                score = _number(row[metric], metric)
                if score is None:
                    faults.setdefault((name, metric), _no_score(row[metric], metric, name, key, where, shown))
                samples.add(key, score or 0.0, where)
        if not tasks:
            raise CheckpointError("has no scores", path=shown)
        return [
            replace(_task(name, found, choice, faults, shown), is_named_by_file=name not in named)
            for name, found in tasks.items()
        ]


def _task(
    name: str,
    found: Mapping[str, Samples],
    choice: Choice,
    faults: Mapping[tuple[str, str], CheckpointError],
    shown: str,
) -> Task:
    metric = choice.of(name, [metric for metric in METRICS if metric in found], shown)
    if (name, metric) in faults:
        raise faults[name, metric]
    scores = found[metric].scores()
    lacking = next((key for one in found.values() for key in one.scores() if key not in scores), None)
    if lacking is not None:
        raise CheckpointError(
            f"{_named(name, lacking)} has no {metric}", path=shown, expected="one for each id, or for none"
        )
    value = math.fsum(scores.values()) / len(scores)
    return Task(name, metric, True, value, shown, scores, harness="plain")


def _no_score(value: Any, metric: str, task: str, key: str, where: str, shown: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: the {metric} of {_named(task, key)}",
        path=shown,
        expected="true, false, 1 or 0" if metric == "correct" else f"a number of at most {MAX_SIZE:g}",
        found=crop(repr(value), 60),
        hint=AGAIN,
    )


def _named(task: str, key: str) -> str:
    return f"the id {crop(repr(key), 80)} of the task {crop(repr(task), 80)}"


def _rows(file: Place) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the fields of every line, and where it is."""
    shown, lines = file.shown, lines_of(file)
    if file.path.suffix.lower() == ".jsonl":
        for number, line in lines:
            row = parse_json(line, f"{shown}, line {number:,}", "sample", takes_nan=True)
            if not isinstance(row, dict):
                raise CheckpointError(f"line {number:,}: is no object", path=shown)
            yield f"line {number:,}", row
        return
    number = 0

    def decoded() -> Iterator[str]:
        nonlocal number
        for number, line in lines:
            yield _decoded(line, number, shown)

    try:
        reader = csv.DictReader(decoded(), strict=True)
        if reader.fieldnames and "id" not in reader.fieldnames:
            raise CheckpointError(
                "the first line names no column id",
                path=shown,
                expected="id, and score or correct, with commas between them",
                found=_columns(dict.fromkeys(reader.fieldnames)),
            )
        for row in reader:
            yield f"line {number:,}", row
    except csv.Error as error:
        raise CheckpointError(f"is not CSV: {error}", path=shown) from None


def _decoded(line: bytes, number: int, shown: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"line {number:,}: is not UTF-8", path=shown) from None


def _text(row: Mapping[str, Any], name: str, default: str | None, where: str, shown: str) -> str:
    value = row.get(name, default)
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
        return str(value)
    raise CheckpointError(
        f"{where}: has no {name}" if value in (None, "") else f"{where}: its {name} is no text",
        path=shown,
        found=None if name in row else _columns(row),
        hint="give the folder that these samples of lm-evaluation-harness are in"
        if "doc_id" in row
        else None,
    )


def _columns(row: Mapping[str, Any]) -> str:
    return some([crop(repr(name), 40) for name in row], NAMED) or "nothing"


def _number(value: Any, metric: str) -> float | None:
    if metric == "correct":
        return TRUTH.get(str(value).strip().lower().removesuffix(".0"))
    try:
        number = None if isinstance(value, bool | list | dict) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if is_number(number) else None
