"""Scores in a model card, and in the form in which the Hub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.outputs.model_card import markdown, plain

__all__ = ["eval_results", "with_scores"]

BEGIN, END = "<!-- scores by monosoup -->", "<!-- end of scores by monosoup -->"
BEFORE = "## Citation"
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""The id of a dataset on the Hub."""


def with_scores(
    card: str, comparison: Mapping[str, Any], counts: Mapping[str, str], sentences: Sequence[str]
) -> str:
    """A model card with the scores of the first edited model, in the place of those that it had.

    Args:
        card: The card.
        comparison: What was compared.
        counts: What is counted of samples, and its heading.
        sentences: What the comparison says.
    """
    section = f"{BEGIN}\n\n{_section(comparison, counts, sentences)}\n{END}\n\n"
    rest = "".join(_others(card))
    before, heading, after = rest.rpartition(f"\n{BEFORE}\n")
    if heading:
        return f"{before}\n{section}{BEFORE}\n{after}"
    return f"{rest.rstrip()}\n\n{section.rstrip()}\n"


def _others(card: str) -> Iterator[str]:
    """What stands around the sections of scores in a card."""
    start = 0
    while (begin := card.find(BEGIN, start)) >= 0 and (end := card.find(END, begin)) >= 0:
        yield card[start:begin]
        start = end + len(END)
        while card.startswith("\n", start):
            start += 1
    yield card[start:]


def eval_results(comparison: Mapping[str, Any]) -> bytes | None:
    """The scores of the first edited model for `.eval_results/`, in YAML; None if no dataset is on the Hub.

    https://huggingface.co/docs/hub/eval-results; the Hub shows those whose dataset is a benchmark there.
    """
    import yaml  # type: ignore[import-untyped]

    entries = [
        {
            "dataset": {"id": task["dataset"]["id"], "task_id": plain(task["dataset"]["part"])},
            "value": task["edited"][0]["value"],
            "notes": plain(", ".join(_facts(task))),
        }
        for task in comparison["tasks"]
        if task["dataset"] is not None and ON_HUB.fullmatch(task["dataset"]["id"])
    ]
    return yaml.safe_dump(entries, sort_keys=False).encode() if entries else None


def _facts(task: Mapping[str, Any]) -> Iterator[str]:
    yield from (task["name"], task["metric"])
    if not task["higher_is_better"]:
        yield "lower is better"
    yield f"by {task['harness']}"


def _section(comparison: Mapping[str, Any], counts: Mapping[str, str], sentences: Sequence[str]) -> str:
    level = f"{comparison['level']:.0%} interval"
    head = ["task", "metric", "base", "fine-tuned", "this model", "difference", level, "p, corrected"]
    records = [*comparison["groups"], *comparison["tasks"]]
    said = [f"- {markdown(sentence)}" for sentence in sentences]
    parts = ["## Scores", "", *said, "", *_table(head, map(_scores, records)), ""]
    if any(map(_mark, records)):
        parts += ["↓: lower is better.", ""]
    counted = [record for record in records if "healed" in record["edited"][0]]
    if counted:
        parts += [
            "Healed: of the samples that the base alone got right, those that this model gets right.",
            "Preserved and damaged: of those that base and fine-tuned model got right, those that it",
            "gets right and wrong. Retained: of those that the fine-tuned model alone got right, those that",
            "it gets right. As base: of those on which these two differ, those on which it is nearer to the",
            "base.",
            "",
            *_table(["task", *counts.values()], (_changes(record, counts) for record in counted)),
            "",
        ]
    parts += [f"- {markdown(note)}" for note in comparison["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _scores(record: Mapping[str, Any]) -> Sequence[str]:
    one = record["edited"][0]
    interval = "–" if one["interval"] is None else " to ".join(f"{end:+.4g}" for end in one["interval"])
    p = "–" if one["corrected_p"] is None else f"{one['corrected_p']:.2g}"
    metrics = [record["metric"]] if "metric" in record else record["metrics"]
    values = [f"{value:.4g}" for value in (record["base"], record["finetuned"], one["value"])]
    return [_name(record), markdown(", ".join(metrics)), *values, f"{one['difference']:+.4g}", interval, p]


def _changes(record: Mapping[str, Any], counts: Mapping[str, str]) -> Sequence[str]:
    found = [record["edited"][0][name] for name in counts]
    return [_name(record), *(f"{one['count']} of {one['of']}" for one in found)]


def _name(record: Mapping[str, Any]) -> str:
    if "tasks" in record:
        name = f"**mean {'out of' if record['name'] == 'out' else 'in'} distribution**"
    else:
        name = "".join([markdown(record["name"]), *(f" ({group})" for group in record["groups"])])
    return name + _mark(record)


def _mark(record: Mapping[str, Any]) -> str:
    """What stands behind a task or group whose scores are better when lower."""
    return " ↓" if record["higher_is_better"] is False else ""
