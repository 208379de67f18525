"""Write a fused tensor whose elements come in the order of its parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from monosoup_cli.formats.dtypes import BITS, integers_in
from monosoup_cli.formats.strided import room, span_of
from monosoup_cli.layouts.arrangement import Piece
from monosoup_cli.outputs.writers import Writes

__all__ = ["Scatter", "held_bytes"]


class Scatter:
    """Takes the bytes of one tensor in the order of its parts, and writes them where they belong.

    Parts that interleave in the tensor, such as gate and up of one expert, are held until they are complete.

    Args:
        output: Where they are written.
        dtype: The dtype in which the tensor is stored.
        pieces: The parts: `first` and `strides` are their places in the tensor, `at` is their first element
            in the order of parts.
    """

    def __init__(self, output: Writes, dtype: str, pieces: Sequence[Piece]) -> None:
        self._output, self._size = output, BITS[dtype] // 8
        self._pieces = sorted(pieces, key=lambda piece: piece.at)
        self._starts = [piece.at for piece in self._pieces]
        blocks = blocks_of(pieces)
        self._block_of = {id(piece): block for block in blocks for piece in block}
        self._held: dict[tuple[str, int], memoryview] = {}
        self._missing: dict[tuple[str, int], int] = {}

    def write(self, tensor: str, data: memoryview, offset: int = 0, folder: str = "") -> None:
        """Take bytes, starting `offset` bytes after the first one in the order of parts."""
        while len(data):
            piece = self._pieces[bisect_right(self._starts, offset // self._size) - 1]
            count = min(len(data), piece.stop * self._size - offset)
            self._take(tensor, piece, data[:count], offset - piece.at * self._size, folder)
            data, offset = data[count:], offset + count

    def _take(self, tensor: str, piece: Piece, data: memoryview, offset: int, folder: str) -> None:
        size, block = self._size, self._block_of[id(piece)]
        if len(block) == 1 and piece.is_copied:
            self._output.write(tensor, data, piece.first * size + offset, folder)
            return
        for one in block:
            if (folder, one.at) not in self._held:
                nbytes = (one.stop - one.at) * size
                self._held[folder, one.at], self._missing[folder, one.at] = room(nbytes), nbytes
        self._held[folder, piece.at][offset : offset + len(data)] = data
        self._missing[folder, piece.at] -= len(data)
        if all(self._missing[folder, one.at] == 0 for one in block):
            first = min(one.first for one in block)
            whole = room((max(_end(one) for one in block) - first) * size)
            elements = integers_in(whole, 8 * size)
            for one in block:
                values = integers_in(self._held.pop((folder, one.at)), 8 * size).view(one.shape)
                elements.as_strided(one.shape, one.strides, one.first - first).copy_(values)
            self._output.write(tensor, whole, first * size, folder)


def blocks_of(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Group the pieces whose elements interleave in the tensor."""
    blocks: list[list[Piece]] = []
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.first):
        if not blocks or piece.first >= end:
            blocks.append([])
        blocks[-1].append(piece)
        end = max(end, _end(piece))
    return blocks


def held_bytes(dtype: str, pieces: Sequence[Piece]) -> int:
    """How much memory a `Scatter` holds at most for one variant of the output: its largest block, twice."""
    sizes = [
        sum(piece.stop - piece.at for piece in block)
        for block in blocks_of(pieces)
        if len(block) > 1 or not block[0].is_copied
    ]
    return 2 * max(sizes, default=0) * BITS[dtype] // 8


def _end(piece: Piece) -> int:
    """The element after its last one in the tensor."""
    return piece.first + span_of(piece.shape, piece.strides)
