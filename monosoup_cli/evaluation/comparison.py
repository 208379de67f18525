"""Base, fine-tuned and edited models side by side, by what harnesses left of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any
from zlib import crc32

from monosoup_cli.errors import MismatchError, UsageError, crop, some
from monosoup_cli.evaluation.statistics import LEVEL, REPLICATES, Evidence, evidence_of, group_evidence, holm
from monosoup_cli.evaluation.table import read_tasks
from monosoup_cli.evaluation.task import NAMED, Choice, Task

__all__ = ["Progress", "compare_scores", "names_of"]

BACK = 0.9
"""From which share on an edited model is said to have gone back to the base."""
BACK_SAMPLES = 10
"""How many samples, on which base and fine-tuned differ, that takes."""

SUFFIXES = {".csv", ".json", ".jsonl"}
ONE = "scores"
"""What the task is called of files that name none, where the files have different names."""

KINDS = {
    # of samples where base and fine-tuned are so, those where the edited model is right
    "healed": (True, False),
    "preserved": (True, True),
    "retained": (False, True),
}


Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Is called with the number of samples; what it yields gets how many more are compared."""


@dataclass(frozen=True)
class _Row:
    """One task, or a group of tasks, for one edited model."""

    record: dict[str, Any]
    evidence: Evidence | None


