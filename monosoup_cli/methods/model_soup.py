"""Model soups: average the weights of several fine-tuned checkpoints.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.errors import UsageError
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Paper, PlainMethod

if TYPE_CHECKING:
    import torch

__all__ = ["PAPER", "Average", "Trial", "best_first", "greedy", "normalise"]

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
    needs_base = False

    def edit(self, layer: Layer) -> Edit | None:
        """Average one tensor; with one checkpoint there is nothing to do."""
        assert isinstance(layer, FlatLayer)
        return None if layer.count == 1 else Edit([{}], self._blocks(layer))

    def _blocks(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop in layer.ranges():
            yield start, stop, [layer.mean(start, stop)]


def normalise(weights: Sequence[float]) -> list[float]:
    """Scale weights to sum to 1.

    Raises:
        UsageError: A weight is negative or not finite, or all are 0.
    """
    if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UsageError("--weights must be at least 0, and not all 0", found=list(weights))
    largest = max(weights)
    shares = [weight / largest for weight in weights]
    total = math.fsum(shares)
    return [share / total for share in shares]


def best_first(scores: Sequence[float]) -> list[int]:
    """Sort indices by score, the highest first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda number: -scores[number])


@dataclass(frozen=True)
class Trial:
    """One step of the greedy soup.

    Attributes:
        candidate: The index of the checkpoint that is tried.
        score: The score of the mean of the members so far and the candidate.
        joined: Whether the candidate became a member.
    """

    candidate: int
    score: float
    joined: bool


def greedy(
    order: Sequence[int], score: Callable[[Sequence[int]], float], *, strict: bool = False
) -> Iterator[Trial]:
    """Run the greedy soup (Recipe 1 of the paper), and yield every trial as soon as it is scored.

    The first candidate is a member. Every other one joins if the score with it is at least the best so far.

    Args:
        order: The indices of the candidates, in the order in which they are tried.
        score: Rates the uniform mean of some checkpoints, in the order in which they joined. Higher is
            better.
        strict: Whether the score must be above the best so far.
    """
    members, best = [order[0]], score([order[0]])
    yield Trial(order[0], best, True)
    for candidate in order[1:]:
        value = score([*members, candidate])
        joined = value > best if strict else value >= best
        if joined:
            members.append(candidate)
            best = value
        yield Trial(candidate, value, joined)
