"""How a matrix of any size is cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Cut"]

BLOCK_ELEMENTS = 1 << 20
"""How many elements a block has: 8 MiB in float64, enough to keep a matrix product busy."""

MIN_BLOCK_LENGTH = 1024
"""How many rows a block has at least where the side is large. Thinner blocks would starve the products."""


class Cut(NamedTuple):
    """How a matrix is cut into blocks along its longer side.

    Blocks have the shape (any number, side), so a wide matrix appears transposed.

    Args:
        rows: The number of rows of the matrix.
        columns: The number of columns.
    """

    rows: int
    columns: int

    @property
    def side(self) -> int:
        """The shorter side."""
        return min(self.rows, self.columns)

    @property
    def length(self) -> int:
        """The longer side."""
        return max(self.rows, self.columns)

    @property
    def is_wide(self) -> bool:
        """Whether blocks are transposed: groups of columns instead of rows."""
        return self.rows < self.columns

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def block_length(self) -> int:
        """The size of a block along the longer side."""
        wanted = max(BLOCK_ELEMENTS // max(self.side, 1), MIN_BLOCK_LENGTH)
        return max(1, min(wanted, self.length))

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of every block along the longer side."""
        for start in range(0, self.length if self.side else 0, self.block_length):
            yield start, min(start + self.block_length, self.length)

    def runs(self, start: int, stop: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Where elements of a block lie in the matrix, both in the order of the file.

        Args:
            start: The first row of the block; of a wide matrix, its first column.
            stop: The row or column after its last one.
            first: The first of the elements, counted in the block.
            last: The element after the last one.

        Yields:
            (element of the block, element of the matrix, count) of consecutive elements.
        """
        width = stop - start
        if not self.is_wide or width == self.columns:
            offset = 0 if self.is_wide else start * self.columns
            yield first, offset + first, last - first
            return
        while first < last:
            row, column = divmod(first, width)
            count = min(width - column, last - first)
            yield first, row * self.columns + start + column, count
            first += count

    def is_resident(self, item_bytes: int, resident_bytes: int) -> bool:
        """Whether the stored matrix is small enough to be held whole, where so many bytes may be."""
        return self.elements * item_bytes <= resident_bytes

    def held_bytes(self, item_bytes: int, resident_bytes: int) -> int:
        """How much memory the stored matrix, or the part of it that is held at a time, takes at most."""
        block = self.block_length * self.side
        return min(self.elements, max(block, resident_bytes // item_bytes)) * item_bytes
