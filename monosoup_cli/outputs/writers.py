"""Results in float64, cast once to the dtype in which they are stored, and written block after block.

Writers are used inside of the channel's `storing`, at whose end the last bytes are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.formats.dtypes import BITS, overflow_error
from monosoup_cli.tensors.cut import Cut

if TYPE_CHECKING:
    import torch

    from monosoup_cli.devices.device import Channel
__all__ = ["FlatWriter", "MatrixWriter", "Slot", "Writes"]


Runs = Callable[[int, int], Iterator[tuple[int, int, int]]]
"""Where elements first:last of a part lie in the tensor, as (element of the part, element of the tensor,
count) of consecutive ones."""


class Writes(Protocol):
    """What takes the bytes of tensors, as `PartialOutput` does."""

    def write(self, tensor: str, data: memoryview, offset: int = 0, folder: str = "") -> None:
        """Write bytes of a tensor, starting `offset` bytes after its first one."""
        ...


@dataclass(frozen=True)
class Slot:
    """An output tensor in one variant, and the channel of the worker that makes it.

    Args:
        output: What is written.
        folder: The variant's folder in it.
        tensor: The name of the output tensor.
        dtype: The dtype in which it is stored.
        channel: The worker's memory.
    """

    output: Writes
    folder: str
    tensor: str
    dtype: str
    channel: Channel

    def buffer(self, *shape: int, purpose: str = "output") -> torch.Tensor:
        """An uninitialized tensor of the stored dtype on the worker's device."""
        return self.channel.buffer(purpose, self.dtype, *shape)

    def store(self, part: torch.Tensor, runs: Runs) -> None:
        """Write a contiguous part of the tensor, of the stored dtype, where `runs` says."""
        size = BITS[self.dtype] // 8

        def write(data: memoryview, offset: int) -> None:
            first = offset // size
            for of_part, of_tensor, count in runs(first, first + len(data) // size):
                run = data[(of_part - first) * size : (of_part - first + count) * size]
                self.output.write(self.tensor, run, of_tensor * size, self.folder)

        self.channel.store(part, write, self._refuse)

    def _refuse(self, nonfinite: int) -> None:
        raise overflow_error(nonfinite, self.dtype, self.tensor)


class MatrixWriter:
    """Writes one matrix of an output tensor, block after block.

    Args:
        slot: The output tensor.
        cut: How the matrix is cut into blocks.
        first: Its first element in the tensor.
    """

    def __init__(self, slot: Slot, cut: Cut, first: int = 0) -> None:
        self._slot, self._cut, self._first = slot, cut, first
        self._whole: torch.Tensor | None = None
        if cut.is_wide and cut.is_resident(BITS[slot.dtype] // 8, slot.channel.sizes.resident_bytes):
            self._whole = slot.buffer(cut.rows, cut.columns, purpose=f"output {slot.folder}")

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store one block.

        Args:
            start: Its first row; of a wide matrix, its first column.
            stop: The row or column after its last one.
            block: (stop − start, side), float64.

        Raises:
            ResultOverflowError: An element does not fit the stored dtype.
        """
        cut = self._cut
        if self._whole is not None:
            self._whole[:, start:stop].copy_(block.T)
            if stop == cut.length:
                self._store(self._whole, 0, stop)
        elif cut.is_wide:
            self._store(self._slot.buffer(cut.rows, stop - start).copy_(block.T), start, stop)
        else:
            self._store(self._slot.buffer(stop - start, cut.columns).copy_(block), start, stop)

    def _store(self, part: torch.Tensor, start: int, stop: int) -> None:
        def runs(first: int, last: int) -> Iterator[tuple[int, int, int]]:
            for of_part, of_matrix, count in self._cut.runs(start, stop, first, last):
                yield of_part, self._first + of_matrix, count

        self._slot.store(part, runs)

    @staticmethod
    def held_bytes(cut: Cut, item_bytes: int, variants: int, resident_bytes: int) -> int:
        """How much memory the writers of all variants of a matrix take.

        Args:
            cut: How the matrix is cut into blocks.
            item_bytes: The size of a stored element.
            variants: The number of variants.
            resident_bytes: Up to which size the device holds stored matrices whole.
        """
        return (variants if cut.is_wide else 1) * cut.held_bytes(item_bytes, resident_bytes)


class FlatWriter:
    """Writes an output tensor from its first element to its last.

    Args:
        slot: The output tensor.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store the elements start:stop of the result.

        Raises:
            ResultOverflowError: An element does not fit the stored dtype.
        """

        def runs(first: int, last: int) -> Iterator[tuple[int, int, int]]:
            yield first, start + first, last - first

        self._slot.store(self._slot.buffer(stop - start).copy_(block.view(-1)), runs)
