"""A tensor that consists of blocks of stored tensors: packed, split, interleaved or transposed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from monosoup_cli.formats.dtypes import BITS, integers_in
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.strided import PIECE, gather, room, span_of
from monosoup_cli.sources.derived import ReadInto
from monosoup_cli.sources.source import Source

__all__ = ["Arranged", "Piece", "row_major"]


@dataclass(frozen=True)
class Piece:
    """A block of elements, where it is stored, and where it belongs. Offsets and strides count elements.

    Attributes:
        tensor: The stored tensor.
        shape: The shape of the block.
        first: Its first element in the stored tensor.
        strides: Its strides there.
        at: Its first element in the arranged tensor.
        steps: Its strides there.
    """

    tensor: str
    shape: tuple[int, ...]
    first: int
    strides: tuple[int, ...]
    at: int
    steps: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The element after its last one in the arranged tensor."""
        return self.at + span_of(self.shape, self.steps)

    @property
    def is_copied(self) -> bool:
        """Whether its elements are in the same order and without gaps in both tensors."""
        return self.strides == self.steps == row_major(self.shape)


@dataclass(frozen=True)
class Arranged:
    """A tensor made of pieces of stored ones; a `Made`.

    A piece whose elements lie in the same order in both is read in place. Pieces that interleave are read
    together into memory: at most one expert of a stack, or one fused matrix.

    Attributes:
        info: Its name, shape and dtype.
        pieces: The pieces. Together they cover the tensor, each element once.
    """

    info: TensorInfo
    pieces: Sequence[Piece]
    parts: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(dict.fromkeys(piece.tensor for piece in self.pieces)))

    def dtype(self, stored: Source) -> str:
        """The dtype in which the parts are read, which all of them have in common."""
        return stored.reader(self.parts[0]).dtype

    def blocks(self) -> Iterator[list[Piece]]:
        """Yield the pieces that interleave, from the first element of the tensor to its last."""
        block: list[Piece] = []
        end = 0
        for piece in sorted(self.pieces, key=lambda piece: piece.at):
            if block and piece.at >= end:
                yield block
                block = []
            block.append(piece)
            end = max(end, piece.stop)
        if block:
            yield block

    def open(self, stored: Source) -> ReadInto:
        """Begin to read the tensor in one thread."""
        return _Reading(self, stored).read_into

    def held_bytes(self, stored: Source) -> int:
        """What the largest block takes that is not read in place, and its largest piece as it is stored."""
        size = BITS[self.dtype(stored)] // 8
        held = 0
        for block in self.blocks():
            if len(block) > 1 or not block[0].is_copied:
                largest = max(span_of(piece.shape, piece.strides) for piece in block)
                whole = max(piece.stop for piece in block) - block[0].at
                held = max(held, (whole + largest) * size + PIECE)
        return held


class _Reading:
    """Reads an arranged tensor block after block, and holds the last one that is not read in place."""

    def __init__(self, arranged: Arranged, stored: Source) -> None:
        self._stored, self._size = stored, BITS[arranged.dtype(stored)] // 8
        self._blocks = list(arranged.blocks())
        self._stops = [max(piece.stop for piece in block) for block in self._blocks]
        self._last = 0  # the number of the last block, near which the next one is
        self._held: memoryview | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with bytes from an offset on."""
        done = 0
        while done < len(buffer):
            number = self._number((offset + done) // self._size)
            start, stop = self._blocks[number][0].at * self._size, self._stops[number] * self._size
            count = min(stop - offset - done, len(buffer) - done)
            self._read(number, buffer[done : done + count], offset + done - start)
            done += count

    def _number(self, element: int) -> int:
        number = bisect_right(self._stops, element)
        if number != self._last:
            self._held, self._last = None, number
        return number

    def _read(self, number: int, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with bytes of one block."""
        block = self._blocks[number]
        first = block[0]
        if len(block) == 1 and first.is_copied:
            self._stored.reader(first.tensor).read_into(buffer, first.first * self._size + offset)
            return
        if self._held is None:
            held = room((self._stops[number] - first.at) * self._size)
            for piece in block:
                elements = integers_in(held, 8 * self._size)
                into = elements.as_strided(piece.shape, piece.steps, piece.at - first.at)
                read_into = self._stored.reader(piece.tensor).read_into
                gather(read_into, into, piece.first * self._size, piece.strides)
            self._held = held
        buffer[:] = self._held[offset : offset + len(buffer)]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose elements are stored in order."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()
