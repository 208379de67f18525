"""Codes of a few bits, several in a byte, and the scales of neighbouring columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from monosoup_cli.encodings.codec import MAX_ELEMENTS, Parts, Rectangle

if TYPE_CHECKING:
    import torch

__all__ = ["E2M1", "UNPACKING", "by_groups", "byte_table", "unpacked"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The floats of four bits, by their bits."""
UNPACKING = 3 * MAX_ELEMENTS
"""How many bytes it takes to look the codes of a block up: as they are stored, and as int32."""


@cache
def byte_table(values: Sequence[float], *, is_high_first: bool = False) -> torch.Tensor:
    """What the codes in every byte stand for: (256, codes in a byte), float32.

    Args:
        values: What each code stands for.
        is_high_first: Whether the first code of a byte is in its high bits.
    """
    import torch

    bits = (len(values) - 1).bit_length()
    shifts = torch.arange(0, 8, bits)
    codes = torch.arange(256)[:, None] >> (shifts.flip(0) if is_high_first else shifts)
    return torch.tensor(values)[codes & (len(values) - 1)]


def unpacked(parts: Parts, part: Rectangle, table: torch.Tensor, width: int) -> torch.Tensor:
    """The values of a rectangle of codes, several of which are in a byte.

    Args:
        parts: The parts, with the role "codes".
        part: The rectangle.
        table: What the codes in every byte stand for.
        width: How many codes are stored for a row, some of which may be beyond its end.
    """
    rows, columns = part.shape
    first, last = part.start * width + part.first, (part.stop - 1) * width + part.last
    return parts.unpacked("codes", first, last, table).as_strided((rows, columns), (width, 1)).contiguous()


def by_groups(
    values: torch.Tensor, scales: torch.Tensor, part: Rectangle, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of a rectangle with scales that broadcast to each: whole groups of columns, and the edges.

    Args:
        values: The rectangle.
        scales: Those of its rows: (rows, groups of columns), or (1, groups) for all rows.
        part: Where it is.
        size: How many columns a group has.
    """
    first, last = -(-part.first // size), part.last // size
    if first > last:  # within one group
        yield values, scales[:, last:first]
        return
    start, stop = first * size - part.first, last * size - part.first
    if first < last:
        yield values[:, start:stop].view(len(values), -1, size), scales[:, first:last, None]
    if start:
        yield values[:, :start], scales[:, first - 1 : first]
    if stop < values.shape[1]:
        yield values[:, stop:], scales[:, last : last + 1]
