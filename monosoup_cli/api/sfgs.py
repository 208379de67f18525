"""`sfgs`: the similarity-filtered greedy soup."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.command import Paper, StrPath, card, paths, running
from monosoup_cli.api.edit import MONOSOUP
from monosoup_cli.api.scores import scores_of
from monosoup_cli.api.soup import average
from monosoup_cli.errors import UsageError, mismatch_in
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.engine import Progress
from monosoup_cli.pipeline.gram import gram_matrices
from monosoup_cli.pipeline.job import Choice, Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions
from monosoup_cli.pipeline.plan import Plan, make_plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["choices", "prepare_sfgs", "sfgs"]

SFGS = Paper(
    "The mean of those fine-tuned checkpoints whose updates point the same way: a similarity-filtered"
    " greedy soup.",
    MONOSOUP.citation,
)


def prepare_sfgs(
    base: StrPath,
    finetuned: Sequence[StrPath],
    output: StrPath,
    *,
    threshold: float,
    scores: StrPath | Mapping[str, float] | None = None,
    include_vectors: bool = False,
    **options: Unpack[RunKeywords],
) -> Job:
    """Similarity-filtered greedy soup: the mean of the checkpoints whose updates are similar.

    The command `monosoup sfgs` (docs/cli.md). `threshold`: a candidate joins if the mean cosine of
    its updates to the members' is at least this. `scores` (a mapping or a JSON file, path →
    number) gives the order, best first; without, it is that of `finetuned`. `include_vectors`:
    tensors of one dimension count among the layers. Returns the report; raises
    `monosoup_cli.errors.MonosoupError`.
    """
    sources = paths(finetuned, at_least=2)
    if not math.isfinite(threshold):
        raise UsageError("threshold is not a number", found=threshold)
    run_options = RunOptions.given(**options)
    arguments: dict[str, Any] = {
        "base": os.fspath(base),
        "finetuned": sources,
        "output": os.fspath(output),
        "threshold": threshold,
        "scores": None if scores is None else scores_of(scores, sources),
        "include_vectors": include_vectors,
    }

    def choose(job: Job, partial: PartialOutput | None, progress: Progress) -> Choice:
        from monosoup_cli.methods.model_soup import best_first
        from monosoup_cli.methods.similarity import decide, gram_matrix, members_of, similarity

        assert job.base is not None
        grams = gram_matrices(
            layers,
            job.base,
            job.finetuned,
            partial,
            job.devices,
            job.workers,
            progress,
            gram_matrix,
            job.options.on_nonfinite,
        )
        matrix = similarity(grams, len(sources)).tolist()
        scores = arguments["scores"]
        order = list(range(len(sources)))
        if isinstance(scores, Mapping):
            order = best_first([scores[source] for source in sources])
        decisions = decide(matrix, order, threshold)
        members = members_of(order, decisions)
        selection = {
            "layers": len(grams),
            "candidates": sources,
            "similarity": matrix,
            "order": [sources[number] for number in order],
            "decisions": [
                {"candidate": sources[each.candidate], "similarity": each.similarity, "joined": each.joined}
                for each in decisions
            ],
            "thresholds": choices(matrix, order, sources),
            "members": [sources[number] for number in members],
        }
        return Choice(members, selection)

    recipe = Recipe(
        command="sfgs",
        verb="average",
        arguments=arguments,
        method=average,
        card=card(prepare_sfgs, arguments, run_options, SFGS),
        needs_base=False,
        choose=choose,
    )
    with ExitStack() as opened:
        job = opened.enter_context(prepare(recipe, run_options))
        with mismatch_in(sources[0]):
            layers = _layers(job, include_vectors=include_vectors)
        if not layers.edited:
            raise UsageError("no layer is left to compare")
        opened.pop_all()
    return job


sfgs = running(prepare_sfgs)


def choices(
    matrix: Sequence[Sequence[float]], order: Sequence[int], sources: Sequence[str]
) -> list[dict[str, Any]]:
    """What every threshold would choose, as the report has it, from the strictest down."""
    from monosoup_cli.methods.similarity import thresholds

    return [
        {"highest": highest, "members": [sources[number] for number in members]}
        for highest, members in thresholds(matrix, order)
    ]


def _layers(job: Job, *, include_vectors: bool) -> Plan:
    """The layers whose updates are compared: those of every input, in one shape."""
    assert job.base is not None
    finetuned = [checkpoint.tensors for checkpoint in job.finetuned]
    plan = make_plan(job.base.tensors, finetuned, job.selection, view="flat" if include_vectors else "matrix")
    # a scalar is no vector: its cosine is 1 or -1
    return Plan(tuple(each if each.shape else replace(each, reason="vector") for each in plan.tensors))
