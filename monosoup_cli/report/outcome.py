"""What a comparison of scores says, in sentences: better, worse, perhaps so, or no difference shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.errors import some
from monosoup_cli.report.scores import NO_CHANGE, number, shown_interval, shown_p, signed
from monosoup_cli.report.words import plural, printable

__all__ = ["outcomes"]

SIGNIFICANCE = 0.05
"""A difference is shown if its corrected p is below this. It may be one if p is."""
NOT_TESTED, NOT_SHOWN, MAYBE = "not tested", "no difference shown", "possibly "
TOLD = 4
"""How many tasks have a sentence each."""
NAMED = 4
"""How many tasks that got worse are named."""
WHERE = {"in": "In distribution", "out": "Out of distribution"}


def outcomes(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each edited model and group, or each task where there are no groups.

    Where no groups and many tasks are compared, a sentence counts the tasks, and names those that got worse.
    """
    records = comparison["groups"] or comparison["tasks"]
    names, said = comparison["models"], list[str]()
    for at, edited in enumerate(names["edited"]):
        models = printable(edited), printable(names["finetuned"])
        if comparison["groups"] or len(records) <= TOLD:
            said += [_sentence(record, record["edited"][at], *models) for record in records]
            said += [
                words for record in records for words in _restored(record, record["edited"][at], models[0])
            ]
        else:
            said.append(_counted(records, at, *models))
    return said


def _kind(record: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """What a comparison shows: alone and with all others, alone, or nothing."""
    if one["corrected_p"] is None:
        return NOT_TESTED
    if not _excludes_0(one) and one["p"] >= SIGNIFICANCE:
        return NOT_SHOWN
    if record["higher_is_better"] is None:
        kind = "different"
    else:
        kind = "better" if (one["difference"] > 0) == record["higher_is_better"] else "worse"
    return kind if one["corrected_p"] < SIGNIFICANCE else f"{MAYBE}{kind}"


def _excludes_0(one: Mapping[str, Any]) -> bool:
    low, high = one["interval"] or (0.0, 0.0)
    return bool(low > 0.0 or high < 0.0)


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


def _sentence(record: Mapping[str, Any], one: Mapping[str, Any], edited: str, finetuned: str) -> str:
    kind = _kind(record, one)
    verb, word = ("may be", kind.removeprefix(MAYBE)) if kind.startswith(MAYBE) else ("is", kind)
    said = {
        NOT_TESTED: f"{edited} was not tested against {finetuned}, for want of single samples",
        NOT_SHOWN: f"no difference between {edited} and {finetuned} is shown",
    }.get(kind, f"{edited} {verb} {word} {'from' if word == 'different' else 'than'} {finetuned}")
    facts = ", ".join(_facts(one))
    doubt = f"; corrected p {shown_p(one['corrected_p'])}" if verb == "may be" else ""
    values = f"{number(one['value'])} against {number(record['finetuned'])}"
    return f"{_where(record)}, {said}: {values} ({facts}{doubt})."


def _restored(record: Mapping[str, Any], one: Mapping[str, Any], edited: str) -> Iterator[str]:
    """How much of what fine-tuning cost out of distribution an edit brought back, if it cost anything."""
    if record["name"] != "out" or "tasks" not in record or _kind(record, one) not in ("better", "worse"):
        return
    sign = 1.0 if record["higher_is_better"] else -1.0
    cost, back = sign * (record["base"] - record["finetuned"]), sign * one["difference"]
    if cost > 0.0 and back != 0.0:
        did = (
            f"{edited} restored {number(back)} of it ({back / cost:.0%})"
            if back > 0
            else f"{edited} lost {number(-back)} more"
        )
        yield f"Fine-tuning cost {number(cost)} out of distribution; {did}."


def _facts(one: Mapping[str, Any]) -> Iterator[str]:
    yield f"difference {signed(one['difference'])}"
    if one["interval"] is not None:
        interval = shown_interval(one["interval"], " to ")
        yield "no sample changed" if interval == NO_CHANGE else f"95% interval {interval}"


def _where(record: Mapping[str, Any]) -> str:
    """The group with its tasks, or the task."""
    if "tasks" not in record:
        return f"On {printable(record['name'])}"
    tasks = record["tasks"]
    of = printable(tasks[0]) if len(tasks) == 1 else f"mean of {plural(len(tasks), 'task')}"
    return f"{WHERE.get(record['name'], printable(record['name']))} ({of})"
