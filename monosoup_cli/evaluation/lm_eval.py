"""What lm-evaluation-harness leaves: results_TIME.json, and with --log_samples samples_TASK_TIME.jsonl.

They are in OUTPUT/MODEL/, where OUTPUT is its `--output_path`. Where a task was run several times, its
newest results count. Written against lm-evaluation-harness 0.4.13; older 0.4 versions leave fewer fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, crop, some
from monosoup_cli.evaluation.task import NAMED, Choice, Dataset, Task, add_score, lines_of
from monosoup_cli.evaluation.values import is_number
from monosoup_cli.formats.files import InputFile, read_json_file
from monosoup_cli.formats.header import parse_json

__all__ = ["LmEval"]

RESULTS = re.compile(r"(?:results|.*)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json")
"""The name of a file of results, whose stem `--output_path STEM.json` may give."""
SAME = 1e-6
"""How far the mean of the samples may be from the total, relative to it where that is above 1."""


class LmEval:
    """Folders and files of `lm_eval --output_path`."""

    name = "lm-evaluation-harness"
    files = "results_….json of lm-evaluation-harness"

    def read(self, path: Path, shown: str, choice: Choice) -> list[Task] | None:
        """Read the folder of a model, the folder around it, or a file of results."""
        if not path.is_dir():
            found = _results(path, shown) if path.suffix.lower() == ".json" else None
            return None if found is None else list(_tasks(path, shown, found, list(found["results"]), choice))
        names = _results_in(path)
        if not names:
            models = sorted(one.name for one in path.iterdir() if one.is_dir() and _results_in(one))
            if len(models) > 1:
                raise CheckpointError(
                    "has the results of several models",
                    path=shown,
                    expected="the folder of one",
                    found=some([crop(one, 80) for one in models], NAMED),
                )
            return self.read(path / models[0], f"{shown}/{models[0]}", choice) if models else None
        tasks: dict[str, Task] = {}
        for name in sorted(names, key=_time, reverse=True):
            inside, found = f"{shown}/{name}", _results(path / name, f"{shown}/{name}")
            if found is not None:
                new = [task for task in found["results"] if task not in tasks]
                tasks |= {task.name: task for task in _tasks(path / name, inside, found, new, choice)}
        return list(tasks.values()) or None


def _results_in(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if RESULTS.fullmatch(one.name) and not one.is_dir()]


def _time(name: str) -> str:
    found = RESULTS.fullmatch(name)
    return found[1] if found else ""


def _results(path: Path, shown: str) -> dict[str, Any] | None:
    """The content of a file of results; None if it is none."""
    content = read_json_file(InputFile(path, shown), "file of results", is_strict=False)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return None
    for part in ("configs", "group_subtasks", "higher_is_better", "n-samples"):
        if not isinstance(content.setdefault(part, {}), dict):
            raise CheckpointError(f"its {part} is no object", path=shown)
    return content


def _tasks(
    path: Path, shown: str, content: Mapping[str, Any], wanted: Sequence[str], choice: Choice
) -> Iterator[Task]:
    subtasks = content["group_subtasks"]
    is_group = {name for name, inner in subtasks.items() if isinstance(inner, list) and inner}
    for name in wanted:
        if name in is_group:  # its tasks are there too
            continue
        values = content["results"][name]
        if not isinstance(values, dict):
            raise CheckpointError(f"the result of {crop(repr(name), 80)} is no object", path=shown)
        metrics = {
            key: float(value)
            for key, value in values.items()
            if "," in key and "_stderr," not in key and is_number(value)
        }
        if not metrics:
            raise CheckpointError(f"the task {crop(repr(name), 80)} has no metric", path=shown)
        metric = choice.of(name, list(metrics), shown)
        config = content["configs"].get(name)
        config = config if isinstance(config, dict) else {}
        scores, contents, why = _samples(path, shown, name, metric, content)
        if scores is not None:
            mean = math.fsum(scores.values()) / len(scores)
            if abs(mean - metrics[metric]) > SAME * max(1.0, abs(mean)):
                scores, why = None, f"its {_plain(metric)} is no mean over samples"
        yield Task(
            name,
            _plain(metric),
            _is_higher_better(name, metric.partition(",")[0], content, config),
            metrics[metric],
            shown,
            scores,
            why,
            contents,
            sorted(_above(name, subtasks)),
            LmEval.name,
            _dataset(config),
        )


def _plain(metric: str) -> str:
    return metric.removesuffix(",none")


def _above(name: str, subtasks: Mapping[str, Any]) -> set[str]:
    """The groups that a task is in, directly or not."""
    found, new = set[str](), {name}
    while new:
        new = {
            group
            for group, inner in subtasks.items()
            if isinstance(inner, list) and not new.isdisjoint(one for one in inner if isinstance(one, str))
        } - found
        found |= new
    return found - {name}


def _is_higher_better(name: str, metric: str, content: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    of_task = content["higher_is_better"].get(name)
    if isinstance(of_task, dict) and isinstance(of_task.get(metric), bool):
        return bool(of_task[metric])
    listed = config.get("metric_list")
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict) and one.get("metric") == metric:
            return one.get("higher_is_better") is not False
    return True


def _dataset(config: Mapping[str, Any]) -> Dataset | None:
    place, part = config.get("dataset_path"), config.get("dataset_name")
    if not isinstance(place, str):
        return None
    return Dataset(place, part if isinstance(part, str) else "default")


def _samples(
    path: Path, shown: str, task: str, metric: str, content: Mapping[str, Any]
) -> tuple[dict[str, float] | None, dict[str, str], str]:
    """The score and the hash of the document of each sample; or why there are no scores."""
    name, of_filter = metric.split(",", 1)
    file = f"samples_{task}_{_time(path.name)}.jsonl"
    if "/" in task or not (path.parent / file).is_file():
        return None, {}, "the harness left no samples"
    inside = f"{shown.removesuffix(path.name)}{file}"
    scores: dict[str, float] = {}
    contents: dict[str, str] = {}
    for number, line in lines_of(path.parent / file, inside):
        where = f"line {number:,}"
        sample = parse_json(line, f"{inside}, {where}", "sample", is_strict=False)
        if not isinstance(sample, dict) or not isinstance(sample.get("doc_id"), (int, str)):
            raise CheckpointError(f"{where}: is no sample with a doc_id", path=inside)
        if sample.get("filter", "none") != of_filter:
            continue
        score = sample.get(name)
        if isinstance(score, bool):
            score = float(score)
        if not is_number(score):
            return None, {}, f"its {_plain(metric)} has no score of each sample"
        add_score(scores, str(sample["doc_id"]), float(score), where, inside)
        if isinstance(sample.get("doc_hash"), str):
            contents[str(sample["doc_id"])] = sample["doc_hash"]
    counts = content["n-samples"].get(task)
    expected = counts.get("effective") if isinstance(counts, dict) else None
    if isinstance(expected, int) and expected != len(scores):
        raise CheckpointError(
            "not all samples are there", path=inside, expected=f"{expected:,}", found=f"{len(scores):,}"
        )
    if not scores:
        return None, {}, f"no sample has the filter {crop(of_filter, 80)}"
    return scores, contents, ""
