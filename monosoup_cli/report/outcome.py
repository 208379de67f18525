"""What a comparison of scores says, in sentences and in a table: better, worse, perhaps so, or not shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import some
from monosoup_cli.report.scores import (
    MAX_NAME,
    NO_CHANGE,
    number,
    scores_table,
    shown_interval,
    shown_name,
    shown_p,
    signed,
)
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["outcomes", "scores_shown", "side_by_side"]

SIGNIFICANCE = 0.05
"""A difference is shown if its corrected p is below this. It may be one if p is."""
NOT_TESTED, NOT_SHOWN, MAYBE = "not tested", "no difference shown", "may be "
CHANGED = ("better", "worse", "different")
TOLD = 4
"""How many tasks, and how many comparisons, have a sentence each."""
NAMED = 4
"""How many tasks that got worse are named, and of how many models it is said what they restored."""
INPUTS = {"base": "base", "finetuned": "fine-tuned"}
WHERE = {"in": "In distribution", "out": "Out of distribution"}


def outcomes(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each edited model and group, or each task where there are no groups.

    Of more edited models, each group or task has one sentence for all. Where no groups and many tasks are
    compared, a sentence counts the tasks, and names those that got worse.
    """
    records, names = _told(comparison), comparison["models"]
    tuned, models = printable(names["finetuned"]), list(enumerate(map(printable, names["edited"])))
    if len(records) * len(models) > TOLD:
        said = [_of_models(record, names["edited"], tuned) for record in records]
    elif records:
        said = [_sentence(one, one["edited"][at], edited, tuned) for at, edited in models for one in records]
    else:
        said = [_counted(comparison["tasks"], at, edited, tuned) for at, edited in models]
    return [*said, *(words for group in comparison["groups"] for words in _restored(group, names["edited"]))]


