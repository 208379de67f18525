"""Similarity-filtered greedy soup: average the checkpoints whose updates point the same way.

Section 3 of "Model soups need only one ingredient" (arXiv 2602.09689), called "the paper" here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Decision", "cosines", "decide", "gram_matrix", "members_of", "similarity", "thresholds"]

Matrix = Sequence[Sequence[float]]

ROUNDING = 1e-12
"""Similarities that are closer than this differ by rounding alone, as those of two copies may."""


def gram_matrix(ranges: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Compute the inner products of N rows that are seen range by range.

    It multiplies two or three rows at a time: depending on the processor, BLAS is slower on one long row, and
    up to several times slower on a few more.

    Args:
        ranges: Yields ranges of all rows, (N, any number) float64.
        count: N.

    Returns:
        (N, N) float64.
    """
    import torch

    gram, last = torch.zeros(count, count, dtype=torch.float64), None
    products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for rows in ranges:
        if last is None:
            gram = gram.to(rows.device)
        if rows is not last:  # a buffer that is filled again has its views already
            last, products, first = rows, [], 0
            for some in rows.tensor_split(math.ceil(count / 3)):
                stop = first + len(some)
                products.append((gram[first:stop, :stop], some, rows[:stop].T))
                first = stop
        for part, some, before in products:
            part.addmm_(some, before)
    return gram.tril() + gram.tril(-1).T


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """Cosines between updates from their inner products, both (..., N, N) float64.

    A cosine is 0 where one of the two updates is zero. No epsilon is used.
    """
    import torch

    _, exponent = torch.frexp(gram.diagonal(dim1=-2, dim2=-1).amax(-1))
    gram = gram * (2.0 ** -exponent.double())[..., None, None]  # so that products of norms keep in range
    squares = gram.diagonal(dim1=-2, dim2=-1)
    norms = (squares.unsqueeze(-1) * squares.unsqueeze(-2)).sqrt()
    return torch.where(norms > 0.0, gram / torch.where(norms > 0.0, norms, 1.0), 0.0).clamp(-1.0, 1.0)


def similarity(grams: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Compute C_ij, the mean over layers of the cosine of two updates; all layers have the same weight.

    A layer in which neither of two checkpoints moved is left out of their mean. Two checkpoints that moved in
    no layer have similarity 0.

    Args:
        grams: The inner products of the updates, (N, N) float64 for every layer.
        count: N.

    Returns:
        (N, N) float64.
    """
    import torch

    total, layers = (torch.zeros(count, count, dtype=torch.float64) for _ in range(2))
    for gram in grams:
        has_moved = gram.diagonal() > 0.0
        total += cosines(gram)
        layers += has_moved.unsqueeze(0) | has_moved.unsqueeze(1)
    return total / layers.clamp(min=1.0)


@dataclass(frozen=True)
class Decision:
    """Whether a candidate became a member, and its mean similarity to the members before it."""

    candidate: int
    similarity: float
    joined: bool


def decide(matrix: Matrix, order: Sequence[int], threshold: float) -> list[Decision]:
    """Decide which checkpoints are averaged (Section 3 of the paper).

    The first of `order` is a member. Every other one joins if its mean similarity to the members so far is at
    least `threshold`.
    """
    members, decisions = [order[0]], []
    for candidate in order[1:]:
        mean = math.fsum(matrix[candidate][member] for member in members) / len(members)
        decisions.append(Decision(candidate, mean, mean >= threshold))
        if decisions[-1].joined:
            members.append(candidate)
    return decisions


def members_of(order: Sequence[int], decisions: Sequence[Decision]) -> list[int]:
    """The checkpoints that are averaged, in the order in which they joined."""
    return [order[0], *(decision.candidate for decision in decisions if decision.joined)]


def thresholds(matrix: Matrix, order: Sequence[int]) -> Iterator[tuple[float | None, list[int]]]:
    """Yield every choice that some threshold makes, from the strictest down.

    Each choice is (highest threshold, members). It holds from that threshold down to the next choice's, which
    is excluded. The first choice has no highest threshold: None.
    """
    highest: float | None = None
    while True:
        decisions = decide(matrix, order, math.inf if highest is None else highest)
        yield highest, members_of(order, decisions)
        rejected = [decision.similarity for decision in decisions if not decision.joined]
        if not rejected:
            return
        highest = min(value for value in rejected if value > max(rejected) - ROUNDING)
