"""Model soups: average the weights of several fine-tuned checkpoints.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from monosoup_cli.errors import UsageError
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Access, Edit, Layer, Paper, PlainMethod

if TYPE_CHECKING:
    import torch

__all__ = ["PAPER", "Average", "Trial", "best_first", "greedy", "normalised"]

PAPER = Paper(
    "The mean of the weights of several fine-tuned checkpoints: a model soup.",
    """
@inproceedings{wortsman2022model,
  title = {Model soups: averaging weights of multiple fine-tuned models improves accuracy without
           increasing inference time},
  author = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and Roelofs, Rebecca
            and Gontijo-Lopes, Raphael and Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali
            and Carmon, Yair and Kornblith, Simon and Schmidt, Ludwig},
  booktitle = {ICML},
  year = {2022}
}
""",
)


@dataclass(frozen=True)
class Average(PlainMethod):
    """The (weighted) mean of the fine-tuned checkpoints; the base is not used."""

    paper: Paper = PAPER

    verb = "average"
    measures = ()
    access: ClassVar[Access] = "flat"
    needs_base = False

    def edit(self, layer: Layer) -> Edit | None:
        """Average one tensor; of one checkpoint alone there is nothing to do."""
        assert isinstance(layer, FlatLayer)
        return None if layer.count == 1 else Edit([{}], self._blocks(layer))

    def _blocks(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop in layer.ranges():
            yield start, stop, [layer.mean(start, stop)]


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights scaled to sum 1. Raises UsageError where they are not finite, or sum to nothing."""
    if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UsageError("weights must be at least 0, and not all 0", found=list(weights))
    largest = max(weights)
    shares = [weight / largest for weight in weights]
    total = math.fsum(shares)
    return [share / total for share in shares]


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices by score, the highest first; ties in the order given."""
    return sorted(range(len(scores)), key=lambda number: -scores[number])


@dataclass(frozen=True)
class Trial:
    """One step of the greedy soup: `score` is that of the mean of the members so far and the
    candidate."""

    candidate: int
    score: float
    joined: bool


def greedy(
    order: Sequence[int], score: Callable[[Sequence[int]], float], *, strict: bool = False
) -> Iterator[Trial]:
    """The trials of the greedy soup (Recipe 1 of the paper), each as soon as it is scored.

    `score` rates the uniform mean of some checkpoints, in the order in which they joined; higher is
    better. The first of `order` is a member; each other joins if the score with it is at least the
    best so far (`strict`: above it).
    """
    members, best = [order[0]], score([order[0]])
    yield Trial(order[0], best, True)
    for candidate in order[1:]:
        found = score([*members, candidate])
        joined = found > best if strict else found >= best
        if joined:
            members.append(candidate)
            best = found
        yield Trial(candidate, found, joined)
