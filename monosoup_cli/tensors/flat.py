"""One tensor in several checkpoints, element by element: for what needs no matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.held import Held
from monosoup_cli.formats.dtypes import BITS, check_finite
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

    from monosoup_cli.devices.device import Channel

__all__ = ["FLAT_ELEMENTS", "FlatLayer", "Memory", "Updates"]

FLAT_ELEMENTS = 1 << 17
"""How many elements a range has on a processor: few enough for the caches, many enough to outweigh Python.
Here and below, a card's `range_factor` multiplies it."""

ROWS_ELEMENTS = 1 << 18
"""How many elements a range of updates has, summed over all checkpoints."""

MIN_ROW_ELEMENTS = 1 << 12
"""How many elements a range of updates has at least, of each checkpoint."""

MAX_EXACT = 16
"""How many 16-bit tensors are summed in float32."""

HELD_BYTES = 64 << 20
"""What `Memory.held` keeps of a tensor between two passes. A larger tensor is read again."""

MOVED_BYTES = 8 << 20
"""What a worker takes, at most, to move bytes without computing on them."""

COMPUTED_BYTES = 8 << 20
"""What a worker takes, at most, for the ranges that it computes on."""


class Memory:
    """Where a `FlatLayer` computes. Fresh memory for every range would cost more than the arithmetic on it.

    Attributes:
        sums: The dtype of sums and differences. "F64", or "F32" for those of several 16-bit tensors: it
            holds them exactly, unless they differ by more than its 24 bits, and is twice as fast.
    """

    def __init__(self, channel: Channel, sums: str) -> None:
        self.sums, self._channel = sums, channel

    def buffer(self, purpose: str, *shape: int, dtype: str = "F64") -> torch.Tensor:
        """An uninitialized tensor on the device, in memory that the next call for `purpose` may reuse."""
        return self._channel.buffer(purpose, dtype, *shape)

    def upcast(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums or differences in float64."""
        import torch

        if sums.dtype == torch.float64:
            return sums
        return self.buffer("float64", *sums.shape).copy_(sums)

    def held(self, size: int) -> torch.Tensor | None:
        """Room for sums that are kept from one pass to the next.

        Args:
            size: How many sums.

        Returns:
            (1, size), uninitialized; None where it would be too large.
        """
        fits = size * BITS[self.sums] // 8 <= HELD_BYTES
        return self.buffer("held", 1, size, dtype=self.sums) if fits else None


class _Extent:
    """The elements of one tensor, and the ranges in which they are read.

    Attributes:
        name: The name of the tensor.
        shape: Its shape; of its leading rows where the checkpoints differ in their number.
        size: The number of elements.
    """

    def __init__(self, name: str, shape: tuple[int, ...], worker: Worker) -> None:
        self.name, self.shape, self.size = name, shape, math.prod(shape)
        self._interrupt, self._length = worker.interrupt, FLAT_ELEMENTS * worker.channel.sizes.range_factor

    def ranges(self, start: int = 0, stop: int | None = None, *, row: int = 1) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of ranges that fit the buffers.

        Args:
            start: The first element.
            stop: The element after the last one, None for all that follow.
            row: Ranges are whole rows of this many elements.
        """
        end = self.size if stop is None else stop
        length = max(self._length // row, 1) * row
        for first in range(start, end, length):
            self._interrupt()
            yield first, min(first + length, end)


class FlatLayer(_Extent):
    """What a method sees of one tensor: ranges of its elements, in the order of the file.

    Buffers do not grow with the number of checkpoints. A result is overwritten by the next call of the
    same method.

    Args:
        name: The name of the tensor.
        shape: The shape of the leading rows that every checkpoint has. Other rows are not read.
        base: The base, None for methods without one.
        finetuned: One or more checkpoints.
        weights: Make `mean` a weighted one. They sum to 1.
        worker: What the calling thread computes with.

    Attributes:
        count: The number of fine-tuned checkpoints.
        memory: Where to compute on ranges.
        updates: The update of every checkpoint.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        base: Source | None,
        finetuned: Sequence[Source],
        weights: Sequence[float] | None,
        worker: Worker,
    ) -> None:
        super().__init__(name, shape, worker)
        self._base = None if base is None else _Flat(base, name, worker)
        self._finetuned = [_Flat(source, name, worker) for source in finetuned]
        self._weights, self.count = weights, len(finetuned)
        inputs = self._finetuned if self._base is None else [self._base, *self._finetuned]
        is_short = all(BITS[flat.dtype] == 16 for flat in inputs)
        is_exact = is_short and weights is None and 1 < self.count <= MAX_EXACT
        self.memory = Memory(worker.channel, "F32" if is_exact else "F64")
        extent = _Extent(name, shape, worker)  # not this layer: a circle would hold the buffers
        self.updates = Updates(extent, self._base, self._finetuned, self.memory, worker)
        self._is_different = base is None

    @property
    def has_moved(self) -> bool:
        """Whether a difference to the base has been seen; always true without a base."""
        return self._is_different or self.updates.has_moved

    def mean(self, start: int, stop: int, weights: Sequence[float] | None = None) -> torch.Tensor:
        """The (weighted) mean of the fine-tuned checkpoints.

        Args:
            start: The first element.
            stop: The element after the last one.
            weights: Other weights than the layer's, which sum to 1.

        Returns:
            (stop − start,) in the dtype of `memory.sums`, or in float64.

        Raises:
            NonfiniteError: One of them has NaN or Inf.
        """
        total = self.total(start, stop, weights)
        count = self.count
        if self._weights is not None or weights is not None or count == 1:
            return total
        # the same for a power of two, and faster
        return total.div_(count) if count & (count - 1) else total.mul_(1.0 / count)

    def total(self, start: int, stop: int, weights: Sequence[float] | None = None) -> torch.Tensor:
        """The sum of the fine-tuned checkpoints, with weights their mean; as `mean` otherwise."""
        total = self._total(start, stop, self.memory.sums if weights is None else "F64", weights)
        if not math.isfinite(total.sum()):  # one of them is not, or the sum overflows
            for flat in self._finetuned:
                flat.check(start, stop)
            total = self._total(start, stop, "F64", weights)
        return total

    def _total(
        self, start: int, stop: int, dtype: str, weights: Sequence[float] | None = None
    ) -> torch.Tensor:
        weights = self._weights if weights is None else weights
        total = self._finetuned[0].read(start, stop, "total", dtype)
        if weights is not None:
            total *= weights[0]
        for number, flat in enumerate(self._finetuned[1:], start=1):
            other = flat.read(start, stop, "other", dtype)
            total.add_(other, alpha=1.0 if weights is None else weights[number])
        return total

    def from_base(self, start: int, stop: int) -> torch.Tensor:
        """W0: (stop − start,) float64. NaN and Inf are not looked for; see `updates`."""
        assert self._base is not None
        return self._base.read(start, stop, "base", "F64")

    def pair(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """W0 and the mean of the fine-tuned checkpoints: two tensors (stop − start,) float64.

        Raises:
            NonfiniteError: One of the checkpoints has NaN or Inf.
        """
        import torch

        base = self.from_base(start, stop)
        if not math.isfinite(base.sum()):
            self.updates.check(start, stop)
        mean = self.memory.upcast(self.mean(start, stop))
        self._is_different = self._is_different or not torch.equal(base, mean)
        return base, mean

    def taken_as_moved(self, start: int, stop: int) -> torch.Tensor:
        """The only checkpoint: (stop − start,) float64. It is taken to differ from the base, which is unread.
        NaN and Inf are not looked for: they show when the result is stored."""
        self._is_different = True
        return self.one(0, start, stop)

    def one(self, number: int, start: int, stop: int) -> torch.Tensor:
        """One of the fine-tuned checkpoints: (stop − start,) float64. NaN and Inf are not looked for."""
        return self._finetuned[number].read(start, stop, "one", "F64")

    def check(self) -> None:
        """Look for NaN and Inf, in a pass over all checkpoints.

        Raises:
            NonfiniteError: The tensor has NaN or Inf in one of them.
        """
        self.updates.check()

    @staticmethod
    def held(range_factor: int) -> Held:
        """How much memory it takes, at most, to read and upcast one layer, `memory.held` included, on a
        device with this `range_factor`."""
        return Held(host=MOVED_BYTES, device=HELD_BYTES + COMPUTED_BYTES * range_factor)


class Updates:
    """The updates of several checkpoints, by ranges: differences to the base, of one row each.

    Attributes:
        has_moved: Whether one of them was not zero in a range that was read.
    """

    def __init__(
        self, extent: _Extent, base: _Flat | None, finetuned: Sequence[_Flat], memory: Memory, worker: Worker
    ) -> None:
        self.has_moved = False
        self._extent, self._base, self._finetuned = extent, base, finetuned
        self._memory, self._channel, self._interrupt = memory, worker.channel, worker.interrupt

    @property
    def sums(self) -> str:
        """The dtype of the updates, as `Memory.sums`."""
        return self._memory.sums

    def ranges(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (start, stop, updates) of short ranges; updates is (checkpoints, stop − start).

        NaN and Inf are not looked for, because inner products of the updates show them; then call `check`
        or `widen`.

        Args:
            start: The first element.
            stop: The element after the last one, None for all that follow.
        """
        end, rows = self._extent.size if stop is None else stop, None
        length = self._length
        for first in range(start, end, length):
            self._interrupt()
            last = min(first + length, end)
            if rows is None or rows.size != last - first:
                rows = self._rows(last - first)
            for flat, stored in rows.stored:
                flat.read_into(stored, first)
            for stored, sums in rows.conversions:
                sums.copy_(stored)
            rows.updates.sub_(rows.base)
            self.has_moved = self.has_moved or bool(rows.updates.count_nonzero())
            yield first, last, rows.updates

    def of(self, number: int, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """What one of the checkpoints differs by from `base`, which `FlatLayer.from_base` returned.

        Returns:
            (stop − start,) float64.

        Raises:
            NonfiniteError: One of the checkpoints has NaN or Inf.
        """
        update = self._finetuned[number].read(start, stop, "update", "F64").sub_(base)
        if not math.isfinite(update.sum()):
            self.check(start, stop)
        self.has_moved = self.has_moved or bool(update.count_nonzero())
        return update

    def row_ranges(self, row: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of so many rows that `ranges` returns them in one range, or of one row.

        Args:
            row: How many elements a row has.
        """
        length = max(self._length // max(row, 1), 1) * row
        for start in range(0, self._extent.size, length):
            yield start, min(start + length, self._extent.size)

    def widen(self) -> None:
        """Compute in float64 from now on, because float32 overflowed.

        Raises:
            NonfiniteError: The tensor has NaN or Inf in one of the checkpoints.
            FloatingPointError: It was float64 that overflowed.
        """
        self.check()
        if self._memory.sums == "F64":
            raise FloatingPointError("the norm of an update overflows float64")
        self._memory.sums = "F64"

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Look for NaN and Inf in all checkpoints, the base included.

        Raises:
            NonfiniteError: One of them has NaN or Inf among the elements start:stop.
        """
        for first, last in self._extent.ranges(start, stop):
            for flat in (self._base, *self._finetuned):
                if flat is not None:
                    flat.check(first, last)

    @property
    def _length(self) -> int:
        """How many elements a range has."""
        wanted = max(ROWS_ELEMENTS // len(self._finetuned), MIN_ROW_ELEMENTS)
        return wanted * self._channel.sizes.range_factor

    def _rows(self, size: int) -> _Rows:
        assert self._base is not None
        inputs = [self._base, *self._finetuned]
        sums = self._memory.buffer("rows", len(inputs), size, dtype=self.sums)
        dtypes = {flat.dtype for flat in inputs}
        buffer = self._channel.buffer
        if len(dtypes) == 1:
            together = buffer("stored rows", dtypes.pop(), len(inputs), size)
            stored, conversions = list(together), [(together, sums)]
        else:
            stored = [buffer(f"stored row {number}", flat.dtype, size) for number, flat in enumerate(inputs)]
            conversions = list(zip(stored, sums, strict=True))
        return _Rows(size, list(zip(inputs, stored, strict=True)), conversions, sums[0], sums[1:])


@dataclass(frozen=True)
class _Rows:
    """Buffers for a range of updates, and the steps that fill them. Everything is prepared, and rows of one
    dtype are converted together, because with every step a worker waits for its turn of Python's lock."""

    size: int
    stored: Sequence[tuple[_Flat, torch.Tensor]]
    conversions: Sequence[tuple[torch.Tensor, torch.Tensor]]
    base: torch.Tensor
    updates: torch.Tensor


class _Flat:
    """The tensor of one checkpoint."""

    def __init__(self, source: Source, name: str, worker: Worker) -> None:
        reader = source.reader(name)
        self.dtype, self._read_into = reader.dtype, reader.read_into
        self._path, self._name, self._channel = source.path, name, worker.channel
        self._item_bytes = BITS[self.dtype] // 8

    def read_into(self, stored: torch.Tensor, start: int) -> None:
        """Fill a tensor of the stored dtype, on the device, with elements from `start` on."""
        first = start * self._item_bytes
        self._channel.fill(stored, lambda buffer, offset: self._read_into(buffer, first + offset))

    def stored(self, start: int, stop: int) -> torch.Tensor:
        """The elements start:stop in the stored dtype, on the device."""
        stored = self._channel.buffer("stored", self.dtype, stop - start)
        self.read_into(stored, start)
        return stored

    def read(self, start: int, stop: int, purpose: str, dtype: str) -> torch.Tensor:
        """The same in another dtype, in the buffer for `purpose`."""
        if dtype == self.dtype:
            same = self._channel.buffer(purpose, dtype, stop - start)
            self.read_into(same, start)
            return same
        return self._channel.upcast(self.stored(start, stop), dtype, purpose)

    def check(self, start: int, stop: int) -> None:
        """Raise NonfiniteError for NaN or Inf among the elements."""
        check_finite(self.stored(start, stop), self._path, self._name)
