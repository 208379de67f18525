"""Tensors of any size as float64 blocks, and back: the one place where dtypes are converted.

Inputs are upcast to float64 before anything is computed, and results are cast once, when they are
stored (to 16 bits torch goes by way of float32).

A method sees one of two views. `MatrixLayer`: blocks along the longer side of a matrix; a block is
always (any, side) with side = min(rows, columns), so a wide matrix appears transposed. `FlatLayer`:
ranges of elements in the order of the file, for what needs no matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.formats.dtypes import BITS, FLOATING, bytes_of, check_finite, check_overflow

if TYPE_CHECKING:
    import torch

    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = [
    "BLOCK_ELEMENTS",
    "RESIDENT_BYTES",
    "Cut",
    "FlatLayer",
    "InputMatrix",
    "MatrixLayer",
    "MeanMatrix",
    "OutputFlat",
    "OutputMatrix",
    "check_stored",
    "matrix_layer",
    "stored_chunks",
]

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block: 8 MiB in float64, enough to keep a matrix product busy."""

MIN_BLOCK_LENGTH = 1024
"""Rows of a block where the side is large: thin blocks would starve the products."""

FLAT_ELEMENTS = 1 << 17
"""Elements of a range of a `FlatLayer`: few enough for the caches, many enough for Python."""

ROWS_ELEMENTS = 1 << 18
MIN_ROW_ELEMENTS = 1 << 12
"""Elements of several updates side by side, the fewer of each, the more there are; and the fewest."""

MAX_EXACT = 16
"""How many 16-bit tensors are summed in float32."""

CHUNK_BYTES = 8 << 20
"""Of a tensor that is moved as bytes."""

FLAT_BYTES = 80 << 20
"""What a worker takes, at most, for a `FlatLayer` or to move bytes."""

HELD_BYTES = 64 << 20
"""What a `FlatLayer` keeps of a tensor between two passes; a larger one is read again."""

RESIDENT_BYTES = 32 << 20
"""A stored matrix up to this size is read whole and once; a larger one block by block, again for
every pass, out of the system's cache."""

MEAN_BYTES = 128 << 20
"""The same for the mean of several matrices, which is held in float64."""


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


