"""Results in float64, cast once to the dtype in which they are stored, and written block after block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.formats.dtypes import BITS, bytes_of, check_overflow
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.tensors.cut import Cut

if TYPE_CHECKING:
    import torch

__all__ = ["FlatWriter", "MatrixWriter", "Slot"]


@dataclass(frozen=True)
class Slot:
    """An output tensor in one variant, and the buffers of the worker that makes it.

    Args:
        output: What is written.
        folder: The variant's folder in it.
        tensor: The name of the output tensor.
        dtype: The dtype in which it is stored.
        scratch: The worker's buffers.
    """

    output: PartialOutput
    folder: str
    tensor: str
    dtype: str
    scratch: Scratch

    def write(self, part: torch.Tensor, element: int) -> None:
        """Write contiguous elements of the stored dtype, from the tensor's element number `element` on."""
        offset = element * BITS[self.dtype] // 8
        self.output.write(self.tensor, bytes_of(part), offset, self.folder)


class MatrixWriter:
    """Writes one matrix of an output tensor, block after block.

    Args:
        slot: The output tensor.
        cut: How the matrix is cut into blocks.
        index: Which matrix of a stack it is.
    """

    def __init__(self, slot: Slot, cut: Cut, index: int = 0) -> None:
        self._slot, self._cut, self._first = slot, cut, index * cut.elements
        self._whole: torch.Tensor | None = None
        if cut.is_wide and cut.is_resident(BITS[slot.dtype] // 8):
            self._whole = slot.scratch.take(f"output {slot.folder}", slot.dtype, cut.rows, cut.columns)

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store one block.

        Args:
            start: Its first row; of a wide matrix, its first column.
            stop: The row or column after its last one.
            block: (stop − start, side), float64.

        Raises:
            NonfiniteError: An element does not fit the stored dtype.
        """
        cut, slot = self._cut, self._slot
        if self._whole is not None:
            part = self._whole[:, start:stop]
        elif cut.is_wide:
            part = slot.scratch.take("output", slot.dtype, cut.rows, stop - start)
        else:
            part = slot.scratch.take("output", slot.dtype, stop - start, cut.columns)
        part.copy_(block.T if cut.is_wide else block)
        check_overflow(part, slot.dtype, slot.tensor)
        if self._whole is not None:
            if stop == cut.length:
                slot.write(self._whole, self._first)
        elif cut.is_wide:
            for number, row in enumerate(part):
                slot.write(row, self._first + number * cut.columns + start)
        else:
            slot.write(part, self._first + start * cut.columns)

    @staticmethod
    def held_bytes(cut: Cut, item_bytes: int, variants: int) -> int:
        """How much memory the writers of all variants of a matrix take.

        Args:
            cut: How the matrix is cut into blocks.
            item_bytes: The size of a stored element.
            variants: The number of variants.
        """
        return (variants if cut.is_wide else 1) * cut.held_bytes(item_bytes)


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
            NonfiniteError: An element does not fit the stored dtype.
        """
        slot = self._slot
        part = slot.scratch.take("output", slot.dtype, stop - start).copy_(block.view(-1))
        check_overflow(part, slot.dtype, slot.tensor)
        slot.write(part, start)
