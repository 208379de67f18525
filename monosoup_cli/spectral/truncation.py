"""Approximate an edited update by a low rank (Eckart and Young, 1936)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from monosoup_cli.spectral.spectrum import Blocks, Spectrum

__all__ = ["Truncated", "held_bytes", "rank_holding", "truncate"]


@dataclass(frozen=True)
class Truncated:
    """A low-rank approximation left @ right of an edited update.

    Attributes:
        left: (rows, rank) float64 on the update's device.
        right: (rank, side) float64 on the update's device.
        error: ‖edited − left @ right‖_F / ‖edited‖_F; 0 for an edited update of zeros.
    """

    left: torch.Tensor
    right: torch.Tensor
    error: float


def truncate(
    updates: Blocks, length: int, spectrum: Spectrum, edited: Sequence[torch.Tensor], rank: int
) -> list[Truncated]:
    """Approximate edited updates by their `rank` largest components. Takes one pass over the update.

    Args:
        updates: The update Δ in blocks of rows.
        length: The number of rows of Δ.
        spectrum: The decomposition of Δ.
        edited: For every approximation, the singular values of the edited update, (side,) float64 on the CPU,
            in the order of Δ's.
        rank: The rank of the approximations.
    """
    values = spectrum.singular_values
    chosen = [scaled.argsort(descending=True, stable=True)[:rank] for scaled in edited]
    vectors = [spectrum.vectors[:, kept.to(spectrum.vectors.device)] for kept in chosen]
    lefts = [columns.new_empty(length, columns.shape[1]) for columns in vectors]
    start = 0
    for block in updates():
        for left, columns in zip(lefts, vectors, strict=True):
            torch.mm(block, columns, out=left[start : start + len(block)])
        start += len(block)
    truncated = []
    for left, kept, scaled, columns in zip(lefts, chosen, edited, vectors, strict=True):
        half = scaled[kept].sqrt()
        # Δ v is σ u; the square root of the edited σ goes to each side
        share = torch.where(values[kept] > 0.0, half / values[kept], 0.0).to(columns)
        squares = (scaled / values[0]).square()
        total = float(squares.sum())
        squares[kept] = 0.0
        error = math.sqrt(float(squares.sum()) / total) if total else 0.0
        truncated.append(Truncated(left.mul_(share), half.to(columns)[:, None] * columns.T, error))
    return truncated


def held_bytes(length: int, side: int, rank: int, count: int) -> int:
    """How many bytes `count` approximations take: both factors, and the vectors and scales that they are made
    from."""
    rank = min(rank, side)
    return 8 * count * rank * (length + 2 * side + 2)


def rank_holding(edited: torch.Tensor, energy: float) -> int:
    """Return the smallest rank whose best approximation has a share `energy` of ‖edited‖_F².

    Args:
        edited: The singular values of the edited update, (side,) float64, in any order, not all zero.
        energy: In (0, 1].
    """
    held = edited.sort(descending=True).values.square().cumsum(0)
    return min(1 + int((held < energy * held[-1]).sum()), len(edited))
