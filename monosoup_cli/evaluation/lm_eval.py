"""What lm-evaluation-harness leaves: results_TIME.json, and with --log_samples samples_TASK_TIME.jsonl.

They are in OUTPUT/MODEL/, where OUTPUT is its `--output_path`. Where a task was run several times, its
newest results count. Written against lm-evaluation-harness 0.4.13; older 0.4 versions leave fewer fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from monosoup_cli.errors import CheckpointError, crop, some
from monosoup_cli.evaluation.place import Place
from monosoup_cli.evaluation.task import NAMED, Choice, Dataset, Samples, Task, lines_of
from monosoup_cli.evaluation.values import is_number, is_number_or_missing, not_a_number, plain, value_of
from monosoup_cli.formats.files import read_json_file
from monosoup_cli.formats.header import parse_json

__all__ = ["LmEval"]

RESULTS = re.compile(r"(?!\._).*_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json")
"""The name of a file of results, whose stem `--output_path STEM.json` may give. `._…` are macOS's own."""
LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score")
"""The metrics of the harness that are better when lower, for files of versions that do not say."""
SAME = 1e-6
"""How far the mean of the samples may be from the total, relative to it where that is above 1."""


class LmEval:
    """Files and folders of `lm_eval --output_path`."""

    name = "lm-evaluation-harness"
    files = "results_….json of lm-evaluation-harness"
    suffixes: ClassVar[Sequence[str]] = (".json",)

    def read(self, file: Place, choice: Choice) -> list[Task] | None:
        """Read a file of results."""
        found = _results(file)
        return None if found is None else list(_tasks(file, found, list(found["results"]), choice))

    def read_folder(self, place: Place, choice: Choice) -> list[Task] | None:
        """Read the folder of a model, or the folder around it; None if it is neither."""
        files = _results_in(place)
        if not files:
            models = [one for one in place.folders() if _results_in(one)]
            if len(models) > 1:
                raise CheckpointError(
                    "has the results of several models",
                    path=place.shown,
                    expected="the folder of one",
                    found=some([crop(one.path.name, 80) for one in models], NAMED),
                )
            return self.read_folder(models[0], choice) if models else None
        tasks: dict[str, Task] = {}
        for file in sorted(files, key=_time, reverse=True):
            found = _results(file)
            if found is not None:
                new = [task for task in found["results"] if task not in tasks]
                tasks |= {task.name: task for task in _tasks(file, found, new, choice)}
        return list(tasks.values()) or None


def _results_in(folder: Place) -> list[Place]:
    return [one for one in folder.inside() if RESULTS.fullmatch(one.path.name) and not one.is_folder()]


def _time(file: Place) -> str:
    found = RESULTS.fullmatch(file.path.name)
    return found[1] if found else ""


def _results(file: Place) -> dict[str, Any] | None:
    """The content of a file of results; None if it is none."""
    content = read_json_file(file.open(), "file of results", is_strict=False)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return None
    for part in ("configs", "group_subtasks", "higher_is_better", "n-samples"):
        if not isinstance(content.setdefault(part, {}), dict):
            raise CheckpointError(f"its {part} is no object", path=file.shown)
    return content


def _tasks(file: Place, content: Mapping[str, Any], wanted: Sequence[str], choice: Choice) -> Iterator[Task]:
    shown = file.shown
    subtasks = content["group_subtasks"]
    is_group = {name for name, inner in subtasks.items() if isinstance(inner, list) and inner}
    for name in wanted:
        if name in is_group:  # its tasks are there too
            continue
        values = content["results"][name]
        if not isinstance(values, dict):
            raise CheckpointError(f"the result of {crop(repr(name), 80)} is no object", path=shown)
        metrics = {
            key: value
            for key, value in values.items()
            if "," in key and "_stderr," not in key and is_number_or_missing(value)
        }
        if not metrics:
            raise CheckpointError(f"the task {crop(repr(name), 80)} has no metric", path=shown)
        metric = choice.of(name, list(metrics), shown)
        value = value_of(name, metric, metrics, shown)
        config = content["configs"].get(name)
        config = config if isinstance(config, dict) else {}
        samples = file.beside(f"samples_{name}_{_time(file)}.jsonl")
        scores, contents, why = _samples(samples, name, metric, metrics, content)
        if scores is not None:
            mean = math.fsum(scores.values()) / len(scores)
            if abs(mean - value) > SAME * max(1.0, abs(mean)):
                scores, why = None, f"its {plain(metric)} is no mean over samples"
        yield Task(
            name,
            plain(metric),
            _is_higher_better(name, metric.partition(",")[0], content, config),
            value,
            (samples or file).shown,
            scores,
            why,
            contents,
            sorted(_above(name, subtasks)),
            LmEval.name,
            _dataset(config),
        )


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
        is_told = isinstance(one, dict) and isinstance(one.get("higher_is_better"), bool)
        if is_told and one.get("metric") == metric:
            return bool(one["higher_is_better"])
    return metric not in LOWER


def _dataset(config: Mapping[str, Any]) -> Dataset | None:
    place, part = config.get("dataset_path"), config.get("dataset_name")
    if not isinstance(place, str):
        return None
    return Dataset(place, part if isinstance(part, str) else "default")


def _samples(
    file: Place | None, task: str, metric: str, metrics: Mapping[str, Any], content: Mapping[str, Any]
) -> tuple[dict[str, float] | None, dict[str, str], str]:
    """The score and the hash of the document of each sample; or why there are no scores."""
    if file is None:
        return None, {}, "the harness left no samples"
    name, of_filter = metric.split(",", 1)
    inside = file.shown
    samples = Samples(task, inside)
    contents: dict[str, str] = {}
    for number, line in lines_of(file):
        where = f"line {number:,}"
        sample = parse_json(line, f"{inside}, {where}", "sample", is_strict=False)
        if not isinstance(sample, dict) or not isinstance(sample.get("doc_id"), (int, str)):
            raise CheckpointError(f"{where}: is no sample with a doc_id", path=inside)
        if sample.get("filter", "none") != of_filter:
            continue
        score, key = sample.get(name), str(sample["doc_id"])
        if not isinstance(score, (int, float)):
            return None, {}, f"its {plain(metric)} has no score of each sample"
        if not (isinstance(score, bool) or is_number(score)):
            of = f" for the id {crop(repr(key), 80)} ({where})"
            raise not_a_number(score, task, metric, metrics, inside, of)
        samples.add(key, float(score), where)
        if isinstance(sample.get("doc_hash"), str):
            contents[key] = sample["doc_hash"]
    scores = samples.scores()
    counts = content["n-samples"].get(task)
    expected = counts.get("effective") if isinstance(counts, dict) else None
    if isinstance(expected, int) and expected != len(scores):
        raise CheckpointError(
            "not all samples are there", path=inside, expected=f"{expected:,}", found=f"{len(scores):,}"
        )
    if not scores:
        return None, {}, f"no sample has the filter {crop(of_filter, 80)}"
    return scores, contents, ""
