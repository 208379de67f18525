"""What a codec is: which stored tensors belong together, and how a rectangle of a matrix is decoded.

A codec finds the tensors that it encodes and describes each as an `Encoded`, which a `Derived` source reads
in float32, block by block. Nothing larger than a block and the scales is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.encodings.facts import Left
from monosoup_cli.formats.dtypes import BITS, as_float32, bytes_of, integers_in, looked_up
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.derived import ReadInto
from monosoup_cli.sources.read import read_stored
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_ELEMENTS", "Codec", "Decode", "Encoded", "Parts", "Rectangle", "decoded_info"]

WRITTEN = "BF16"
"""The dtype in which decoded tensors are written."""
MAX_ELEMENTS = 1 << 18
"""How many elements are decoded at once, unless a row has more."""


@dataclass(frozen=True)
class Rectangle:
    """Whole rows of a matrix, or a part of one row, or of several: rows start:stop, columns first:last."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        return self.stop - self.start, self.last - self.first


class Parts:
    """The stored tensors of one encoded tensor, as one thread reads them.

    Args:
        stored: The checkpoint.
        names: The names of the stored tensors, by their roles.
    """

    def __init__(self, stored: Source, names: Mapping[str, str]) -> None:
        self._stored, self._names = stored, names
        self._held: dict[str, torch.Tensor] = {}
        self._slabs: dict[str, tuple[int, int, bytearray]] = {}

    def info(self, role: str) -> TensorInfo:
        """The header of a part."""
        return self._stored.tensors[self._names[role]]

    def stored(self, role: str, start: int, stop: int) -> bytearray:
        """Read the elements start:stop of a part as they are stored, in the order of the file."""
        return read_stored(self._stored, self._names[role], start, stop)

    def values(self, role: str, start: int, stop: int, dtype: str | None = None) -> torch.Tensor:
        """Read the elements start:stop of a part in float32, flat.

        Args:
            role: The part.
            start: The first element.
            stop: The element after the last one.
            dtype: What the bytes are, where that is not the dtype in the header.
        """
        return as_float32(self.stored(role, start, stop), dtype or self.info(role).dtype)

    def unpacked(self, role: str, start: int, stop: int, table: torch.Tensor) -> torch.Tensor:
        """Read the codes start:stop of a part that packs several in a byte, as what they stand for, flat.

        Args:
            role: The part.
            start: The first code.
            stop: The code after the last one.
            table: What the codes in every byte stand for: (256, codes in a byte).
        """
        in_byte = table.shape[1]
        data = bytearray(-(-stop // in_byte) - start // in_byte)
        self._stored.reader(self._names[role]).read_into(memoryview(data), start // in_byte)
        values = looked_up(integers_in(memoryview(data), 8), table).view(-1)
        return values[start % in_byte : start % in_byte + stop - start]

    def slab(self, role: str, start: int, stop: int) -> torch.Tensor:
        """The elements start:stop of a part of bytes, flat. They are held until others are asked for."""
        last = self._slabs.get(role)
        if last is None or last[:2] != (start, stop):
            self._slabs.pop(role, None)  # before the next one is read
            last = self._slabs[role] = (start, stop, self.stored(role, start, stop))
        return integers_in(memoryview(last[2]), 8)

    def rectangle(self, role: str, part: Rectangle) -> torch.Tensor:
        """Read a rectangle of a part, seen as a matrix whose columns are its last dimension, in float32."""
        info, (rows, columns) = self.info(role), part.shape
        width = info.shape[-1] if info.shape else 1
        if rows == 1 or columns == width:
            start = part.start * width + part.first
            return self.values(role, start, start + rows * columns).view(rows, columns)
        size = BITS[info.dtype] // 8
        data, read_into = bytearray(rows * columns * size), self._stored.reader(self._names[role]).read_into
        for row in range(rows):
            place = memoryview(data)[row * columns * size : (row + 1) * columns * size]
            read_into(place, ((part.start + row) * width + part.first) * size)
        return as_float32(data, info.dtype).view(rows, columns)

    def whole(self, role: str) -> torch.Tensor:
        """A whole part in float32 and in its own shape. It is read once and held, so it must be small."""
        if role not in self._held:
            info = self.info(role)
            self._held[role] = self.values(role, 0, info.elements).view(info.shape)
        return self._held[role]


Decode = Callable[[Parts, Rectangle], "torch.Tensor"]
"""Decodes a rectangle: float32, of its shape, contiguous."""


@dataclass(frozen=True)
class Encoded:
    """One tensor that is stored as codes; a `Made`.

    Attributes:
        info: Its name, its decoded shape, and the dtype in which it is written again.
        names: The stored tensors that encode it, by their roles; the one with the codes first.
        decode: Decodes a rectangle of the tensor, seen as a matrix whose columns are its last dimension.
        held: How many bytes decoding holds beside the result: its scales, its intermediate results.
        words: How the tensor is stored, for people: "fp8 with block scales".
        has_columns: Whether parts of several rows can be decoded, and not only of one.
    """

    info: TensorInfo
    names: Mapping[str, str]
    decode: Decode
    held: int = 0
    words: str = "codes"
    has_columns: bool = False
    parts: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.names.values()))

    def dtype(self, stored: Source) -> str:
        """Float32, whatever the codes are."""
        return "F32"

    def open(self, stored: Source) -> ReadInto:
        """Begin to decode the tensor in one thread."""
        return _Decoder(self, Parts(stored, self.names)).read_into

    def held_bytes(self, stored: Source) -> int:
        """What decoding holds: a block in float32 twice, and what the codec says."""
        columns = self.info.shape[-1] if self.info.shape else 1
        return 2 * 4 * max(MAX_ELEMENTS, columns) + self.held


class _Decoder:
    """Serves the bytes of a decoded tensor from any offset on, and holds the last decoded block."""

    def __init__(self, encoded: Encoded, parts: Parts) -> None:
        shape = encoded.info.shape
        self._columns = shape[-1] if shape else 1
        self._rows = math.prod(shape[:-1])
        self._encoded, self._parts = encoded, parts
        self._block: torch.Tensor | None = None
        self._held = Rectangle(0, 0, 0, 0)  # what is in the block

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the float32 elements from a byte offset on."""
        element, end = offset // 4, (offset + len(buffer)) // 4
        while element < end:
            row, column = divmod(element, self._columns)
            held = self._held
            if not (held.start <= row < held.stop and held.first <= column < held.last):
                held = self._load(row, column, end)
            assert self._block is not None
            width = held.last - held.first
            first = (row - held.start) * width + column - held.first
            rest = held.last - column + (held.stop - row - 1) * (width if width == self._columns else 0)
            count = min(rest, end - element)
            part = bytes_of(self._block)[4 * first : 4 * (first + count)]
            buffer[4 * element - offset : 4 * (element + count) - offset] = part
            element += count

    def _load(self, row: int, column: int, end: int) -> Rectangle:
        """Decode from an element on: a part of its row if no more is wanted, or whole rows.

        Blocks of columns are read row by row. So after the same part of the row before, that of many is
        decoded.
        """
        columns, held = self._columns, self._held
        if end <= (row + 1) * columns:
            last = end - row * columns
            is_next = (held.stop, held.first, held.last) == (row, column, last)
            rows = max(MAX_ELEMENTS // (last - column), 1) if is_next and self._encoded.has_columns else 1
            held = Rectangle(row, min(row + rows, self._rows), column, last)
        else:
            stop = min(-(-end // columns), row + max(MAX_ELEMENTS // columns, 1))
            held = Rectangle(row, stop, 0, columns)
        self._block, self._held = None, Rectangle(0, 0, 0, 0)  # before the next one is made
        self._block = self._encoded.decode(self._parts, held)
        self._held = held
        return held


class Codec(Protocol):
    """One way to store weights as codes. To add one, write a module and add a line to `table.py`."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the tensors that are stored in this way, by their decoded names.

        Args:
            tensors: The headers of the checkpoint, without the parts of what the codecs before it found.
            source: The checkpoint, whose config.json says more, and small values.

        Raises:
            CheckpointError: The parts of a tensor are not all there, or do not fit each other.
        """
        ...


def decoded_info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    """The header that a tensor has when it is decoded; it is written in bfloat16."""
    return TensorInfo(name, WRITTEN, shape, 0, math.prod(shape) * BITS[WRITTEN] // 8)