def stored_chunks(
    checkpoint: Checkpoint,
    name: str,
    scratch: Scratch,
    interrupt: Callable[[], None],
    start: int = 0,
    stop: int | None = None,
) -> Iterator[torch.Tensor]:
    """A stored tensor, or its elements start:stop, piece by piece, flat: in its dtype where that is
    edited, else as bytes."""
    read_dtype = checkpoint.read_dtype(name)
    dtype = read_dtype if read_dtype in FLOATING else "U8"
    last = checkpoint.tensors[name].elements if stop is None else stop
    end = last * BITS[read_dtype] // 8
    for offset in range(start * BITS[read_dtype] // 8, end, CHUNK_BYTES):
        interrupt()
        count = min(CHUNK_BYTES, end - offset) * 8 // BITS[dtype]
        chunk = scratch.take("kept", dtype, count)
        checkpoint.read_into(name, bytes_of(chunk), offset)
        yield chunk


def check_stored(checkpoint: Checkpoint, name: str, scratch: Scratch, interrupt: Callable[[], None]) -> None:
    """Raise NonfiniteError where a floating tensor of the checkpoint, if it has one of that name, has NaN
    or Inf."""
    stored = checkpoint.tensors.get(name)
    if stored is not None and stored.dtype in FLOATING:
        for chunk in stored_chunks(checkpoint, name, scratch, interrupt):
            check_finite(chunk, checkpoint.source, name)


class InputMatrix:
    """One matrix of a stored tensor, read by blocks; `index` counts the matrices of a stack.

    A block with NaN or Inf raises NonfiniteError. `is_held`: a matrix that is small enough stays
    in memory; without it, the buffer of `purpose` may serve several matrices.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensor: str,
        cut: Cut,
        scratch: Scratch,
        purpose: str,
        index: int = 0,
        *,
        is_held: bool = True,
    ) -> None:
        self.checkpoint, self.tensor, self.cut = checkpoint, tensor, cut
        self.dtype = checkpoint.read_dtype(tensor)
        self._scratch, self._purpose = scratch, purpose
        self._item_bytes = BITS[self.dtype] // 8
        self._offset = index * cut.elements * self._item_bytes
        self._is_held = is_held and cut.elements * self._item_bytes <= RESIDENT_BYTES
        self._whole: torch.Tensor | None = None

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop (columns, transposed, of a wide matrix) in the stored dtype, on the CPU."""
        cut = self.cut
        if self._is_held:
            if self._whole is None:
                self._whole = self.whole()
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

    def whole(self) -> torch.Tensor:
        """All of it, (rows, columns) in the stored dtype, on the CPU."""
        matrix = self._scratch.take(self._purpose, self.dtype, self.cut.rows, self.cut.columns)
        self._read(matrix, 0)
        check_finite(matrix, self.checkpoint.source, self.tensor)
        return matrix

    def _read(self, target: torch.Tensor, element: int) -> None:
        self.checkpoint.read_into(self.tensor, bytes_of(target), self._offset + element * self._item_bytes)


class MeanMatrix:
    """The mean of several stored matrices, read by blocks; buffers do not grow with their number."""

    def __init__(self, matrices: Sequence[InputMatrix], scratch: Scratch) -> None:
        self.matrices, self._scratch = matrices, scratch
        self.cut = matrices[0].cut
        self._whole: torch.Tensor | None = None

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop (columns, transposed, of a wide matrix) in float64, on the CPU."""
        cut = self.cut
        if cut.elements * 8 > MEAN_BYTES:
            return self._mean(lambda matrix: matrix.block(start, stop))
        if self._whole is None:
            self._whole = self._mean(lambda matrix: matrix.whole())
        return self._whole[:, start:stop].T if cut.is_wide else self._whole[start:stop]

    def _mean(self, part: Callable[[InputMatrix], torch.Tensor]) -> torch.Tensor:
        first = part(self.matrices[0])
        total = self._scratch.take("mean", "F64", *first.shape).copy_(first)
        for matrix in self.matrices[1:]:
            total += part(matrix)
        return total.div_(len(self.matrices))


class OutputMatrix:
    """One matrix of an output tensor, written block after block, cast to the stored dtype.

    A result that is finite in float64 and not in the stored dtype raises NonfiniteError.
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
        if cut.is_wide and cut.elements * self._item_bytes <= RESIDENT_BYTES:
            self._whole = scratch.take(f"output {folder}", dtype, cut.rows, cut.columns)

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


class OutputFlat:
    """An output tensor written from its first element to its last, cast to the stored dtype.

    A result that is finite in float64 and not in the stored dtype raises NonfiniteError.
    """

    def __init__(self, output: PartialOutput, folder: str, tensor: str, dtype: str, scratch: Scratch) -> None:
        self._output, self._folder, self._tensor, self._dtype = output, folder, tensor, dtype
        self._scratch = scratch

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Store the elements start:stop of the result."""
        part = self._scratch.take("output", self._dtype, stop - start).copy_(block.view(-1))
        check_overflow(part, self._dtype, self._tensor)
        self._output.write(self._tensor, bytes_of(part), start * BITS[self._dtype] // 8, self._folder)


class MatrixLayer:
    """What a method sees of one matrix: its update by blocks.

    `base` may be None; the "update" is then the fine-tuned matrix itself. `factors`: of an update that is
    known to be of low rank, (length, rank) and (rank, side) float64 on `device`, whose product it is.
    `is_factored`: the result is wanted as factors, and where the update has none, of that `rank`.
    `device` is where blocks are computed. `interrupt` is called before each block, and may raise.
    """

    has_moved = True
    is_factored = False
    rank: int | None = None

    def __init__(
        self,
        base: InputMatrix | None,
        finetuned: InputMatrix | MeanMatrix,
        device: torch.device,
        scratch: Scratch,
        interrupt: Callable[[], None],
        factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.base, self.finetuned, self.device = base, finetuned, device
        self.factors = factors
        self._scratch = scratch
        self.cut = finetuned.cut
        self._interrupt = interrupt
        self._base_square: torch.Tensor | None = None

    @property
    def side(self) -> int:
        return self.cut.side

    @property
    def dtypes(self) -> list[str]:
        """The stored dtypes that the update is made from, the base's first."""
        finetuned = self.finetuned.matrices if isinstance(self.finetuned, MeanMatrix) else [self.finetuned]
        return [matrix.dtype for matrix in (self.base, *finetuned) if matrix is not None]

    def pairs(self) -> Iterator[tuple[int, int, torch.Tensor | None, torch.Tensor]]:
        """(start, stop, W0, Δ) of every block, in float64; both may be written to, and are gone
        when the next ones come."""
        for start, stop in self.cut.ranges():
            self._interrupt()
            update = self._upcast(self.finetuned.block(start, stop), "update")
            base = None
            if self.base is not None:
                base = self._upcast(self.base.block(start, stop), "float64 base")
                update -= base
            yield start, stop, base, update

    def updates(
        self, watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None
    ) -> Iterable[torch.Tensor]:
        """Δ by blocks (the `Blocks` of spectral.spectrum); `watch` is called with W0 and Δ in the first
        pass."""
        import torch

        total: torch.Tensor | None = None
        for _, _, base, update in self.pairs():
            if self._base_square is None and base is not None:
                square = torch.linalg.vector_norm(base).square()
                total = square if total is None else total + square
                if watch is not None:
                    watch(base, update)
            yield update
        if total is not None:
            self._base_square = total

    def bases(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, stop, W0) of every block, in float64, as `pairs` has them; no update is read."""
        assert self.base is not None
        for start, stop in self.cut.ranges():
            self._interrupt()
            yield start, stop, self._upcast(self.base.block(start, stop), "float64 base")

    def measure_base(self) -> None:
        """A pass over the base alone, for `base_norm`."""
        import torch

        if self.base is not None:
            squares = [torch.linalg.vector_norm(base).square() for _, _, base in self.bases()]
            self._base_square = torch.stack(squares).sum() if squares else None

    @property
    def base_norm(self) -> float:
        """‖W0‖_F, known after the first pass over `updates`, or `measure_base`."""
        return 0.0 if self._base_square is None else math.sqrt(float(self._base_square))

    def _upcast(self, block: torch.Tensor, purpose: str) -> torch.Tensor:
        import torch

        if self.device.type != "cpu":  # moved first: the card upcasts, not the CPU
            return block.to(self.device).to(torch.float64)
        stored = block.T if self.cut.is_wide else block
        upcast = self._scratch.take(purpose, "F64", *stored.shape).copy_(stored)
        return upcast.T if self.cut.is_wide else upcast


def matrix_layer(
    tensor: str,
    cut: Cut,
    index: int,
    base: Checkpoint | None,
    finetuned: Sequence[Checkpoint],
    device: torch.device,
    scratch: Scratch,
    interrupt: Callable[[], None],
) -> MatrixLayer:
    """One matrix of a tensor: of the fine-tuned checkpoint, or the mean of several; against the base."""
    is_alone = len(finetuned) == 1
    factors = [checkpoint.factors(tensor, index, cut.rows, cut.columns) for checkpoint in finetuned]
    matrices = [
        InputMatrix(checkpoint, tensor, cut, scratch, "finetuned", index, is_held=is_alone)
        for checkpoint in finetuned
    ]
    return MatrixLayer(
        None if base is None else InputMatrix(base, tensor, cut, scratch, "base", index),
        matrices[0] if is_alone else MeanMatrix(matrices, scratch),
        device,
        scratch,
        interrupt,
        _mean_of_products([each for each in factors if each is not None], cut, device)
        if None not in factors
        else None,
    )


def _mean_of_products(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]], cut: Cut, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the mean of several products, side by side, as blocks see it."""
    import torch

    left = torch.cat([left for left, _ in factors], dim=1).to(device).div_(len(factors))
    right = torch.cat([right for _, right in factors]).to(device)
    return (right.T, left.T) if cut.is_wide else (left, right)


class FlatLayer:
    """What a method sees of one tensor, element by element: ranges of it.

    Buffers do not grow with the number of checkpoints: ranges of `updates` are as much shorter.
    `shape`: of the leading rows that every checkpoint has; others are not seen. `weights`, which sum
    to 1, make `mean` a weighted one. `interrupt` is called before each range, and may raise. What a
    method returns is gone when it is called again. `has_moved`: a difference to the base, if there
    is one, has been seen.

    `sums`: the dtype of sums and differences, float64, or float32 for those of several 16-bit
    tensors: it holds them exactly, unless they differ by more than its 24 bits, and is twice as fast.
    """

    def __init__(
        self,
        tensor: str,
        shape: tuple[int, ...],
        base: Checkpoint | None,
        finetuned: Sequence[Checkpoint],
        weights: Sequence[float] | None,
        device: torch.device,
        scratch: Scratch,
        interrupt: Callable[[], None],
    ) -> None:
        self.tensor = tensor
        self.base = None if base is None else _Flat(base, tensor, device, scratch)
        self.finetuned = [_Flat(checkpoint, tensor, device, scratch) for checkpoint in finetuned]
        self.weights = weights
        self.shape, self.size = shape, math.prod(shape)
        self.device, self._is_cpu = device, device.type == "cpu"
        self.has_moved = base is None
        is_short = all(BITS[each.dtype] == 16 for each in (*self.finetuned, self.base) if each is not None)
        self.sums = "F32" if is_short and weights is None and 1 < len(finetuned) <= MAX_EXACT else "F64"
        self._scratch, self._interrupt = scratch, interrupt

    def ranges(self, start: int = 0, stop: int | None = None, *, row: int = 1) -> Iterator[tuple[int, int]]:
        """(start, stop) of ranges that fit the buffers, of whole rows of `row` elements."""
        end = self.size if stop is None else stop
        length = max(FLAT_ELEMENTS // row, 1) * row
        for first in range(start, end, length):
            self._interrupt()
            yield first, min(first + length, end)

    def row_ranges(self, row: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of one row of `row` elements, or of so many that `updates` has them in one."""
        length = max(self._side_by_side // max(row, 1), 1) * row
        for start in range(0, self.size, length):
            yield start, min(start + length, self.size)

    def mean(self, start: int, stop: int) -> torch.Tensor:
        """The (weighted) mean of the fine-tuned checkpoints, in the dtype of `sums` or float64."""
        total = self.total(start, stop)
        count = len(self.finetuned)
        if self.weights is not None or count == 1:
            return total
        # the same for a power of two, and faster
        return total.div_(count) if count & (count - 1) else total.mul_(1.0 / count)

    def total(self, start: int, stop: int) -> torch.Tensor:
        """The sum of the fine-tuned checkpoints; with weights their mean."""
        total = self._total(start, stop, self.sums)
        if not math.isfinite(total.sum()):  # one of them is not, or the sum overflows
            for source in self.finetuned:
                source.check(start, stop)
            total = self._total(start, stop, "F64")
        return total

    def _total(self, start: int, stop: int, dtype: str) -> torch.Tensor:
        total = self.finetuned[0].read(start, stop, "total", dtype)
        if self.weights is not None:
            total *= self.weights[0]
        for number, finetuned in enumerate(self.finetuned[1:], start=1):
            other = finetuned.read(start, stop, "other", dtype)
            total.add_(other, alpha=1.0 if self.weights is None else self.weights[number])
        return total

    def from_base(self, start: int, stop: int) -> torch.Tensor:
        """W0 in float64; not looked through for NaN and Inf, see `updates`."""
        assert self.base is not None
        return self.base.read(start, stop, "base", "F64")

    def pair(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """W0 and the mean of the fine-tuned checkpoints in float64."""
        import torch

        base = self.from_base(start, stop)
        if not math.isfinite(base.sum()):
            self.check(start, stop)
        mean = self.upcast(self.mean(start, stop))
        self.has_moved = self.has_moved or not torch.equal(base, mean)
        return base, mean

    def updates(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, stop, the update of every fine-tuned checkpoint), (checkpoints, elements) a range.

        They are not looked through for NaN and Inf, which their inner products show: see `check`.
        """
        end, rows = self.size if stop is None else stop, None
        for first in range(start, end, self._side_by_side):
            self._interrupt()
            last = min(first + self._side_by_side, end)
            if rows is None or rows.size != last - first:
                rows = self._rows(last - first)
            for source, buffer in rows.buffers:
                source.read_into(buffer, first)
            for stored, sums in rows.conversions:
                sums.copy_(stored.to(self.device))
            rows.updates.sub_(rows.base)
            self.has_moved = self.has_moved or bool(rows.updates.count_nonzero())
            yield first, last, rows.updates

    def _rows(self, size: int) -> _Rows:
        assert self.base is not None
        sources = [self.base, *self.finetuned]
        sums = self.room("rows", len(sources), size, dtype=self.sums)
        dtypes = {source.dtype for source in sources}
        if len(dtypes) == 1:
            together = self._scratch.take("stored rows", dtypes.pop(), len(sources), size)
            stored, conversions = list(together), [(together, sums)]
        else:
            stored = [
                self._scratch.take(f"stored row {number}", source.dtype, size)
                for number, source in enumerate(sources)
            ]
            conversions = list(zip(stored, sums, strict=True))
        buffers = [(source, bytes_of(row)) for source, row in zip(sources, stored, strict=True)]
        return _Rows(size, buffers, conversions, sums[0], sums[1:])

    def widen(self) -> None:
        """Make sums in float64 from now on, where float32 overflowed. Raises NonfiniteError for NaN or
        Inf in the tensor, FloatingPointError where float64 overflowed."""
        self.check()
        if self.sums == "F64":
            raise FloatingPointError("the norm of an update overflows float64")
        self.sums = "F64"

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Raise NonfiniteError where the tensor has NaN or Inf in one of the checkpoints."""
        for first, last in self.ranges(start, stop):
            for source in (self.base, *self.finetuned):
                if source is not None:
                    source.check(first, last)

    def held(self, size: int) -> torch.Tensor | None:
        """Room for that many sums, (1, size), to be kept from one pass to the next; None where it would
        be too much."""
        fits = size * BITS[self.sums] // 8 <= HELD_BYTES
        return self.room("held", 1, size, dtype=self.sums) if fits else None

    def room(self, purpose: str, *shape: int, dtype: str = "F64") -> torch.Tensor:
        """An uninitialised tensor on the device; on the CPU the same memory at the next call, which
        costs far less than new memory does."""
        import torch

        if self._is_cpu:
            return self._scratch.take(purpose, dtype, *shape)
        return torch.empty(shape, dtype=getattr(torch, FLOATING[dtype]), device=self.device)

    def upcast(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums or differences in float64."""
        import torch

        if sums.dtype == torch.float64:
            return sums
        return self.room("float64", *sums.shape).copy_(sums)

    @property
    def _side_by_side(self) -> int:
        """Elements in a range of `updates`."""
        return max(ROWS_ELEMENTS // len(self.finetuned), MIN_ROW_ELEMENTS)


@dataclass(frozen=True)
class _Rows:
    """Buffers for a range of `updates`, and what to do to fill them. All is prepared, and rows of one dtype
    are converted together: workers pay for every step with a turn of Python's lock."""

    size: int
    buffers: Sequence[tuple[_Flat, memoryview]]
    conversions: Sequence[tuple[torch.Tensor, torch.Tensor]]
    base: torch.Tensor
    updates: torch.Tensor


class _Flat:
    """One checkpoint's part in a `FlatLayer`."""

    def __init__(self, checkpoint: Checkpoint, tensor: str, device: torch.device, scratch: Scratch) -> None:
        self._checkpoint, self._tensor, self._scratch = checkpoint, tensor, scratch
        self._device, self._is_cpu = device, device.type == "cpu"
        self.dtype = checkpoint.read_dtype(tensor)
        self._item_bytes = BITS[self.dtype] // 8
        self._read_into = checkpoint.reader(tensor)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with elements from `start` on, as they are stored."""
        self._read_into(buffer, start * self._item_bytes)

    def stored(self, start: int, stop: int) -> torch.Tensor:
        """The elements start:stop in the stored dtype, on the CPU."""
        stored = self._scratch.take("stored", self.dtype, stop - start)
        self.read_into(bytes_of(stored), start)
        return stored

    def read(self, start: int, stop: int, purpose: str, dtype: str) -> torch.Tensor:
        """The same in another dtype, on the device."""
        import torch

        stored = self.stored(start, stop)
        if not self._is_cpu:  # moved first: the card upcasts, not the CPU
            return stored.to(self._device).to(getattr(torch, FLOATING[dtype]), copy=True)
        return self._scratch.take(purpose, dtype, stop - start).copy_(stored)

    def check(self, start: int, stop: int) -> None:
        """Raise NonfiniteError for NaN or Inf among the elements."""
        check_finite(self.stored(start, stop), self._checkpoint.source, self._tensor)