def side_by_side(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return a table of all models where several are edited; else nothing. It begins with its heading.

    A model has a row, with the score and the difference in each group or task. Where no groups and many tasks
    are compared, a task has a row, with the score and what is better or worse of each model.
    """
    names = comparison["models"]
    if len(names["edited"]) == 1:
        return []
    records = _told(comparison)
    inputs = {role: _with_role(names[role], words) for role, words in INPUTS.items()}
    edited = [printable(name, MAX_NAME) for name in names["edited"]]
    if not records:
        return [
            ["task", *inputs.values(), *edited],
            *(
                [shown_name(task), *(number(task[role]) for role in inputs), *_with_kinds(task)]
                for task in comparison["tasks"]
            ),
        ]
    head = ["model", *(cell for record in records for cell in (shown_name(record), "difference"))]
    return [
        head,
        *(
            [shown, *(cell for one in records for cell in (number(one[role]), "–"))]
            for role, shown in inputs.items()
        ),
        *(
            [name, *(cell for one in records for cell in _with_difference(one, one["edited"][at]))]
            for at, name in enumerate(edited)
        ),
    ]


def _with_difference(record: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[str, str]:
    """The score of an edited model, and how it compares."""
    kind = _kind(record, one)
    words = "not shown" if kind == NOT_SHOWN else kind  # below "difference"
    return number(one["value"]), f"{signed(one['difference'])}, {words}"


def _with_kinds(task: Mapping[str, Any]) -> Iterator[str]:
    """The scores of the edited models, with what is better or worse."""
    for one in task["edited"]:
        kind = _kind(task, one)
        yield number(one["value"]) + (f", {kind}" if kind.endswith(CHANGED) else "")


def _with_role(name: str, role: str) -> str:
    shown = printable(name, MAX_NAME)
    return shown if role in shown else f"{shown} ({role})"


def scores_shown(comparison: Mapping[str, Any]) -> RenderableType:
    """Return the tables of the edited models, that of all models, and the sentences, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from monosoup_cli.report.grid import grid

    parts: list[Any] = [scores_table(comparison), Text("")]
    if rows := side_by_side(comparison):
        table = grid(*rows[0], show_header=True)
        for first, *others in rows[1:]:
            table.add_row(Text(first), *others)
        parts += [table, Text("")]
    return Group(*parts, *map(Text, outcomes(comparison)))


def _told(comparison: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The groups, or tasks where there are no groups, unless they are too many to tell of each."""
    tasks: Sequence[Mapping[str, Any]] = comparison["tasks"]
    return comparison["groups"] or (tasks if len(tasks) <= TOLD else [])


def _kind(record: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """What a comparison shows: alone and with all others, alone, or nothing."""
    if one["corrected_p"] is None:
        return NOT_TESTED
    if one["interval"] is not None and not any(one["interval"]):
        return NO_CHANGE
    if one["p"] >= SIGNIFICANCE:
        return NOT_SHOWN
    if record["higher_is_better"] is None:
        kind = "different"
    else:
        kind = "better" if (one["difference"] > 0) == record["higher_is_better"] else "worse"
    return kind if one["corrected_p"] < SIGNIFICANCE else f"{MAYBE}{kind}"


def _counted(records: Sequence[Mapping[str, Any]], at: int, edited: str, finetuned: str) -> str:
    """How many tasks came out in which way."""
    tasks: dict[str, list[str]] = {}
    for record in records:
        tasks.setdefault(_kind(record, record["edited"][at]), []).append(printable(record["name"]))
    counts = (
        f"{kind} on {len(names):,}{f' ({some(names, NAMED)})' if kind.endswith('worse') else ''}"
        for kind, names in tasks.items()
    )
    return f"{edited} against {finetuned}, of {len(records):,} tasks: {', '.join(counts)}."


def _of_models(record: Mapping[str, Any], models: Sequence[str], finetuned: str) -> str:
    """Which of several models came out in which way."""
    names: dict[str, list[str]] = {}
    for name, one in zip(models, record["edited"], strict=True):
        names.setdefault(_kind(record, one), []).append(printable(name))
    kinds = "; ".join(f"{kind}: {', '.join(alike)}" for kind, alike in names.items())
    return f"{_where(record)}, against {finetuned} ({number(record['finetuned'])}): {kinds}."


def _sentence(record: Mapping[str, Any], one: Mapping[str, Any], edited: str, finetuned: str) -> str:
    kind = _kind(record, one)
    verb = "" if kind.startswith(MAYBE) else "is "
    said = {
        NOT_TESTED: f"{edited} was not tested against {finetuned}, for want of single samples",
        NO_CHANGE: f"{edited} scores every sample as {finetuned} does",
        NOT_SHOWN: f"no difference between {edited} and {finetuned} is shown",
    }.get(kind, f"{edited} {verb}{kind} {'from' if kind.endswith('different') else 'than'} {finetuned}")
    values = f"{number(one['value'])} against {number(record['finetuned'])}"
    return f"{_where(record)}, {said}: {values} ({', '.join(_facts(one, kind))})."


def _restored(group: Mapping[str, Any], models: Sequence[str]) -> Iterator[str]:
    """How much of what fine-tuning cost out of distribution edits brought back, if it cost anything."""
    if group["name"] != "out" or group["higher_is_better"] is None:
        return
    sign = 1.0 if group["higher_is_better"] else -1.0
    cost = sign * (group["base"] - group["finetuned"])
    if cost <= 0.0:
        return
    did = []
    differences = zip(models, group["edited"], strict=True)
    for name, one in sorted(differences, key=lambda pair: -sign * pair[1]["difference"]):
        back, kind = sign * one["difference"], _kind(group, one)
        if kind == "better":
            did.append(f"{printable(name)} restored {number(back)} of it ({_share(back / cost)})")
        elif kind == "worse":
            did.append(f"{printable(name)} lost {number(-back)} more")
    if did:
        yield f"Fine-tuning cost {number(cost)} out of distribution; {some(did, NAMED)}."


def _share(share: float) -> str:
    """A percentage, of which only all is 100%."""
    return f"{share:.0%}" if share >= 1.0 or share < 0.995 else "over 99%"


def _facts(one: Mapping[str, Any], kind: str) -> Iterator[str]:
    yield f"difference {signed(one['difference'])}"
    if one["interval"] is not None and any(one["interval"]):
        low, high = one["interval"]
        yield f"95% interval {shown_interval(one['interval'], ' to ')}"
        if kind.startswith(MAYBE):
            yield f"p {shown_p(one['p'])}, corrected {shown_p(one['corrected_p'])}"
        elif kind == NOT_SHOWN and not low <= 0.0 <= high:  # of few changed samples, it is too narrow
            yield f"p {shown_p(one['p'])}"


def _where(record: Mapping[str, Any]) -> str:
    """The group with its tasks, or the task."""
    if "tasks" not in record:
        return f"On {printable(record['name'])}"
    tasks = record["tasks"]
    of = printable(tasks[0]) if len(tasks) == 1 else f"mean of {plural(len(tasks), 'task')}"
    return f"{WHERE.get(record['name'], printable(record['name']))} ({of})"
