"""Tensors whose elements are not stored in row-major order, as views in a state dict are."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.formats.dtypes import BITS, integers_in
from monosoup_cli.formats.header import TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Bytes", "Strided", "contiguous"]

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
    elements = _room(tensor.nbytes)
    _gather(file, integers_in(elements, BITS[tensor.dtype]).view(tensor.shape), tensor.start, strided.strides)
    return elements


def _room(nbytes: int) -> memoryview:
    """Allocate memory that returns to the system when it is freed, which the allocator does not guarantee."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def _gather(file: Bytes, into: torch.Tensor, start: int, strides: tuple[int, ...]) -> None:
    reach = [(size - 1) * stride for size, stride in zip(into.shape, strides, strict=True)]
    span = (sum(reach) + 1) * into.element_size()
    if span <= max(2 * into.numel() * into.element_size(), PIECE):
        buffer = _room(span)
        file.read_into(buffer, start)
        into.copy_(integers_in(buffer, 8 * into.element_size()).as_strided(into.shape, strides))
        return
    widest = reach.index(max(reach))
    for row in range(into.shape[widest]):
        row_start = start + row * strides[widest] * into.element_size()
        _gather(file, into.select(widest, row), row_start, strides[:widest] + strides[widest + 1 :])
