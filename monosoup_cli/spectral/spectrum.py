"""Singular values and right singular vectors of a matrix that is seen one block of rows at a time.

The route is the Gram matrix of the short side in float64 and its eigenvectors: less time and
memory than a singular value decomposition, and blocks of a huge matrix can come and go. Squaring
costs half of the digits: values below about 1e-8 of the largest would be noise. So the part of
the spectrum that the Gram matrix does not resolve is projected out and decomposed by itself
(`decompose` calls this deflation), until what is left is the rounding noise of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

__all__ = ["Blocks", "Spectrum", "decompose", "gram", "has_moved", "singular_values"]

Blocks = Callable[[], Iterable[torch.Tensor]]
"""A matrix (rows, side) with rows >= side, as blocks (any number of rows, side) in float64.

Calling it starts a new pass over the matrix; every pass yields the same blocks.
"""

RESOLVED = 1e-10
"""Eigenvalues of a Gram matrix above this share of the largest are kept; there σ is right to
about 5e-11 σ_1. The others are found again from what is left of the matrix without them."""

SAFE_SQUARES = (1e-200, 1e200)
"""Where sums of squares lose nothing to overflow or to denormals."""

GRAM_STRIPS = 4
"""The Gram matrix is symmetric: its upper triangle by strips saves 3/8 of the products."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a (rows, side) matrix and its right singular vectors.

    `singular_values`: (side,) float64 on the CPU, largest first. `vectors`: (side, side) float64
    on the matrix's device, one direction a column, in the same order.
    """

    singular_values: torch.Tensor
    vectors: torch.Tensor


def gram(blocks: Iterable[torch.Tensor], side: int) -> torch.Tensor:
    """AᵀA of a matrix A (rows, side) given in blocks; only its upper triangle is filled in.

    Returns (side, side) float64 on the blocks' device.
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


def decompose(blocks: Blocks, side: int, resolved: float = RESOLVED) -> Spectrum:
    """The spectrum of a matrix (rows, side), rows >= side, in one pass over its blocks.

    A matrix of low rank takes a pass more for each deflation. Singular values are right to about
    1e-10 σ_1, and to 1e-15 σ_1 where the spectrum has a clear gap; no epsilon is used, so that a
    matrix of norm 1e-150 is decomposed like any other. A higher `resolved` (a share of σ_1²) takes
    more passes and keeps the weak directions purer.

    Raises FloatingPointError where the matrix holds NaN or Inf.
    """
    blocks, matrix, exponent = _in_range(blocks, side)
    if not matrix.any():
        return Spectrum(torch.zeros(side, dtype=torch.float64), torch.eye(side).to(matrix))
    values, vectors = _decompose(blocks, matrix, resolved)
    return Spectrum(torch.ldexp(values, torch.tensor(exponent)), vectors)


def singular_values(blocks: Blocks, side: int) -> torch.Tensor:
    """The singular values of a matrix (rows, side), rows >= side: (side,) float64 on the CPU, largest first.

    As right as `decompose` has them, in half of its time; where the Gram matrix does not resolve them
    all, by way of `decompose`. Raises FloatingPointError where the matrix holds NaN or Inf.
    """
    blocks, matrix, exponent = _in_range(blocks, side)
    if not matrix.any():
        return torch.zeros(side, dtype=torch.float64)
    squares = torch.linalg.eigvalsh(matrix, UPLO="U").cpu().flip(0)
    if float(squares[-1]) > RESOLVED * float(squares[0]):
        values = squares.sqrt()
    else:
        values, _ = _decompose(blocks, matrix, RESOLVED)
    return torch.ldexp(values, torch.tensor(exponent))


def has_moved(singular_values: torch.Tensor) -> bool:
    """Whether the matrix with these singular values, largest first, is not zero.

    Raises:
        FloatingPointError: Their sum overflows float64.
    """
    if not math.isfinite(singular_values.sum()):
        raise FloatingPointError("the singular values of the update overflow float64")
    return float(singular_values[0]) > 0.0


def _in_range(blocks: Blocks, side: int) -> tuple[Blocks, torch.Tensor, int]:
    """The matrix, times 2^-exponent where its squares would over- or underflow; its Gram matrix; and the
    exponent."""
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


def _decompose(
    blocks: Blocks, matrix: torch.Tensor, share: float, floor: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """σ (on the CPU) and V from a Gram matrix, deflated until what is left lies below `floor`."""
    squares, vectors = torch.linalg.eigh(matrix, UPLO="U")
    squares, vectors = squares.cpu().flip(0).clamp_(min=0.0), vectors.flip(1)
    side, largest = len(squares), float(squares[0])
    if floor is None:
        floor = largest * (side * torch.finfo(torch.float64).eps) ** 2
    resolved = int((squares > share * largest).sum())
    if resolved == side or largest <= floor:
        return squares.sqrt(), vectors
    rest = vectors[:, resolved:]

    def remainder() -> Iterable[torch.Tensor]:
        return (block @ rest for block in blocks())

    values, turned = _decompose(remainder, gram(remainder(), side - resolved), share, floor)
    return (
        torch.cat([squares[:resolved].sqrt(), values]),
        torch.cat([vectors[:, :resolved], rest @ turned], dim=1),
    )
