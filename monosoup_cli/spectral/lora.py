"""Compute the updates of LoRA and DoRA adapters from their factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["MergedTensor", "held_bytes", "joined_factors", "lora_factors"]

BLOCK_ELEMENTS = 1 << 19
"""How many elements of a tensor are merged at a time."""

Factors = tuple[torch.Tensor, torch.Tensor]


def lora_factors(
    a: torch.Tensor, b: torch.Tensor, scale: float, *, rank: int, experts: int | None, is_transposed: bool
) -> list[Factors]:
    """Return the factors of every matrix: left (rows, rank), times the scale, and right (rank, columns).

    Args:
        a: The factor A in float64; (rank, in, …), or (experts · rank, in) for a stack.
        b: The factor B in float64; (out, rank, …), or (out, rank · experts) for a stack.
        scale: What the product is multiplied by.
        rank: The rank of one matrix.
        experts: The number of matrices in a stack; None for a single matrix.
        is_transposed: Whether the update is the transpose of B·A.
    """
    if experts is None:
        pairs = [(b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))]
    else:
        a, b = a.reshape(experts, rank, -1), b.reshape(b.shape[0], rank, experts)
        pairs = [(b[:, :, index], a[index]) for index in range(experts)]
    if is_transposed:
        pairs = [(a.T, b.T) for b, a in pairs]
    return [(left * scale, right) for left, right in pairs]


Rows = tuple[int, int] | None


def joined_factors(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor, Sequence[tuple[float, Rows, Rows]]]], rows: int
) -> Factors:
    """Return the factors of a matrix whose rows several updates change, each other ones.

    Args:
        parts: (A, B, where the update goes) of every update. It goes to places (scale, the rows of the
            matrix, the rows of B); None is all rows.
        rows: The number of rows of the matrix.
    """
    right = torch.cat([a.reshape(a.shape[0], -1) for a, _, _ in parts])
    left = torch.zeros(rows, len(right), dtype=right.dtype)
    done = 0
    for a, b, places in parts:
        for scale, of_matrix, of_b in places:
            part = b.reshape(b.shape[0], -1)[slice(*(of_b or (0, None)))]
            left[slice(*(of_matrix or (0, None))), done : done + len(a)] = scale * part
        done += len(a)
    return left, right


def held_bytes(columns: int, factors: Sequence[int], others: Sequence[int]) -> int:
    """Compute how many bytes making and reading a `MergedTensor` takes at most.

    Args:
        columns: The number of columns of the tensor.
        factors: The elements of A and of B; empty if there are none.
        others: The elements of everything else that the adapter has for the tensor.
    """
    held = 2 * sum(factors) + sum(others)  # the factors once for the blocks, once for their own sake
    copied = max((*(2 * count for count in factors), *others), default=0)  # as stored, and before scaling
    blocks = 3 * max(BLOCK_ELEMENTS, columns)  # in float64, as stored, and squared
    return 8 * (held + max(copied, blocks))


@dataclass
class MergedTensor:
    """A tensor with an adapter merged into it, as a matrix (shape[0], −1); for a stack (experts · rows, −1).

    NaN and Inf pass through: the reader checks for them.

    Attributes:
        base: Fills a flat float64 tensor with the base's elements from some number on, and returns it.
        rows: The number of rows.
        columns: The number of columns.
        factors: The update of every matrix.
        replaced: The rows that the adapter replaces, by index.
        added: A bias that is added, (rows, −1); None for none.
    """

    base: Callable[[torch.Tensor, int], torch.Tensor]
    rows: int
    columns: int
    factors: Sequence[Factors] = ()
    replaced: Mapping[int, torch.Tensor] = field(default_factory=dict)
    added: torch.Tensor | None = None
    _by_row: torch.Tensor | None = None
    _by_column: torch.Tensor | None = None

    def scale_to(self, magnitude: torch.Tensor, *, by_column: bool) -> None:
        """Scale the sum of base and update to DoRA's magnitudes from now on. Takes one pass over the tensor.

        Args:
            magnitude: The norms to which the rows, or the columns, are scaled.
            by_column: Whether to scale columns instead of rows.
        """
        squares = torch.zeros(self.columns if by_column else self.rows, dtype=torch.float64)
        step = max(BLOCK_ELEMENTS // max(self.columns, 1), 1)
        for start in range(0, self.rows, step):
            block = self.block(start, min(start + step, self.rows)).square()
            if by_column:
                squares += block.sum(0)
            else:
                squares[start : start + step] = block.sum(1)
        scales = magnitude / squares.sqrt()
        if by_column:
            self._by_column = scales
        else:
            self._by_row = scales[:, None]

    def block(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the rows start:stop, (rows, columns) in float64, in `out` where that is given."""
        size = (stop - start) * self.columns
        flat = torch.empty(size, dtype=torch.float64) if out is None else out
        block = self.base(flat, start * self.columns).view(stop - start, self.columns)
        size = self.rows // max(len(self.factors), 1)
        for index, (left, right) in enumerate(self.factors):
            first, last = max(start, index * size), min(stop, (index + 1) * size)
            if first < last:
                block[first - start : last - start].addmm_(
                    left[first - index * size : last - index * size], right
                )
        if self.added is not None:
            block += self.added[start:stop]
        if self._by_row is not None:
            block *= self._by_row[start:stop]
        if self._by_column is not None:
            block *= self._by_column
        for number, row in self.replaced.items():
            if start <= number < stop:
                block[number - start] = row
        return block

    def fill(self, target: torch.Tensor, start: int) -> None:
        """Fill a flat float64 tensor with the elements from `start` on: whole rows in place."""
        columns, stop = self.columns, start + len(target)
        step = max(BLOCK_ELEMENTS // max(columns, 1), 1)
        at = start
        while at < stop:
            row = at // columns
            last = min(row + step, stop // columns)
            if at == row * columns and last > row:
                self.block(row, last, target[at - start : last * columns - start])
                at = last * columns
            else:  # a row of which only a part is wanted
                end = min((row + 1) * columns, stop)
                whole = self.block(row, row + 1).view(-1)
                target[at - start : end - start] = whole[at - row * columns : end - row * columns]
                at = end
