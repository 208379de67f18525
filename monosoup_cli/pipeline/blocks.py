"""Tensors of any size as float64 blocks, and back: the one place where dtypes are converted.

Inputs are upcast to float64 before anything is computed, and results are cast once, when they are
stored (to 16 bits torch goes by way of float32). A matrix is seen by blocks along its longer side; a
block is always (any, side) with side = min(rows, columns), so a wide matrix appears transposed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.checkpoints.header import BITS, FLOATING
from monosoup_cli.errors import NonfiniteError

if TYPE_CHECKING:
    import torch

    from monosoup_cli.checkpoints.locate import Checkpoint
    from monosoup_cli.checkpoints.writer import PartialOutput

__all__ = ["BLOCK_ELEMENTS", "RESIDENT_BYTES", "Cut", "InputMatrix", "Layer", "OutputMatrix", "Scratch"]

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block: 8 MiB in float64, enough to keep a matrix product busy."""

MIN_BLOCK_LENGTH = 1024
"""Rows of a block where the side is large: thin blocks would starve the products."""

RESIDENT_BYTES = 32 << 20
"""A stored matrix up to this size is read whole and once; a larger one block by block, again for
every pass, out of the system's cache."""


@dataclass(frozen=True)
class Cut:
    """How a (rows, columns) matrix is cut into blocks along its longer side."""

    rows: int
    columns: int

    @property
    def side(self) -> int:
        return min(self.rows, self.columns)

    @property
    def length(self) -> int:
        return max(self.rows, self.columns)

    @property
    def is_wide(self) -> bool:
        return self.rows < self.columns

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def block_length(self) -> int:
        wanted = max(BLOCK_ELEMENTS // max(self.side, 1), MIN_BLOCK_LENGTH)
        return max(1, min(wanted, self.length))

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of every block along the longer side."""
        for start in range(0, self.length if self.side else 0, self.block_length):
            yield start, min(start + self.block_length, self.length)


class Scratch:
    """A worker's buffers, one for each purpose, grown as needed and used again for every tensor."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, purpose: str, dtype: str, *shape: int) -> torch.Tensor:
        """An uninitialised tensor of a stored dtype; the same memory at the next call."""
        import torch

        nbytes = math.prod(shape) * BITS[dtype] // 8
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.numel() < nbytes:
            self._buffers.pop(purpose, None)
            buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned and nbytes > 0)
            self._buffers[purpose] = buffer
        torch_dtype = getattr(torch, FLOATING.get(dtype, "uint8"))
        return buffer[:nbytes].view(torch_dtype).view(shape)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, to be read from or written to."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many elements are NaN or Inf; one cheap pass where there are none."""
    import torch

    if tensor.numel() == 0:
        return 0
    low, high = torch.aminmax(tensor)
    if math.isfinite(low) and math.isfinite(high):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def check_finite(tensor: torch.Tensor, path: str, name: str) -> None:
    """Raise NonfiniteError where a (part of a) tensor of the file at `path` has NaN or Inf."""
    if count := count_nonfinite(tensor):
        raise NonfiniteError(
            f"holds NaN or Inf ({count:,} or more elements)", path=path, tensor=name,
            hint="--on-nonfinite keep leaves such tensors as fine-tuned",
        )  # fmt: skip