def compare_scores(
    base: str,
    finetuned: str,
    edited: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    metric: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare what harnesses left of a base, its fine-tune, and edits of that.

    Args:
        base: Files of the base.
        finetuned: Files of the fine-tuned model.
        edited: Files of each edited model.
        groups: The globs of "in" and "out", over the names of tasks and of their groups.
        metric: The metrics that are compared, as `Choice` takes them.
        progress: Shows how many samples of how many are compared.

    Returns:
        A dict with `models`, `tasks`, `groups` and `notes`.

    Raises:
        CheckpointError: A file cannot be read, or is malformed.
        MismatchError: Models do not have the same samples.
        UsageError: A glob or a metric matches nothing.
    """
    sources = [base, finetuned, *edited]
    choice, names = Choice(metric), names_of(sources)
    read = [read_tasks(source, choice) for source in sources]
    choice.check_used()
    models = _of_one_task(sources, [tasks for tasks, _ in read])
    common = list(models[0])
    for source, model in zip(sources, models, strict=True):
        expected, common = common, [name for name in common if name in model]
        if not common:
            raise MismatchError(
                "has none of the tasks of the models before it",
                path=source,
                expected=some([crop(name, 60) for name in expected], NAMED),
                found=some([crop(name, 60) for name in model], NAMED),
                hint="name the files of a task alike, or add a column `task`"
                if any(task.is_named_by_file for task in (*models[0].values(), *model.values()))
                else "evaluate all models on the same tasks",
            )
    compared = [[model[name] for model in models] for name in common]
    for tasks in compared:
        _check_alike(tasks)
    _check_common(models, names, common, groups)
    members = _members([tasks[0] for tasks in compared], groups)
    samples = sum(len(tasks[0].scores or ()) for tasks in compared)
    with nullcontext(lambda compared: None) if progress is None else progress(samples) as advance:
        rows = [_task_rows(tasks, advance) for tasks in compared]
    by_name = dict(zip(common, rows, strict=True))
    records = [_task_record(tasks, of_task, members) for tasks, of_task in zip(compared, rows, strict=True)]
    of_groups = [
        _group_record(
            name, [(record, by_name[record["name"]]) for record in records if record["name"] in inside]
        )
        for name, inside in members.items()
        if inside
    ]
    _correct(records, of_groups)
    return {
        "models": {"base": names[0], "finetuned": names[1], "edited": names[2:]},
        "level": LEVEL,
        "replicates": REPLICATES,
        "tasks": records,
        "groups": of_groups,
        "notes": [
            *_links(names, [linked for _, linked in read]),
            *_notes(models, names, common, members),
            *_back(records, names[2:]),
        ],
    }


def names_of(sources: Sequence[str]) -> list[str]:
    """The last components of paths, as many as tell them apart, without the suffixes of score files.

    Raises:
        UsageError: A path is given twice.
    """
    paths = list(map(PurePath, sources))
    bare = [path.with_suffix("") if path.suffix in SUFFIXES else path for path in paths]
    twice = next((one for one in sources if sources.count(one) > 1), None)
    for some_paths in (bare, paths):
        parts = [path.parts or (source,) for path, source in zip(some_paths, sources, strict=True)]
        for depth in range(1, 1 + max(map(len, parts))):
            names = ["/".join(one[-depth:]) for one in parts]
            if len(set(names)) == len(names):
                return names
    raise UsageError("these scores are given twice", path=twice or sources[0])


def _of_one_task(sources: Sequence[str], models: Sequence[dict[str, Task]]) -> Sequence[dict[str, Task]]:
    """The tasks of each model; files that were given by themselves, and name no task, are of the same one."""
    firsts = [next(iter(model.values())) for model in models]
    if len({task.name for task in firsts}) == 1 or not all(
        len(model) == 1 and task.is_named_by_file and PurePath(task.path) == PurePath(source)
        for source, model, task in zip(sources, models, firsts, strict=True)
    ):
        return models
    return [{ONE: replace(task, name=ONE)} for task in firsts]


def _check_alike(tasks: Sequence[Task]) -> None:
    """Check that a task has one metric and the same samples for every model."""
    first = tasks[0]
    for other in tasks[1:]:
        for what in ("metric", "higher_is_better"):
            if getattr(other, what) != getattr(first, what):
                raise MismatchError(
                    f"the task {crop(repr(first.name), 80)} has another {what.replace('_', ' ')}",
                    path=other.path,
                    expected=f"{getattr(first, what)}, as in {first.path}",
                    found=getattr(other, what),
                )
        if first.scores is None or other.scores is None:
            continue
        lacking, further = (
            [name for name in here if name not in there]
            for here, there in ((first.scores, other.scores), (other.scores, first.scores))
        )
        if lacking or further:
            has, lacks = (first, other) if lacking else (other, first)
            raise MismatchError(
                f"the task {crop(repr(first.name), 80)} lacks {len(lacking or further):,} of the"
                f" {len(has.scores or ()):,} samples in {has.path}",
                path=lacks.path,
                found=f"no id {_ids(lacking or further)}"
                + (f", but {_ids(further)}" if lacking and further else ""),
                hint="evaluate both models on the same samples",
            )
        changed = [name for name, hash in first.contents.items() if other.contents.get(name, hash) != hash]
        if changed:
            raise MismatchError(
                f"the task {crop(repr(first.name), 80)} has other documents than in {first.path}",
                path=other.path,
                found=f"id {_ids(changed)}",
            )


def _ids(names: Sequence[str]) -> str:
    return some([crop(name, 40) for name in names], NAMED)


def _is_named(task: Task, pattern: str) -> bool:
    """Whether the name of a task, or of a group of the harness that it is in, matches."""
    return any(fnmatchcase(name, pattern) for name in (task.name, *task.groups))


def _lacking(task: str, models: Sequence[Mapping[str, Task]], names: Sequence[str]) -> list[str]:
    """The names of the models that have no scores of a task."""
    return [name for name, model in zip(names, models, strict=True) if task not in model]


def _check_common(
    models: Sequence[Mapping[str, Task]],
    names: Sequence[str],
    common: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> None:
    """Raise UsageError for a glob that matches only tasks that some model lacks."""
    for group, patterns in groups.items():
        for pattern in patterns:
            found = dict.fromkeys(
                task.name for model in models for task in model.values() if _is_named(task, pattern)
            )
            if found and not any(name in common for name in found):
                name = next(iter(found))
                lacking = _lacking(name, models, names)
                raise UsageError(
                    f"--{group} {crop(pattern, 80)} matches only tasks that not all models have:"
                    f" {crop(name, 80)} is not in {some(lacking, NAMED)}"
                )


def _members(tasks: Sequence[Task], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The names of the tasks in each group."""
    for name, patterns in groups.items():
        for pattern in patterns:
            if not any(_is_named(task, pattern) for task in tasks):
                raise UsageError(
                    f"no task matches --{name} {crop(pattern, 80)}",
                    found=some([crop(task.name, 80) for task in tasks], NAMED),
                    hint=f"pass --{name} once for each task" if "," in pattern else None,
                )
    return {
        name: [task.name for task in tasks if any(_is_named(task, one) for one in patterns)]
        for name, patterns in groups.items()
    }


def _task_rows(tasks: Sequence[Task], advance: Callable[[int], None]) -> list[_Row]:
    """Compare each edited model with the fine-tuned one on a task."""
    base, finetuned, *edited = tasks
    scores = [task.scores for task in tasks if task.scores is not None]
    values = [{"value": task.value, "difference": task.value - finetuned.value} for task in edited]
    if len(scores) < len(tasks):
        return [_Row({**one, **_shown(None)}, None) for one in values]
    before, after, *models = ([one[name] for name in scores[0]] for one in scores)
    is_right_or_wrong = all(set(one.values()) <= {0.0, 1.0} for one in scores)
    found = evidence_of(
        [[new - old for new, old in zip(now, after, strict=True)] for now in models],
        crc32(base.name.encode(errors="replace")),
        is_right_or_wrong=is_right_or_wrong,
        advance=_in_samples(len(before), advance),
    )
    rows = []
    for one, now, evidence in zip(values, models, found, strict=True):
        record = {**one, **_shown(evidence), "like_base": _like_base(before, after, now)}
        if is_right_or_wrong:
            record |= _changes(before, after, now, right=float(base.higher_is_better))
        rows.append(_Row(record, evidence))
    return rows


def _in_samples(count: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Take replicates, of REPLICATES in all, and tell so many samples that there are `count` in the end."""
    drawn = 0

    def take(replicates: int) -> None:
        nonlocal drawn
        told = drawn * count // REPLICATES
        drawn += replicates
        advance(drawn * count // REPLICATES - told)

    return take


def _shown(evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {"interval": None, "test": None, "p": None, "corrected_p": None}
    return {
        "difference": evidence.difference,
        "interval": list(evidence.interval),
        "test": evidence.test,
        "p": evidence.p,
        "corrected_p": None,
    }


def _changes(
    before: Sequence[float], after: Sequence[float], now: Sequence[float], *, right: float
) -> dict[str, Any]:
    """How many of the samples that base and fine-tuned model got right or wrong the edited one gets right."""
    found = {}
    for name, wanted in KINDS.items():
        scores = zip(before, after, now, strict=True)
        of_kind = [new for old, ft, new in scores if (old == right, ft == right) == wanted]
        found[name] = {"count": of_kind.count(right), "of": len(of_kind)}
    kept = found["preserved"]
    damaged = {"count": kept["of"] - kept["count"], "of": kept["of"]}
    return {
        "healed": found["healed"],
        "preserved": kept,
        "newly_damaged": damaged,
        "retained": found["retained"],
    }


def _like_base(before: Sequence[float], after: Sequence[float], now: Sequence[float]) -> dict[str, int]:
    """On how many of the samples where base and fine-tuned differ the edited model is nearer to the base."""
    differing = [three for three in zip(before, after, now, strict=True) if three[0] != three[1]]
    return {"count": sum(abs(new - old) < abs(new - ft) for old, ft, new in differing), "of": len(differing)}


def _task_record(
    tasks: Sequence[Task], rows: Sequence[_Row], members: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    first = tasks[0]
    return {
        "name": first.name,
        "groups": [name for name, inside in members.items() if first.name in inside],
        "metric": first.metric,
        "higher_is_better": first.higher_is_better,
        "samples": len(first.scores) if rows[0].evidence and first.scores else None,
        "base": first.value,
        "finetuned": tasks[1].value,
        "edited": [row.record for row in rows],
        "harness": first.harness,
        "dataset": None if first.dataset is None else {"id": first.dataset.id, "part": first.dataset.part},
    }


def _group_record(name: str, inside: Sequence[tuple[dict[str, Any], list[_Row]]]) -> dict[str, Any]:
    """The means over the tasks of a group."""
    records = [record for record, _ in inside]
    count = len(records)
    directions = {record["higher_is_better"] for record in records}

    def mean(values: Iterator[float]) -> float:
        return math.fsum(values) / count

    edited = []
    for number in range(len(records[0]["edited"])):
        of_model = [rows[number] for _, rows in inside]
        found = [row.evidence for row in of_model if row.evidence is not None]
        value = mean(row.record["value"] for row in of_model)
        one = {
            "value": value,
            "difference": mean(row.record["difference"] for row in of_model),
            **_shown(group_evidence(found) if len(found) == count else None),
        }
        for kind in ("like_base", "healed", "preserved", "newly_damaged", "retained"):
            if all(kind in row.record for row in of_model):
                one[kind] = {
                    part: sum(row.record[kind][part] for row in of_model) for part in ("count", "of")
                }
        edited.append(one)
    return {
        "name": name,
        "tasks": [record["name"] for record in records],
        "metrics": list(dict.fromkeys(record["metric"] for record in records)),
        "higher_is_better": directions.pop() if len(directions) == 1 else None,
        "base": mean(record["base"] for record in records),
        "finetuned": mean(record["finetuned"] for record in records),
        "edited": edited,
    }


def _correct(tasks: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Correct all p-values for their number. A group of one task is that task: it does not count again.

    Where no sample changed, p cannot be below 1, so the comparison does not count either (Tarone, 1990). Only
    then is its interval 0 to 0.
    """
    own = {task["name"]: task for task in tasks}
    several = [group for group in groups if len(group["tasks"]) > 1]
    tested = [one for record in (*tasks, *several) for one in record["edited"] if one["p"] is not None]
    changed = [one for one in tested if any(one["interval"])]
    for one in tested:
        one["corrected_p"] = one["p"]
    for one, p in zip(changed, holm([one["p"] for one in changed]), strict=True):
        one["corrected_p"] = p
    for group in groups:
        if group not in several:
            for one, of_task in zip(group["edited"], own[group["tasks"][0]]["edited"], strict=True):
                one["corrected_p"] = of_task["corrected_p"]


def _links(names: Sequence[str], linked: Sequence[Iterable[str]]) -> Iterator[str]:
    """Say what was read elsewhere than in the named folders."""
    for name, files in zip(names, linked, strict=True):
        if shown := [crop(file, 80) for file in files]:
            yield f"{name}: links out of the folder are followed: {some(shown, NAMED)}"


def _notes(
    models: Sequence[Mapping[str, Task]],
    names: Sequence[str],
    common: Sequence[str],
    members: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """What of the comparison is not as the user may think."""
    for name in dict.fromkeys(name for model in models for name in model):
        lacking = _lacking(name, models, names)
        if lacking:
            has = "has" if len(lacking) == 1 else "have"
            yield f"{crop(name, 80)} is left out: {some(lacking, NAMED)} {has} no scores of it"
    if any(members.values()):
        for words, count in (("both groups", 2), ("no group", 0)):
            found = [name for name in common if sum(name in inside for inside in members.values()) == count]
            if found:
                yield f"in {words}: {some([crop(name, 60) for name in found], NAMED)}"
    whys: dict[str, list[str]] = {}
    for name in common:
        why = next((model[name].why_no_scores for model in models if model[name].scores is None), None)
        if why is not None:
            whys.setdefault(why, []).append(crop(name, 60))
    for why, tasks in whys.items():
        yield f"totals alone, so a difference without an interval: {some(tasks, NAMED)}; {why}"
    for name, inside in members.items():
        where = f"{name} of distribution" if name == "out" else f"{name} distribution"
        kinds = {(models[0][task].higher_is_better, models[0][task].metric) for task in inside}
        if len({is_higher for is_higher, _ in kinds}) > 1:
            yield f"the mean {where} has no better direction: some of its metrics are better lower"
        elif len(kinds) > 1:
            metrics = sorted(crop(metric, 40) for _, metric in kinds)
            yield f"the mean {where} is of several metrics: {some(metrics, NAMED)}"


def _back(records: Sequence[Mapping[str, Any]], edited: Sequence[str]) -> Iterator[str]:
    """Say which edited models went back to the base, and where."""
    for number, name in enumerate(edited):
        places = []
        for record in records:
            like = record["edited"][number].get("like_base")
            if like and like["of"] >= BACK_SAMPLES and like["count"] >= BACK * like["of"]:
                places.append(f"{crop(record['name'], 60)} ({like['count']:,} of {like['of']:,})")
        if places:
            yield (
                f"{name} went back to the base where base and fine-tuned model differ:"
                f" {some(places, NAMED)} of these samples score as in the base"
            )
