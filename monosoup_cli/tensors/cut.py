"""How a matrix of any size is cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Cut"]

BLOCK_ELEMENTS = 1 << 20
"""How many elements a block has: 8 MiB in float64, enough to keep a matrix product busy."""

MIN_BLOCK_LENGTH = 1024
"""How many rows a block has at least where the side is large. Thinner blocks would starve the products."""

RESIDENT_BYTES = 32 << 20
"""A stored matrix up to this size is read whole and once. A larger one is read block by block, again for
every pass, from the cache of the operating system."""


@dataclass(frozen=True)
class Cut:
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

    def is_resident(self, item_bytes: int) -> bool:
        """Whether the stored matrix is small enough to be held whole."""
        return self.elements * item_bytes <= RESIDENT_BYTES

    def held_bytes(self, item_bytes: int) -> int:
        """How much memory the stored matrix, or the part of it that is held at a time, takes at most."""
        block = self.block_length * self.side
        return min(self.elements, max(block, RESIDENT_BYTES // item_bytes)) * item_bytes
