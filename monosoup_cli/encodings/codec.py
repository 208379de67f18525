"""What a codec is: which stored tensors belong together, and how a rectangle of a matrix is decoded.

A codec finds the tensors that it encodes and describes each as an `Encoded`, which a `Derived` source reads
in float32, block by block. Nothing larger than a block and the scales is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.formats.dtypes import BITS, as_float32, bytes_of
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.derived import ReadInto
from monosoup_cli.sources.read import read_stored
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_ELEMENTS", "Codec", "Decode", "Encoded", "Parts", "Rectangle", "decoded_info"]

MAX_ELEMENTS = 1 << 20
"""How many elements are decoded at once, unless a codec's unit of rows has more."""


@dataclass(frozen=True)
class Rectangle:
    """Whole rows of a matrix, or a part of one row: rows start:stop, columns first:last."""

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

    def info(self, role: str) -> TensorInfo:
        """The header of a part."""
        return self._stored.tensors[self._names[role]]

    def stored(self, role: str, start: int, stop: int) -> bytearray:
        """Read the elements start:stop of a part as they are stored, in the order of the file."""
        return read_stored(self._stored, self._names[role], start, stop)

    def values(self, role: str, start: int, stop: int) -> torch.Tensor:
        """Read the elements start:stop of a part in float32, flat."""
        return as_float32(self.stored(role, start, stop), self.info(role).dtype)

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
        unit: Rows are decoded in multiples of this many.
        held: How many bytes decoding holds beside the result: its scales, its intermediate results.
        words: How the tensor is stored, for people: "fp8 with block scales".
    """

    info: TensorInfo
    names: Mapping[str, str]
    decode: Decode
    unit: int = 1
    held: int = 0
    words: str = "codes"
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
        return 2 * 4 * max(MAX_ELEMENTS, self.unit * columns) + self.held


class _Decoder:
    """Serves the bytes of a decoded tensor from any offset on, and holds the last decoded block."""

    def __init__(self, encoded: Encoded, parts: Parts) -> None:
        shape = encoded.info.shape
        self._columns = shape[-1] if shape else 1
        self._rows = math.prod(shape[:-1])
        self._encoded, self._parts = encoded, parts
        self._block: torch.Tensor | None = None
        self._start = self._stop = 0  # the elements in the block

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the float32 elements from a byte offset on."""
        element, end = offset // 4, (offset + len(buffer)) // 4
        while element < end:
            if not self._start <= element < self._stop:
                self._load(element, end)
            assert self._block is not None
            stop = min(end, self._stop)
            part = bytes_of(self._block)[4 * (element - self._start) : 4 * (stop - self._start)]
            buffer[4 * element - offset : 4 * stop - offset] = part
            element = stop

    def _load(self, element: int, end: int) -> None:
        """Decode from an element on: a part of its row if no more is wanted, or whole rows."""
        columns, unit = self._columns, self._encoded.unit
        row, column = divmod(element, columns)
        if unit == 1 and end <= (row + 1) * columns:
            rectangle = Rectangle(row, row + 1, column, end - row * columns)
        else:
            start = row // unit * unit
            stop = min(-(-end // columns), start + max(MAX_ELEMENTS // columns, 1))
            rectangle = Rectangle(start, min(-(-stop // unit) * unit, self._rows), 0, columns)
        self._block = None  # before the next one is made
        self._block = self._encoded.decode(self._parts, rectangle)
        self._start = rectangle.start * columns + rectangle.first
        self._stop = self._start + math.prod(rectangle.shape)


class Codec(Protocol):
    """One way to store weights as codes. To add one, write a module and add a line to `table.py`."""

    def find(self, tensors: Mapping[str, TensorInfo], source: Source) -> Mapping[str, Encoded]:
        """Find the tensors that are stored in this way, by their decoded names.

        Args:
            tensors: The headers of the checkpoint, without the parts of what the codecs before it found.
            source: The checkpoint, whose config.json says more, and small values.

        Raises:
            CheckpointError: The parts of a tensor are not all there, or do not fit each other.
        """
        ...


def decoded_info(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    """The header that a tensor has when it is decoded."""
    return TensorInfo(name, dtype, shape, 0, math.prod(shape) * BITS[dtype] // 8)
