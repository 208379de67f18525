"""Tensors whose elements are not stored in row-major order, as views in a state dict are."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.formats.header import BITS, TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Bytes", "Strided", "contiguous"]

INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""By their bits: what elements of any dtype can be moved as."""

PIECE = 1 << 20
"""Bytes read at once even where few of them are the tensor's."""


class Bytes(Protocol):
    """A file that is read at offsets; `shown` is what messages call it."""

    shown: str

    @property
    def nbytes(self) -> int: ...

    def read(self, nbytes: int, offset: int = 0) -> bytes: ...

    def read_into(self, buffer: memoryview, offset: int) -> None: ...


@dataclass(frozen=True)
class Strided:
    """How the elements of a tensor lie that do not follow each other in row-major order.

    `strides` are in elements, 0 where the size is 1; `span` is the bytes from the first element's
    first to the last one's last, which start where the tensor starts.
    """

    strides: tuple[int, ...]
    span: int


def contiguous(file: Bytes, tensor: TensorInfo, strided: Strided) -> memoryview:
    """The elements in row-major order. At most twice their bytes, or a piece, are held beside them."""
    import torch

    elements = _room(tensor.nbytes)
    dtype = getattr(torch, INTEGERS[BITS[tensor.dtype]])
    _gather(file, torch.frombuffer(elements, dtype=dtype).view(tensor.shape), tensor.start, strided.strides)
    return elements


def _room(nbytes: int) -> memoryview:
    """Memory that goes back to the system when it is not used any more: a freed block of this size would
    have the allocator keep others."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def _gather(file: Bytes, into: torch.Tensor, start: int, strides: tuple[int, ...]) -> None:
    import torch

    reach = [(size - 1) * stride for size, stride in zip(into.shape, strides, strict=True)]
    span = (sum(reach) + 1) * into.element_size()
    if span <= max(2 * into.numel() * into.element_size(), PIECE):
        buffer = _room(span)
        file.read_into(buffer, start)
        into.copy_(torch.frombuffer(buffer, dtype=into.dtype).as_strided(into.shape, strides))
        return
    widest = reach.index(max(reach))
    for row in range(into.shape[widest]):
        row_start = start + row * strides[widest] * into.element_size()
        _gather(file, into.select(widest, row), row_start, strides[:widest] + strides[widest + 1 :])
