"""Linear centred kernel alignment (CKA) of matrices that are read in pieces.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv 1905.00414:
CKA(X, Y) = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) for centred X and Y, with one row for each sample. ‖XᵀY‖² is also the inner
product of XXᵀ and YYᵀ. For each pair, we compute the smaller product, in tiles that fit into memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

__all__ = ["BLOCK_BYTES", "HELD_BYTES", "NUMBER_BYTES", "Matrix", "Pair", "Pass", "alignments", "passes"]

HELD_BYTES = 512 << 20
"""How many bytes of products one pass holds at most."""
BLOCK_BYTES = 64 << 20
"""How many bytes of the matrices are in memory at once."""
NUMBER_BYTES = 8

Pair: TypeAlias = tuple[int, int]
"""The places of two matrices in a list, the smaller one first."""
Strip: TypeAlias = tuple[int, range]
"""The place of a matrix, and some of its columns."""
Shapes: TypeAlias = Sequence[tuple[int, int]]


class Matrix(Protocol):
    """A matrix of (samples, features) whose pieces are read in float64."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, rows: range, columns: range) -> torch.Tensor: ...


@dataclass(frozen=True)
class Pass:
    """What is computed in one reading: products XᵀY of strips, or else one tile of XXᵀ of every matrix.

    Attributes:
        strips: What is read.
        products: The pairs of strips; none by samples.
        pairs: The pairs whose XXᵀ and YYᵀ are multiplied.
        tile: The rows and columns of the tile of XXᵀ.
    """

    strips: Sequence[Strip]
    products: Sequence[tuple[Strip, Strip]] = ()
    pairs: Sequence[Pair] = ()
    tile: tuple[range, range] = (range(0), range(0))


def alignments(
    matrices: Sequence[Matrix], pairs: Collection[Pair], limit: int = HELD_BYTES
) -> dict[Pair, float | None]:
    """Return the CKA of pairs of matrices with the same number of rows; None where one is constant.

    Args:
        matrices: The matrices.
        pairs: Which of them are compared.
        limit: How many bytes of products are in memory at once.

    Raises:
        OverflowError: The squares of the numbers are beyond float64.
    """
    norms: dict[Pair, float] = defaultdict(float)
    inner: dict[Pair, float] = defaultdict(float)
    for one in passes([matrix.shape for matrix in matrices], pairs, limit):
        if one.products:
            _add_by_features(norms, matrices, one)
        else:
            _add_by_samples(inner, matrices, one)
    if not all(map(math.isfinite, (*norms.values(), *inner.values()))):
        raise OverflowError
    norms |= {pair: math.sqrt(max(square, 0.0)) for pair, square in inner.items()}
    return {pair: _alignment(norms, *pair) for pair in pairs}


def _alignment(norms: Mapping[Pair, float], first: int, second: int) -> float | None:
    own, other, both = norms[first, first], norms[second, second], norms[first, second]
    return min((both / own) * (both / other), 1.0) if own and other else None


