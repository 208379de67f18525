"""Linear centred kernel alignment (CKA) of matrices that are read in pieces.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv 1905.00414:
CKA(X, Y) = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) for centred X and Y, with one row for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch

__all__ = ["Matrix", "Pair", "alignments", "passes"]

HELD_BYTES = 512 << 20
"""How many bytes of products one pass holds; at least one product."""
BLOCK_BYTES = 64 << 20
"""How many bytes of the matrices are in memory at once."""
NUMBER_BYTES = 8

Pair: TypeAlias = tuple[int, int]
"""The places of two matrices in a list, the smaller one first."""


class Matrix(Protocol):
    """A matrix of (samples, features) whose pieces are read in float64."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, rows: range, columns: range) -> torch.Tensor: ...


def alignments(matrices: Sequence[Matrix], pairs: Collection[Pair]) -> dict[Pair, float | None]:
    """Return the CKA of pairs of matrices with the same number of rows; None where one is constant.

    Raises:
        OverflowError: The squares of the numbers are beyond float64.
    """
    shapes = [matrix.shape for matrix in matrices]
    norms: dict[Pair, float] = {}
    for one in passes(shapes, pairs):
        norms |= (_by_samples if _has_few_samples(shapes) else _by_features)(matrices, one)
    if not all(map(math.isfinite, norms.values())):
        raise OverflowError
    return {pair: _alignment(norms, *pair) for pair in pairs}


def _alignment(norms: Mapping[Pair, float], first: int, second: int) -> float | None:
    own, other, both = norms[first, first], norms[second, second], norms[first, second]
    return min((both / own) * (both / other), 1.0) if own and other else None


def passes(shapes: Sequence[tuple[int, int]], pairs: Collection[Pair]) -> Iterator[list[Pair]]:
    """Yield the pairs of each pass, which reads every matrix in it once; each is also paired with itself."""
    few, limit = _has_few_samples(shapes), HELD_BYTES // NUMBER_BYTES
    held: dict[object, int] = {}
    one: list[Pair] = []
    for first, second in sorted({*pairs, *((place, place) for pair in pairs for place in pair)}):
        new: dict[object, int] = (
            {first: shapes[first][0] ** 2} if few else {(first, second): shapes[first][1] * shapes[second][1]}
        )
        if one and sum((held | new).values()) > limit:
            yield one
            held, one = {}, []
        held |= new
        one.append((first, second))
    if one:
        yield one


def _has_few_samples(shapes: Sequence[tuple[int, int]]) -> bool:
    return any(samples < width for samples, width in shapes)


def _ranges(stop: int, line_elements: int) -> Iterator[range]:
    """Cut 0:stop into ranges of lines of so many elements, each as long as a block may be."""
    step = max(BLOCK_BYTES // NUMBER_BYTES // line_elements, 1)
    for start in range(0, stop, step):
        yield range(start, min(start + step, stop))


def _by_features(matrices: Sequence[Matrix], pairs: Sequence[Pair]) -> dict[Pair, float]:
    """‖XᵀY‖ of every pair, by blocks of rows: XᵀY − (sum of X)ᵀ(sum of Y) / samples.

    The first row is taken off before, so that nothing cancels where the means are large.
    """
    used = {place: matrices[place] for pair in pairs for place in pair}
    samples = matrices[pairs[0][0]].shape[0]
    firsts: dict[int, torch.Tensor] = {}
    sums = {place: torch.zeros(one.shape[1], dtype=torch.float64) for place, one in used.items()}
    products = {
        (one, other): torch.zeros(len(sums[one]), len(sums[other]), dtype=torch.float64)
        for one, other in pairs
    }
    for rows in _ranges(samples, sum(map(len, sums.values()))):
        parts = {}
        for place, matrix in used.items():
            part = parts[place] = matrix.read(rows, range(matrix.shape[1]))
            first = firsts.setdefault(place, part[0].clone())
            sums[place] += part.sub_(first).sum(0)
        for (one, other), product in products.items():
            product.addmm_(parts[one].T, parts[other])
        del part, parts
    for (one, other), product in products.items():
        product.addr_(sums[one], sums[other], alpha=-1 / samples)
    return {pair: float(torch.linalg.vector_norm(product)) for pair, product in products.items()}


def _by_samples(matrices: Sequence[Matrix], pairs: Sequence[Pair]) -> dict[Pair, float]:
    """The same of fewer samples than features: ‖XᵀY‖² is the inner product of XXᵀ and YYᵀ."""
    held = {first: _gram(matrices[first]) for first in dict.fromkeys(first for first, _ in pairs)}
    wanted, norms = set(pairs), {}
    for second in dict.fromkeys(second for _, second in pairs):
        gram = held[second] if second in held else _gram(matrices[second])
        for first in held:
            if (first, second) in wanted:
                inner = float(torch.dot(held[first].view(-1), gram.view(-1)))
                norms[first, second] = math.sqrt(max(inner, 0.0)) if math.isfinite(inner) else inner
    return norms


def _gram(matrix: Matrix) -> torch.Tensor:
    """XXᵀ of the centred X, by blocks of columns."""
    samples, width = matrix.shape
    gram = torch.zeros(samples, samples, dtype=torch.float64)
    for columns in _ranges(width, samples):
        part = matrix.read(range(samples), columns)
        part -= part[0].clone()  # what is constant becomes exactly 0
        part -= part.mean(0)
        gram.addmm_(part, part.T)
        del part
    return gram
