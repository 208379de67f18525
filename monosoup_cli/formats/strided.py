"""Tensors whose elements are not stored in row-major order, as views in a state dict are."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.formats.dtypes import BITS, integers_in
from monosoup_cli.formats.header import TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Bytes", "Strided", "contiguous", "gather", "room", "span_of"]

PIECE = 1 << 20
"""How many bytes may be read at once even if few of them belong to the tensor."""


class Bytes(Protocol):
    """A file that is read at offsets. `shown` is its name in messages."""

    shown: str

    @property
    def nbytes(self) -> int: ...

    def read(self, nbytes: int, offset: int = 0) -> bytes: ...

    def read_into(self, buffer: memoryview, offset: int) -> None: ...


@dataclass(frozen=True)
class Strided:
    """Where the elements of a tensor are that are not stored in row-major order.

    Attributes:
        strides: The strides in elements; 0 where the size is 1.
        span: How many bytes the elements spread over, from the start of the tensor.
    """

    strides: tuple[int, ...]
    span: int


def contiguous(file: Bytes, tensor: TensorInfo, strided: Strided) -> memoryview:
    """Read the elements of a tensor in row-major order.

    Besides the result this takes up to twice its memory, or PIECE bytes.
    """
    elements = room(tensor.nbytes)
    into = integers_in(elements, BITS[tensor.dtype]).view(tensor.shape)
    gather(file.read_into, into, tensor.start, strided.strides)
    return elements


def room(nbytes: int) -> memoryview:
    """Allocate memory that returns to the system when it is freed, which the allocator does not guarantee."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def span_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Over how many elements those of a strided tensor spread."""
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1


def gather(
    read_into: Callable[[memoryview, int], None], into: torch.Tensor, start: int, strides: Sequence[int]
) -> None:
    """Read elements that are not stored in order.

    Besides the result this takes up to twice its memory, or PIECE bytes.

    Args:
        read_into: Fills a buffer with the bytes from an offset on.
        into: Is filled; integers of the width of the elements, with any strides.
        start: The byte of the first element.
        strides: The strides of the stored elements, in elements.
    """
    span = span_of(into.shape, strides) * into.element_size()
    if span <= max(2 * into.numel() * into.element_size(), PIECE):
        buffer = room(span)
        read_into(buffer, start)
        into.copy_(integers_in(buffer, 8 * into.element_size()).as_strided(into.shape, tuple(strides)))
        return
    reach = [(size - 1) * stride for size, stride in zip(into.shape, strides, strict=True)]
    widest = reach.index(max(reach))
    rest = [*strides[:widest], *strides[widest + 1 :]]
    for row in range(into.shape[widest]):
        gather(read_into, into.select(widest, row), start + row * strides[widest] * into.element_size(), rest)
