"""Results in float64, cast once to the dtype in which they are stored, and written block after block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.formats.dtypes import BITS, bytes_of, check_overflow
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.tensors.cut import Cut

if TYPE_CHECKING:
    import torch

__all__ = ["FlatWriter", "MatrixWriter"]


class MatrixWriter:
    """Writes one matrix of an output tensor, block after block.

    Args:
        output: What is written.
        folder: The variant's folder in it.
        tensor: The name of the output tensor.
        dtype: The dtype in which it is stored.
        scratch: The worker's buffers.
        cut: How the matrix is cut into blocks.
        index: Which matrix of a stack it is.
    """

    def __init__(
        self,
        output: PartialOutput,
        folder: str,
        tensor: str,
        dtype: str,
        scratch: Scratch,
        cut: Cut,
        index: int = 0,
    ) -> None:
        self._output, self._folder, self._tensor, self._dtype = output, folder, tensor, dtype
        self._cut = cut
        self._scratch, self._item_bytes = scratch, BITS[dtype] // 8
        self._offset = index * cut.elements * self._item_bytes
        self._whole: torch.Tensor | None = None
        if cut.is_wide and cut.is_resident(self._item_bytes):
            self._whole = scratch.take(f"output {folder}", dtype, cut.rows, cut.columns)

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store one block.

        Args:
            start: Its first row; of a wide matrix, its first column.
            stop: The row or column after its last one.
            block: (stop − start, side), float64.

        Raises:
            NonfiniteError: An element does not fit the stored dtype.
        """
        cut = self._cut
        if self._whole is not None:
            part = self._whole[:, start:stop]
        elif cut.is_wide:
            part = self._scratch.take("output", self._dtype, cut.rows, stop - start)
        else:
            part = self._scratch.take("output", self._dtype, stop - start, cut.columns)
        part.copy_(block.T if cut.is_wide else block)
        check_overflow(part, self._dtype, self._tensor)
        if self._whole is not None:
            if stop == cut.length:
                self._write(self._whole, 0)
        elif cut.is_wide:
            for number, row in enumerate(part):
                self._write(row, number * cut.columns + start)
        else:
            self._write(part, start * cut.columns)

    def _write(self, part: torch.Tensor, element: int) -> None:
        offset = self._offset + element * self._item_bytes
        self._output.write(self._tensor, bytes_of(part), offset, self._folder)

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
        output: What is written.
        folder: The variant's folder in it.
        tensor: The name of the output tensor.
        dtype: The dtype in which it is stored.
        scratch: The worker's buffers.
    """

    def __init__(self, output: PartialOutput, folder: str, tensor: str, dtype: str, scratch: Scratch) -> None:
        self._output, self._folder, self._tensor, self._dtype = output, folder, tensor, dtype
        self._scratch = scratch

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store the elements start:stop of the result.

        Raises:
            NonfiniteError: An element does not fit the stored dtype.
        """
        part = self._scratch.take("output", self._dtype, stop - start).copy_(block.view(-1))
        check_overflow(part, self._dtype, self._tensor)
        self._output.write(self._tensor, bytes_of(part), start * BITS[self._dtype] // 8, self._folder)
