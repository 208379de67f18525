"""`sfgs`: the similarity-filtered greedy soup."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.command import Request, command
from monosoup_cli.errors import UsageError, mismatch_in
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.model_soup import Average, best_first
from monosoup_cli.methods.monosoup import PAPER
from monosoup_cli.options import Base, Finetuned, Option, Output, Scores, Strictness, as_paths
from monosoup_cli.tensors.method import Order, Paper

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.inputs import Inputs
    from monosoup_cli.pipeline.task import Choice, ChooserContext
    from monosoup_cli.tensors.plan import Plan, Selection

__all__ = ["choices", "sfgs"]

SFGS = Paper(
    "The mean of those fine-tuned checkpoints whose updates point the same way: a similarity-filtered"
    " greedy soup.",
    PAPER.citation,
)


HELPS = {
    "include": "Compare only tensors whose names match. The others are averaged, too. Repeatable.",
    "exclude": "Do not compare tensors whose names match. They are averaged, too. Repeatable.",
}


@command("Combine", HELPS)
def sfgs(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    threshold: Annotated[
        float, Option("A candidate joins if its mean similarity to the members is at least D.", metavar="D")
    ],
    scores: Scores = None,
    include_vectors: Annotated[bool, Option("Also compare one-dimensional tensors.")] = False,
    **options: Unpack[RunKeywords],
) -> Request:
    """Average checkpoints with similar updates.

    This is the similarity-filtered greedy soup. Similarity is the cosine between two updates, averaged over
    layers. --dry-run reads the checkpoints, and shows the similarities and what every threshold would
    choose.

    Example: monosoup sfgs base.safetensors ft1.safetensors ft2.safetensors -o out --threshold 0.2
    """
    sources = as_paths(finetuned, at_least=2)
    if not math.isfinite(threshold):
        raise UsageError("--threshold is not a number", found=threshold)
    known, order = None, list(range(len(sources)))
    if scores is not None:
        from monosoup_cli.pipeline.score_command import scores_of

        known = scores_of(scores, sources)
        order = best_first([known[source] for source in sources])
    on_nonfinite = options.get("on_nonfinite", "error")
    chooser = _BySimilarity(sources, order, threshold, include_vectors, on_nonfinite)
    request = Order(Average(SFGS), sources, os.fspath(output), os.fspath(base), arguments={"scores": known})
    return Request(request, chooser=chooser)


@dataclass(frozen=True)
class _BySimilarity:
    """Chooses the checkpoints whose updates are similar."""

    sources: Sequence[str]
    order: Sequence[int]
    threshold: float
    include_vectors: bool
    on_nonfinite: Strictness
    drafts: int = 0
    trials: int = 0
    candidates: int = 0

    def check(self, inputs: Inputs, selection: Selection) -> None:
        """Raise UsageError where no layer is left to compare."""
        if not self._layers(inputs, selection).edited:
            raise UsageError("no layer is left to compare")

    def _layers(self, inputs: Inputs, selection: Selection) -> Plan:
        """The layers whose updates are compared: those that every input has, in one shape."""
        from monosoup_cli.tensors.plan import Plan, make_plan

        assert inputs.base is not None
        finetuned = [source.tensors for source in inputs.finetuned]
        with mismatch_in(self.sources[0]):
            plan = make_plan(
                inputs.base.tensors, finetuned, selection, access="flat" if self.include_vectors else "matrix"
            )
        # a scalar is no vector: its cosine is 1 or -1
        return Plan(tuple(one if one.shape else replace(one, reason="vector") for one in plan.tensors))

    def choose(self, context: ChooserContext, partial: PartialOutput | None, progress: Progress) -> Choice:
        """Compare all updates in one pass, and add one candidate after the other."""
        from monosoup_cli.methods.similarity import decide, gram_matrix, members_of, similarity
        from monosoup_cli.pipeline.gram import gram_matrices
        from monosoup_cli.pipeline.task import Choice

        inputs = context.inputs
        assert inputs.base is not None
        layers = self._layers(inputs, context.selection)
        grams = gram_matrices(
            layers,
            inputs.base,
            inputs.finetuned,
            partial,
            context.engine,
            progress,
            gram_matrix,
            self.on_nonfinite,
        )
        sources = self.sources
        matrix = similarity(grams, len(sources)).tolist()
        decisions = decide(matrix, self.order, self.threshold)
        members = members_of(self.order, decisions)
        selection = {
            "layers": sum(bool(gram.diagonal().any()) for gram in grams),
            "candidates": list(sources),
            "similarity": matrix,
            "order": [sources[number] for number in self.order],
            "decisions": [
                {"candidate": sources[one.candidate], "similarity": one.similarity, "joined": one.joined}
                for one in decisions
            ],
            "thresholds": choices(matrix, self.order, sources),
            "members": [sources[number] for number in members],
        }
        return Choice(members, selection)


def choices(
    matrix: Sequence[Sequence[float]], order: Sequence[int], sources: Sequence[str]
) -> list[dict[str, Any]]:
    """What every threshold would choose, in the form of the report, from the strictest down."""
    from monosoup_cli.methods.similarity import thresholds

    return [
        {"highest": highest, "members": [sources[number] for number in members]}
        for highest, members in thresholds(matrix, order)
    ]