class InputMatrix:
    """One matrix of a stored tensor, read by blocks; `index` counts the matrices of a stack.

    A block with NaN or Inf raises NonfiniteError.
    """

    def __init__(
        self, checkpoint: Checkpoint, tensor: str, cut: Cut, scratch: Scratch, purpose: str, index: int = 0
    ) -> None:
        self.checkpoint, self.tensor, self.cut = checkpoint, tensor, cut
        self.dtype = checkpoint.tensors[tensor].dtype
        self._scratch, self._purpose = scratch, purpose
        self._item_bytes = BITS[self.dtype] // 8
        self._offset = index * cut.elements * self._item_bytes
        self._whole: torch.Tensor | None = None

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop (columns, transposed, of a wide matrix) in the stored dtype, on the CPU."""
        cut = self.cut
        if cut.elements * self._item_bytes <= RESIDENT_BYTES:
            if self._whole is None:
                self._whole = self._scratch.take(self._purpose, self.dtype, cut.rows, cut.columns)
                self._read(self._whole, 0)
                check_finite(self._whole, self.checkpoint.source, self.tensor)
            return self._whole[:, start:stop].T if cut.is_wide else self._whole[start:stop]
        if not cut.is_wide:
            block = self._scratch.take(self._purpose, self.dtype, stop - start, cut.columns)
            self._read(block, start * cut.columns)
        else:
            rows = self._scratch.take(self._purpose, self.dtype, cut.rows, stop - start)
            for number, row in enumerate(rows):
                self._read(row, number * cut.columns + start)
            block = rows.T
        check_finite(block, self.checkpoint.source, self.tensor)
        return block

    def _read(self, target: torch.Tensor, element: int) -> None:
        self.checkpoint.read_into(self.tensor, bytes_of(target), self._offset + element * self._item_bytes)


class OutputMatrix:
    """One matrix of an output tensor, written block after block, cast to the stored dtype.

    A result that is finite in float64 and not in the stored dtype raises NonfiniteError.
    """

    def __init__(
        self, output: PartialOutput, tensor: str, dtype: str, cut: Cut, scratch: Scratch, index: int = 0
    ) -> None:
        self._output, self._tensor, self._dtype, self._cut = output, tensor, dtype, cut
        self._scratch, self._item_bytes = scratch, BITS[dtype] // 8
        self._offset = index * cut.elements * self._item_bytes
        self._whole: torch.Tensor | None = None
        if cut.is_wide and cut.elements * self._item_bytes <= RESIDENT_BYTES:
            self._whole = scratch.take("output", dtype, cut.rows, cut.columns)

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store a block (stop − start, side) of the result."""
        cut = self._cut
        if self._whole is not None:
            part = self._whole[:, start:stop]
        elif cut.is_wide:
            part = self._scratch.take("output", self._dtype, cut.rows, stop - start)
        else:
            part = self._scratch.take("output", self._dtype, stop - start, cut.columns)
        part.copy_(block.T if cut.is_wide else block)
        if count := count_nonfinite(part):
            raise NonfiniteError(
                f"the result overflows {self._dtype} in {count:,} elements", tensor=self._tensor,
                hint="--dtype float32 or bfloat16 has room for it",
            )  # fmt: skip
        if self._whole is not None:
            if stop == cut.length:
                self._write(self._whole, 0)
        elif cut.is_wide:
            for number, row in enumerate(part):
                self._write(row, number * cut.columns + start)
        else:
            self._write(part, start * cut.columns)

    def _write(self, part: torch.Tensor, element: int) -> None:
        self._output.write(self._tensor, bytes_of(part), self._offset + element * self._item_bytes)


class Layer:
    """What a method sees of one matrix: the update of the mean of the fine-tuned ones, by blocks.

    `base` may be None; the "update" is then the mean itself. `device` is where blocks are
    computed. `interrupt` is called before each block, and may raise.
    """

    def __init__(
        self,
        base: InputMatrix | None,
        finetuned: list[InputMatrix],
        device: torch.device,
        scratch: Scratch,
        interrupt: Callable[[], None],
    ) -> None:
        self.base, self.finetuned, self.device = base, finetuned, device
        self._scratch = scratch
        self.cut = finetuned[0].cut
        self._interrupt = interrupt
        self._base_square: torch.Tensor | None = None

    @property
    def side(self) -> int:
        return self.cut.side

    def pairs(self) -> Iterator[tuple[int, int, torch.Tensor | None, torch.Tensor]]:
        """(start, stop, W0, Δ) of every block, in float64; both may be written to, and are gone
        when the next ones come."""
        for start, stop in self.cut.ranges():
            self._interrupt()
            update = self._upcast(self.finetuned[0].block(start, stop), "update")
            for other in self.finetuned[1:]:
                update += self._upcast(other.block(start, stop), "other update")
            if len(self.finetuned) > 1:
                update /= len(self.finetuned)
            base = None
            if self.base is not None:
                base = self._upcast(self.base.block(start, stop), "float64 base")
                update -= base
            yield start, stop, base, update

    def updates(self) -> Iterable[torch.Tensor]:
        """Δ by blocks (the `Blocks` of spectral.spectrum)."""
        import torch

        total: torch.Tensor | None = None
        for _, _, base, update in self.pairs():
            if self._base_square is None and base is not None:
                square = torch.linalg.vector_norm(base).square()
                total = square if total is None else total + square
            yield update
        if total is not None:
            self._base_square = total

    @property
    def base_norm(self) -> float:
        """‖W0‖_F, known after the first pass over `updates`."""
        return 0.0 if self._base_square is None else math.sqrt(float(self._base_square))

    def _upcast(self, block: torch.Tensor, purpose: str) -> torch.Tensor:
        import torch

        if self.device.type != "cpu":  # moved first: the card upcasts, not the CPU
            return block.to(self.device).to(torch.float64)
        stored = block.T if self.cut.is_wide else block
        upcast = self._scratch.take(purpose, "F64", *stored.shape).copy_(stored)
        return upcast.T if self.cut.is_wide else upcast
