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
NOT_TESTED, NOT_SHOWN, MAYBE = "not tested", "no difference shown", "may be "
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
        else:
            said.append(_counted(records, at, *models))
    return [*said, *(words for record in records for words in _restored(record, names["edited"]))]


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


def _restored(record: Mapping[str, Any], models: Sequence[str]) -> Iterator[str]:
    """How much of what fine-tuning cost out of distribution edits brought back, if it cost anything."""
    if record["name"] != "out" or "tasks" not in record or record["higher_is_better"] is None:
        return
    sign = 1.0 if record["higher_is_better"] else -1.0
    cost = sign * (record["base"] - record["finetuned"])
    if cost <= 0.0:
        return
    did = []
    for name, one in zip(models, record["edited"], strict=True):
        back, kind = sign * one["difference"], _kind(record, one)
        if kind == "better":
            did.append(f"{printable(name)} restored {number(back)} of it ({_share(back / cost)})")
        elif kind == "worse":
            did.append(f"{printable(name)} lost {number(-back)} more")
    if did:
        yield f"Fine-tuning cost {number(cost)} out of distribution; {', '.join(did)}."


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
