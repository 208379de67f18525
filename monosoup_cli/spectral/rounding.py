"""Estimate the largest singular value that rounding a matrix to few bits adds to it.

Rounding to the nearest number of a format has an error that is uniform within half a unit in the last place:
its variance is ulp²/12. A random matrix whose independent entries have variances s²_ij has no singular
value much above sqrt(max_i Σ_j s²_ij) + sqrt(max_j Σ_i s²_ij) (Bandeira & van Handel, 2016,
Theorem 3.1), which for equal variances is the familiar s (√m + √n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["AboveRounding", "Rounding", "above_rounding"]

EXPONENT_BITS = 0x7FF0000000000000
"""The exponent bits of a float64. Masking a number with them leaves the power of two below it."""


CACHED_ELEMENTS = 1 << 17
"""How many elements of a block are processed at a time, so that they stay in the cache."""

MARGIN = 1.5
"""A safety margin for rounding in earlier computations, such as merging a product."""


class Rounding:
    """Collects, block by block, what rounding may have added to an update.

    Args:
        finfo: The format to which the matrices were rounded.
        count: The number of stored matrices of which the update is the mean.
    """

    def __init__(self, finfo: torch.finfo, count: int = 1) -> None:
        self._finfo, self._count = finfo, count
        self._of_columns: torch.Tensor | None = None
        self._of_rows: list[torch.Tensor] = []
        self._buffer: torch.Tensor | None = None
        self._unit = 0.0

    def add(self, base: torch.Tensor, update: torch.Tensor) -> None:
        """Add a block. Rows that did not move do not count: they were copied, not rounded.

        Args:
            base: A block of the base, (rows, side) float64.
            update: The same block of the update, (rows, side) float64.
        """
        step = max(CACHED_ELEMENTS // max(base.shape[1], 1), 1)
        if not self._unit:  # about the weights' size, so that their squares neither over- nor underflow
            peak = float(torch.maximum(base[:step].abs().max(), update[:step].abs().max()))
            self._unit = 2.0 ** max(math.frexp(peak)[1] - 1, -1000)
        for start in range(0, len(base), step):
            self._add(base[start : start + step], update[start : start + step])

    def _add(self, base: torch.Tensor, update: torch.Tensor) -> None:
        if self._buffer is None or self._buffer.shape != base.shape:
            self._buffer = torch.empty_like(base)
        # `update.any(dim=1)` takes three times as long; so do norms where blocks are transposed
        has_moved = (torch.abs(update, out=self._buffer).sum(1) > 0.0).to(torch.float64)
        torch.add(base, update, out=self._buffer).view(torch.int64).bitwise_and_(EXPONENT_BITS)
        squares = self._buffer.clamp_(min=self._finfo.smallest_normal).mul_(1.0 / self._unit).square_()
        self._of_rows.append((squares.sum(1) * has_moved).max())
        columns = has_moved @ squares
        self._of_columns = columns if self._of_columns is None else self._of_columns + columns

    def sigma(self, update_norm: float) -> float:
        """Return the largest singular value to expect from rounding, with a margin.

        The mean of N matrices has √N times less of it if their roundings are independent. They are not if the
        updates are so small that all matrices round the same base in the same way.

        Args:
            update_norm: ‖Δ‖_F, which decides whether the roundings are independent.
        """
        if self._of_columns is None:
            return 0.0
        last_place = self._finfo.eps * self._unit
        largest = torch.stack([torch.stack(self._of_rows).max(), self._of_columns.max()]).sqrt().sum()
        is_independent = update_norm > last_place * math.sqrt(float(self._of_columns.sum()))
        count = self._count if is_independent else 1
        return MARGIN * float(largest) * last_place / math.sqrt(12.0 * count)


@dataclass(frozen=True)
class AboveRounding:
    """How much of a spectrum is above what rounding makes.

    Attributes:
        rounding_sigma: The largest singular value that rounding makes.
        rank_above_rounding: The number of singular values above it.
        rounding_share: The share of the other singular values in Σσ.
        gap_above_rounding: The smallest singular value above it, divided by the largest one below. None if
            either is missing, or the latter is 0.
    """

    rounding_sigma: float
    rank_above_rounding: int
    rounding_share: float
    gap_above_rounding: float | None


def above_rounding(singular_values: torch.Tensor, sigma: float) -> AboveRounding:
    """Compare a spectrum with what rounding makes.

    Args:
        singular_values: (r,) float64, largest first, not all zero.
        sigma: The result of `Rounding.sigma`.
    """
    rank = int((singular_values > sigma).sum())
    below = float(singular_values[rank:].sum() / singular_values.sum())
    gap = None
    if 0 < rank < len(singular_values) and float(singular_values[rank]) > 0.0:
        gap = float(singular_values[rank - 1] / singular_values[rank])
    return AboveRounding(sigma, rank, below, gap if gap is None or gap < math.inf else None)
