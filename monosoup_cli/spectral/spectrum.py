"""Singular values and right singular vectors of a matrix that is read one block of rows at a time.

We compute the Gram matrix of the short side in float64 and its eigenvectors. This takes less time and memory
than a singular value decomposition, and a huge matrix never has to be in memory. But squaring loses half of
the digits: values below about 1e-8 of the largest would be noise. So the part of the spectrum that the Gram
matrix does not resolve is projected out and decomposed separately ("deflation"), until only the rounding
noise of float64 is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from monosoup_cli.spectral.eigen import Solver, eigh, eigvalsh

__all__ = ["Blocks", "Spectrum", "decompose", "gram", "has_moved", "held_bytes", "singular_values"]

Blocks = Callable[[], Iterable[torch.Tensor]]
"""A matrix (rows, side) with rows >= side, as float64 blocks of any number of rows.

Each call starts a new pass over the matrix; every pass yields the same blocks.
"""

RESOLVED = 1e-10
"""Eigenvalues of a Gram matrix above this share of the largest are kept: their σ are exact to about
5e-11 σ_1. The others are computed again from the rest of the matrix."""

STRONGEST = 0.1
"""The largest such share for a matrix of low rank whose σ differ widely."""

SHOWN = 32
"""The most that the other directions show of a resolved one, in σ_1² ε/σ_k: ten times what we have seen."""

SAFE_SQUARES = (1e-200, 1e200)
"""The range in which sums of squares neither overflow nor lose digits to denormals."""

GRAM_STRIPS = 4
"""The number of strips in which the upper triangle is computed, which saves 3/8 of the products."""

TURNED_ROWS = 256
"""The number of rows of the singular vectors that a deflation changes at a time."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a (rows, side) matrix and its right singular vectors.

    Attributes:
        singular_values: (side,) float64 on the CPU, largest first.
        vectors: The right singular vectors as columns in the same order, (side, side) float64 on the matrix's
            device.
    """

    singular_values: torch.Tensor
    vectors: torch.Tensor


def gram(blocks: Iterable[torch.Tensor], side: int) -> torch.Tensor:
    """Compute the upper triangle of AᵀA for a matrix A (rows, side).

    Args:
        blocks: The blocks of rows of A.
        side: The number of columns.

    Returns:
        (side, side) float64 on the blocks' device; zero below the diagonal blocks.
    """
    strip = max(-(-side // GRAM_STRIPS), 64)
    total: torch.Tensor | None = None
    for block in blocks:
        if total is None:
            total = block.new_zeros(side, side)
        for start in range(0, side, strip):
            total[start : start + strip, start:].addmm_(block[:, start : start + strip].T, block[:, start:])
    if total is None:
        raise ValueError("a matrix without blocks has no Gram matrix")
    return total


def decompose(blocks: Blocks, side: int, resolved: float = RESOLVED, solve: Solver = eigh) -> Spectrum:
    """Decompose a matrix (rows, side), rows >= side.

    Takes one pass over the blocks, and one more for each deflation of a matrix of low rank. Singular values
    are exact to about 1e-10 σ_1, and to 1e-15 σ_1 if the spectrum has a clear gap. No epsilon is used, so a
    matrix of norm 1e-150 is decomposed like any other.

    Args:
        blocks: The matrix.
        side: The number of columns.
        resolved: The share of σ_1² above which eigenvalues are kept. A higher value takes more passes, and
            makes the weak directions more exact.
        solve: What decomposes Gram matrices.

    Raises:
        FloatingPointError: The matrix contains NaN or Inf.
    """
    blocks, matrix, exponent = _in_range(blocks, side)
    if not matrix.diagonal().any():
        return Spectrum(torch.zeros(side, dtype=torch.float64), torch.eye(side).to(matrix))
    squares, vectors = solve(matrix)
    del matrix
    values = _deflate(blocks, squares, vectors, resolved, solve)
    return Spectrum(torch.ldexp(values, torch.tensor(exponent)), vectors)


def singular_values(blocks: Blocks, side: int) -> torch.Tensor:
    """Compute the singular values of a matrix (rows, side), rows >= side.

    They are as exact as those of `decompose`, and take half the time unless deflation is needed.

    Returns:
        (side,) float64 on the CPU, largest first.

    Raises:
        FloatingPointError: The matrix contains NaN or Inf.
    """
    blocks, matrix, exponent = _in_range(blocks, side)
    if not matrix.diagonal().any():
        return torch.zeros(side, dtype=torch.float64)
    squares = eigvalsh(matrix)
    if float(squares[-1]) > RESOLVED * float(squares[0]):
        values = squares.sqrt()
    else:
        squares, vectors = eigh(matrix)
        del matrix
        values = _deflate(blocks, squares, vectors, RESOLVED, eigh)
    return torch.ldexp(values, torch.tensor(exponent))


def held_bytes(length: int, side: int) -> int:
    """How many bytes `decompose` takes at most, besides the block that it is given.

    Args:
        length: The number of rows of a block.
        side: The number of columns.
    """
    # the Gram matrix, a copy that becomes its eigenvectors, LAPACK's workspace of two, and the directions of
    # the whole matrix that are deflated; of a block the scaled copy, and its part in these directions
    return 8 * (5 * side**2 + 2 * length * side)


def has_moved(singular_values: torch.Tensor) -> bool:
    """Return whether a matrix with these singular values, largest first, is not zero.

    Raises:
        FloatingPointError: Their sum overflows float64.
    """
    if not math.isfinite(singular_values.sum()):
        raise FloatingPointError("the singular values of the update overflow float64")
    return float(singular_values[0]) > 0.0


def _in_range(blocks: Blocks, side: int) -> tuple[Blocks, torch.Tensor, int]:
    """Scale the matrix by 2^-exponent if its squares would overflow or underflow.

    Returns:
        The scaled matrix, its Gram matrix, and the exponent.
    """
    matrix = gram(blocks(), side)
    if SAFE_SQUARES[0] < float(matrix.diagonal().sum()) < SAFE_SQUARES[1]:
        return blocks, matrix, 0
    peak = float(torch.stack([block.abs().max() for block in blocks()]).max())
    if not math.isfinite(peak):
        raise FloatingPointError("the matrix holds NaN or Inf")
    if peak == 0.0:
        return blocks, matrix, 0
    exponent = max(math.frexp(peak)[1], -1000)  # 2^1024 is beyond float64

    def scaled() -> Iterable[torch.Tensor]:
        return (torch.ldexp(block, torch.tensor(-exponent).to(block)) for block in blocks())

    return scaled, gram(scaled(), side), exponent


def _deflate(
    blocks: Blocks, squares: torch.Tensor, vectors: torch.Tensor, share: float, solve: Solver
) -> torch.Tensor:
    """Compute σ from the decomposition of a Gram matrix.

    What it does not resolve is decomposed again without the rest, until only rounding noise is left. The
    memory does not grow with the number of times.

    The rounding of the Gram matrix turns a direction of σ_k towards the others, which then show a part of it:
    about σ_1² ε/σ_k. Where most of the others show nothing larger, it is done anew, and each Gram matrix only
    gives directions that are so strong that the others show less than rounding.

    Args:
        blocks: The matrix.
        squares: The eigenvalues of its Gram matrix, largest first, (side,) on the CPU.
        vectors: The eigenvectors; they are made more exact in place.
        share: The share of the largest eigenvalue above which the others are resolved.
        solve: What decomposes Gram matrices.

    Returns:
        (side,) on the CPU.
    """
    side, resolved, shown = len(squares), 0, 0.0
    epsilon = torch.finfo(torch.float64).eps
    strict = min(STRONGEST, max((SHOWN / side) ** 2, share))  # what these show is below the floor, or near
    floor = float(squares[0]) * (side * epsilon) ** 2
    values = torch.zeros_like(squares)
    while True:
        squares = squares.clamp(min=0.0)
        values[resolved:] = squares.sqrt()
        largest = float(squares[0])
        if floor < largest <= shown and 2 * resolved < side:
            share, shown = strict, 0.0
            resolved = int((values.square() > share * values[0].square()).sum())
        elif largest <= max(floor, shown):
            return values
        else:
            kept = int((squares > max(share * largest, shown)).sum())
            resolved += kept
            if resolved == side:
                return values
            if share < strict:
                shown = max(shown, (SHOWN * epsilon * largest) ** 2 / float(squares[kept - 1]))
        rest = vectors[:, resolved:]
        squares, turned = solve(gram((block @ rest for block in blocks()), side - resolved))
        for rows in torch.split(rest, TURNED_ROWS):
            rows.copy_(rows @ turned)
        del turned
