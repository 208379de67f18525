"""A tensor that consists of blocks of stored tensors: packed, split, interleaved or transposed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from monosoup_cli.formats.dtypes import BITS, as_float32, as_float64, bytes_of, integers_in
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.strided import PIECE, gather, room, span_of
from monosoup_cli.sources.derived import ReadInto
from monosoup_cli.sources.source import Source

__all__ = ["Arranged", "Piece", "dimensions", "row_major"]


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

    def origin(self, element: int) -> int | None:
        """Where an element of the arranged tensor is in the stored one; None if it is of another piece."""
        rest, origin = element - self.at, self.first
        if rest < 0:
            return None
        for step, size, stride in sorted(
            zip(self.steps, self.shape, self.strides, strict=True), reverse=True
        ):
            number = min(rest // step, size - 1)
            rest -= number * step
            origin += number * stride
        return origin if rest == 0 else None

    def part(self, side: int, where: float) -> Piece:
        """A block of it, of at most so many rows and columns, at a place between 0 and 1."""
        shape = tuple(min(size, side) for size in self.shape)
        starts = [int(where * (size - part + 1)) for size, part in zip(self.shape, shape, strict=True)]
        first = self.first + sum(start * stride for start, stride in zip(starts, self.strides, strict=True))
        at = self.at + sum(start * step for start, step in zip(starts, self.steps, strict=True))
        return replace(self, shape=shape, first=first, at=at)


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
        """The dtype in which the parts are read; where they differ, one that has all their values."""
        dtypes = {stored.reader(part).dtype for part in self.parts}
        if len(dtypes) == 1:
            return dtypes.pop()
        return "F64" if "F64" in dtypes else "F32"

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
        """What the largest block takes that is not read in place, and its largest piece as it is stored; and
        where that is widened, the copies that this takes."""
        dtype = self.dtype(stored)
        size = BITS[dtype] // 8
        held = 0
        for block in self.blocks():
            if not _is_in_place(block, dtype, stored):
                largest = max(span_of(piece.shape, piece.strides) for piece in block)
                whole = max(piece.stop for piece in block) - block[0].at
                copies = 1 if all(stored.reader(part).dtype == dtype for part in self.parts) else 2
                held = max(held, (whole + copies * largest) * size + PIECE)
        return held


class _Reading:
    """Reads an arranged tensor block after block, and holds the last one that is not read in place."""

    def __init__(self, arranged: Arranged, stored: Source) -> None:
        self._stored, self._dtype = stored, arranged.dtype(stored)
        self._size = BITS[self._dtype] // 8
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
        if _is_in_place(block, self._dtype, self._stored):
            self._stored.reader(first.tensor).read_into(buffer, first.first * self._size + offset)
            return
        if self._held is None:
            held = room((self._stops[number] - first.at) * self._size)
            for piece in block:
                self._place(piece, held, piece.at - first.at)
            self._held = held
        buffer[:] = self._held[offset : offset + len(buffer)]

    def _place(self, piece: Piece, held: memoryview, at: int) -> None:
        """Read a piece into its places in a block, widened if others of the tensor have a wider dtype."""
        reader = self._stored.reader(piece.tensor)
        bits = BITS[reader.dtype]
        if reader.dtype == self._dtype:
            into = integers_in(held, bits).as_strided(piece.shape, piece.steps, at)
            gather(reader.read_into, into, piece.first * bits // 8, piece.strides)
            return
        narrow = bytearray(math.prod(piece.shape) * bits // 8)
        elements = integers_in(memoryview(narrow), bits).view(piece.shape)
        gather(reader.read_into, elements, piece.first * bits // 8, piece.strides)
        wide = as_float64(narrow, reader.dtype) if self._dtype == "F64" else as_float32(narrow, reader.dtype)
        into = integers_in(held, 8 * self._size).as_strided(piece.shape, piece.steps, at)
        into.copy_(integers_in(bytes_of(wide), 8 * self._size).view(piece.shape))


def _is_in_place(block: Sequence[Piece], dtype: str, stored: Source) -> bool:
    """Whether the bytes of a block are those of a stored tensor, one after the other."""
    return len(block) == 1 and block[0].is_copied and stored.reader(block[0].tensor).dtype == dtype


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose elements are stored in order."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()


def dimensions(
    sizes: Sequence[int], strides: Sequence[int], others: Sequence[int], steps: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Find dimensions in which the same elements have strides in two tensors.

    Args:
        sizes: The dimensions that the elements have in one tensor.
        strides: Their strides there.
        others: The dimensions in the other tensor, of which one may be several of the first, or the reverse.
        steps: Their strides there.

    Returns:
        The sizes, which leave out ones; the strides in the one tensor, and in the other. None where the
        dimensions do not fit.

    >>> dimensions((12, 5), (5, 1), (4, 3, 5), (45, 5, 1))
    ((4, 3, 5), (15, 5, 1), (45, 5, 1))
    """
    if 0 in sizes or math.prod(sizes) != math.prod(others):
        return None
    ones, twos = list(zip(sizes, strides, strict=True)), list(zip(others, steps, strict=True))
    found = []
    while ones and twos:
        (one, stride), (two, step) = ones.pop(), twos.pop()
        size = min(one, two)
        if max(one, two) % size:
            return None
        if size > 1:
            found.append((size, stride, step))
        if one > size:
            ones.append((one // size, stride * size))
        if two > size:
            twos.append((two // size, step * size))
    shape, first, second = zip(*reversed(found), strict=True) if found else ((), (), ())
    return shape, first, second
