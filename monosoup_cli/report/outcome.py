"""What a comparison of scores says, in sentences: better, worse, or no difference shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from monosoup_cli.report.scores import number, shown_interval, shown_p, signed
from monosoup_cli.report.words import plural, printable

__all__ = ["outcomes"]

SIGNIFICANCE = 0.05
"""A difference is shown if its corrected p is below this."""
TOLD = 4
"""How many tasks have a sentence each."""
WHERE = {"in": "In distribution", "out": "Out of distribution"}


def outcomes(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each edited model and group, or each task where there are no groups.

    Where no groups and many tasks are compared, a sentence counts the tasks.
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
            kinds = [_kind(record, record["edited"][at]) for record in records]
            counts = ", ".join(f"{kind} on {kinds.count(kind):,}" for kind in dict.fromkeys(kinds))
            said.append(f"{models[0]} against {models[1]}, of {len(records):,} tasks: {counts}.")
    return said


def _kind(record: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if one["corrected_p"] is None:
        return "not tested"
    if one["corrected_p"] >= SIGNIFICANCE:
        return "no difference shown"
    if record["higher_is_better"] is None:
        return "different"
    return "better" if (one["difference"] > 0) == record["higher_is_better"] else "worse"


def _sentence(record: Mapping[str, Any], one: Mapping[str, Any], edited: str, finetuned: str) -> str:
    kind = _kind(record, one)
    said = {
        "not tested": f"{edited} was not tested against {finetuned}, for want of single samples",
        "no difference shown": f"no difference between {edited} and {finetuned} is shown",
    }.get(kind, f"{edited} is {kind} {'from' if kind == 'different' else 'than'} {finetuned}")
    facts = ", ".join(_facts(one, is_shown=kind != "no difference shown"))
    return (
        f"{_where(record)}, {said}: {number(one['value'])} against {number(record['finetuned'])} ({facts})."
    )


def _restored(record: Mapping[str, Any], one: Mapping[str, Any], edited: str) -> Iterator[str]:
    """How much of what fine-tuning cost out of distribution an edit brought back, if it cost anything."""
    is_known = record["higher_is_better"] is not None and _kind(record, one) != "no difference shown"
    if record["name"] != "out" or "tasks" not in record or not is_known:
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


def _facts(one: Mapping[str, Any], *, is_shown: bool) -> Iterator[str]:
    yield f"difference {signed(one['difference'])}"
    if one["interval"] is not None:
        yield f"95% interval {shown_interval(one['interval'], ' to ')}"
        low, high = one["interval"]
        if not is_shown and not low <= 0.0 <= high:  # an interval is of one comparison
            yield f"which alone would exclude 0; p {shown_p(one['corrected_p'])} after Holm's correction"


def _where(record: Mapping[str, Any]) -> str:
    """The group with its tasks, or the task."""
    if "tasks" not in record:
        return f"On {printable(record['name'])}"
    tasks = record["tasks"]
    of = printable(tasks[0]) if len(tasks) == 1 else f"mean of {plural(len(tasks), 'task')}"
    return f"{WHERE.get(record['name'], printable(record['name']))} ({of})"
