"""Scores in a model card, and in the form in which the Hub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.outputs.model_card import markdown, plain

__all__ = ["eval_results", "with_scores"]

BEGIN, END = "<!-- scores by monosoup -->", "<!-- end of scores by monosoup -->"
BEFORE = "## Citation"
COUNTED = """Healed: of the samples that the base alone got right, those that this model gets right.
Preserved and damaged: of those that base and fine-tuned model got right, those that it
gets right and wrong. Retained: of those that the fine-tuned model alone got right, those that
it gets right. As base: of those on which these two differ, those on which it is nearer to the
base."""
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""The id of a dataset on the Hub."""


def with_scores(
    card: str,
    sentences: Sequence[str],
    tables: Sequence[Sequence[Sequence[str]]],
    remarks: Sequence[str],
    notes: Sequence[str],
) -> str:
    """A model card with the scores of the model, in the place of those that it had.

    Args:
        card: The card.
        sentences: What the scores say.
        tables: The scores, and perhaps what became of the samples, each with its heading first.
        remarks: What explains the scores.
        notes: What to know of them.
    """
    section = f"{BEGIN}\n\n{_section(sentences, tables, remarks, notes)}\n{END}\n\n"
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


def _section(
    sentences: Sequence[str],
    tables: Sequence[Sequence[Sequence[str]]],
    remarks: Sequence[str],
    notes: Sequence[str],
) -> str:
    scores, *counts = tables
    parts = ["## Scores", "", *_items(sentences), "", *_table(scores), ""]
    for remark in remarks:
        parts += [remark, ""]
    for table in counts:
        parts += [COUNTED, "", *_table(table), ""]
    return "\n".join([*parts, *_items(notes)]).rstrip() + "\n"


def _items(texts: Sequence[str]) -> list[str]:
    return [f"- {markdown(text)}" for text in texts]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(map(markdown, row))} |"
        if number == 0:
            yield f"|{'---|' * len(row)}"