def passes(shapes: Shapes, pairs: Collection[Pair], limit: int = HELD_BYTES) -> Iterator[Pass]:
    """Yield the passes for some pairs; each matrix is also paired with itself."""
    every = sorted({*pairs, *((place, place) for pair in pairs for place in pair)})
    by_samples = [
        (first, second)
        for first, second in every
        if shapes[first][1] * shapes[second][1] > shapes[first][0] ** 2
    ]
    yield from _passes_by_features(shapes, sorted({*every} - {*by_samples}), limit // NUMBER_BYTES)
    yield from _passes_by_samples(shapes, by_samples, limit // NUMBER_BYTES)


def _passes_by_features(shapes: Shapes, pairs: Sequence[Pair], limit: int) -> Iterator[Pass]:
    strips = [
        [(place, columns) for columns in _ranges(width, math.isqrt(limit))]
        for place, (_, width) in enumerate(shapes)
    ]
    products: list[tuple[Strip, Strip]] = []
    held = 0

    def done() -> Pass:
        return Pass(list(dict.fromkeys(strip for product in products for strip in product)), products)

    for first, second in pairs:
        for number, one in enumerate(strips[first]):
            for other in strips[second][number if first == second else 0 :]:
                size = len(one[1]) * len(other[1])
                if products and held + size > limit:
                    yield done()
                    products, held = [], 0
                products.append((one, other))
                held += size
    if products:
        yield done()


def _passes_by_samples(shapes: Shapes, pairs: Sequence[Pair], limit: int) -> Iterator[Pass]:
    """A pass holds a tile of XXᵀ for the first matrix of every pair, and one more."""
    if not pairs:
        return
    rows = list(_ranges(shapes[pairs[0][0]][0], math.isqrt(limit // 2)))
    for number, down in enumerate(rows):
        for across in rows[number:]:
            tiles = limit // (len(down) * len(across)) - 1
            firsts = list(dict.fromkeys(first for first, _ in pairs))
            for start in range(0, len(firsts), tiles):
                some = [pair for pair in pairs if pair[0] in firsts[start : start + tiles]]
                places = dict.fromkeys(place for pair in some for place in pair)
                strips = [(place, range(shapes[place][1])) for place in places]
                yield Pass(strips, pairs=some, tile=(down, across))


def _ranges(stop: int, step: int) -> Iterator[range]:
    for start in range(0, stop, step):
        yield range(start, min(start + step, stop))


def _blocks(stop: int, line_elements: int) -> Iterator[range]:
    """Cut 0:stop into ranges of lines of so many elements, each as long as a block may be."""
    return _ranges(stop, max(BLOCK_BYTES // NUMBER_BYTES // line_elements, 1))


def _add_by_features(norms: dict[Pair, float], matrices: Sequence[Matrix], one: Pass) -> None:
    """Add ‖XᵀY‖ of every product, by blocks of rows: XᵀY − (sum of X)ᵀ(sum of Y) / samples.

    The first row is taken off before, so that nothing cancels where the means are large.
    """
    samples = matrices[one.strips[0][0]].shape[0]
    firsts: dict[Strip, torch.Tensor] = {}
    sums = {strip: torch.zeros(len(strip[1]), dtype=torch.float64) for strip in one.strips}
    products = [
        torch.zeros(len(first[1]), len(second[1]), dtype=torch.float64) for first, second in one.products
    ]
    for rows in _blocks(samples, sum(map(len, sums.values()))):
        parts = {}
        for strip in one.strips:
            place, columns = strip
            part = parts[strip] = matrices[place].read(rows, columns)
            row = firsts.setdefault(strip, part[0].clone())
            sums[strip] += part.sub_(row).sum(0)
        for (first, second), product in zip(one.products, products, strict=True):
            product.addmm_(parts[first].T, parts[second])
        del part, parts
    for (first, second), product in zip(one.products, products, strict=True):
        product.addr_(sums[first], sums[second], alpha=-1 / samples)
        norm = float(torch.linalg.vector_norm(product))
        pair = (first[0], second[0])
        times = math.sqrt(2.0) if pair[0] == pair[1] and first != second else 1.0  # its mirror image
        norms[pair] = math.hypot(norms[pair], times * norm)


def _add_by_samples(inner: dict[Pair, float], matrices: Sequence[Matrix], one: Pass) -> None:
    """Add the inner product of a tile of XXᵀ and of YYᵀ to that of every pair."""
    down, across = one.tile
    times = 1.0 if down == across else 2.0  # its mirror image
    held = {
        first: _gram(matrices[first], *one.tile) for first in dict.fromkeys(first for first, _ in one.pairs)
    }
    wanted = set(one.pairs)
    for second in dict.fromkeys(second for _, second in one.pairs):
        gram = held[second] if second in held else _gram(matrices[second], *one.tile)
        for first in held:
            if (first, second) in wanted:
                inner[first, second] += times * float(torch.dot(held[first].view(-1), gram.view(-1)))


def _gram(matrix: Matrix, down: range, across: range) -> torch.Tensor:
    """A tile of XXᵀ of the centred X, by blocks of columns."""
    samples, width = matrix.shape
    gram = torch.zeros(len(down), len(across), dtype=torch.float64)
    for columns in _blocks(width, samples):
        part = matrix.read(range(samples), columns)
        part -= part[0].clone()  # what is constant becomes exactly 0
        part -= part.mean(0)
        gram.addmm_(part[down.start : down.stop], part[across.start : across.stop].T)
        del part
    return gram
