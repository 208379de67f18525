"""The largest singular value that storing a matrix in few bits makes, by rounding alone.

Rounding to the nearest number of a format errs by up to half a unit in the last place, evenly: its
variance is ulp²/12. A random matrix whose independent entries have variances s²_ij has no singular
value much above sqrt(max_i Σ_j s²_ij) + sqrt(max_j Σ_i s²_ij) (Bandeira & van Handel, 2016,
Theorem 3.1), which for equal variances is the familiar s (√m + √n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["AboveRounding", "Rounding", "above_rounding"]

EXPONENT_BITS = 0x7FF0000000000000
"""Of a float64; what is left of a number is the power of two below it."""


CACHED_ELEMENTS = 1 << 17
"""Of a block, what is looked at together: all steps then find it in the cache."""

MARGIN = 1.5
"""For the rounding of what was computed before it was stored: of a product that is merged, say."""


class Rounding:
    """Collects, block by block, what rounding to a format of this `finfo` may have added to an update.

    `count`: of how many stored matrices the update is the mean.
    """

    def __init__(self, finfo: torch.finfo, count: int = 1) -> None:
        self._finfo, self._count = finfo, count
        self._of_columns: torch.Tensor | None = None
        self._of_rows: list[torch.Tensor] = []
        self._buffer: torch.Tensor | None = None
        self._unit = 0.0

    def add(self, base: torch.Tensor, update: torch.Tensor) -> None:
        """A block of the base and of the update, (rows, side) float64. Rows that did not move were not
        rounded: they were copied."""
        step = max(CACHED_ELEMENTS // max(base.shape[1], 1), 1)
        if not self._unit:  # about the weights' size, so that their squares neither over- nor underflow
            peak = float(torch.maximum(base[:step].abs().max(), update[:step].abs().max()))
            self._unit = 2.0 ** max(math.frexp(peak)[1] - 1, -1000)
        for start in range(0, len(base), step):
            self._add(base[start : start + step], update[start : start + step])

    def _add(self, base: torch.Tensor, update: torch.Tensor) -> None:
        if self._buffer is None or self._buffer.shape != base.shape:
            self._buffer = torch.empty_like(base)
        torch.add(base, update, out=self._buffer).view(torch.int64).bitwise_and_(EXPONENT_BITS)
        squares = self._buffer.clamp_(min=self._finfo.smallest_normal).mul_(1.0 / self._unit).square_()
        # `update.any(dim=1)`, which would see norms below 1e-154 too, takes three times as long
        has_moved = (torch.linalg.vector_norm(update, dim=1) > 0.0).to(torch.float64)
        self._of_rows.append((squares.sum(1) * has_moved).max())
        columns = has_moved @ squares
        self._of_columns = columns if self._of_columns is None else self._of_columns + columns

    def sigma(self, update_norm: float) -> float:
        """The largest singular value to be expected of the rounding, with a margin.

        The mean of N has less of it by √N, if the roundings are independent: not where updates are so
        small that all round the same base in the same way. `update_norm`: ‖Δ‖_F, which tells.
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
    """How a spectrum stands to `rounding_sigma`, the largest singular value that rounding makes.

    `rank_above_rounding` counts the singular values above it; `rounding_share` is the others' part of
    Σσ; `gap_above_rounding` how many times the last above is the first below (None where either is
    missing, or the latter is 0).
    """

    rounding_sigma: float
    rank_above_rounding: int
    rounding_share: float
    gap_above_rounding: float | None


def above_rounding(singular_values: torch.Tensor, sigma: float) -> AboveRounding:
    """`singular_values`: (r,) float64, largest first, not all zero; `sigma`: of `Rounding`."""
    rank = int((singular_values > sigma).sum())
    below = float(singular_values[rank:].sum() / singular_values.sum())
    gap = None
    if 0 < rank < len(singular_values) and float(singular_values[rank]) > 0.0:
        gap = float(singular_values[rank - 1] / singular_values[rank])
    return AboveRounding(sigma, rank, below, gap if gap is None or gap < math.inf else None)
