"""One matrix of a checkpoint, and its update, by blocks in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.held import Held
from monosoup_cli.formats.dtypes import BITS, check_finite
from monosoup_cli.sources.source import Factors, LowRank, Source
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

    from monosoup_cli.devices.device import Channel

__all__ = ["BLOCKS", "InputMatrix", "MatrixLayer", "MeanMatrix", "Wanted", "matrix_layer"]

MEAN_BYTES = 128 << 20
"""The mean of several matrices up to this size is made once, and held in float64."""


@dataclass(frozen=True)
class Wanted:
    """Whether an output takes blocks of a layer, or the factors of its update.

    Args:
        factors: It takes factors.
        rank: Their rank, where the update has no factors of its own.
    """

    factors: bool = False
    rank: int | None = None


BLOCKS = Wanted()


class InputMatrix:
    """One matrix of a stored tensor, read by blocks. NaN and Inf are not looked for, except by `check`.

    Args:
        source: The checkpoint that has the tensor.
        tensor: Its name.
        cut: How the matrix is cut into blocks.
        channel: Where its blocks are read to.
        purpose: The name of the buffer.
        first: Its first element in the tensor.
        is_held: Keep a matrix that is small enough in memory. Without it, several matrices may share one
            buffer.
    """

    def __init__(
        self,
        source: Source,
        tensor: str,
        cut: Cut,
        channel: Channel,
        purpose: str,
        first: int = 0,
        *,
        is_held: bool = True,
    ) -> None:
        reader = source.reader(tensor)
        self.cut, self.dtype = cut, reader.dtype
        self._read_into, self._path, self._tensor = reader.read_into, source.path, tensor
        self._channel, self._purpose = channel, purpose
        self._item_bytes = BITS[self.dtype] // 8
        self._offset = first * self._item_bytes
        self._is_held = is_held and cut.is_resident(self._item_bytes, channel.sizes.resident_bytes)
        self._whole: torch.Tensor | None = None

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Read one block.

        Args:
            start: Its first row; of a wide matrix, its first column.
            stop: The row or column after its last one.

        Returns:
            (stop − start, side) in the stored dtype, on the worker's device.
        """
        cut = self.cut
        if self._is_held:
            if self._whole is None:
                self._whole = self.whole()
            return self._whole[:, start:stop].T if cut.is_wide else self._whole[start:stop]
        shape = (cut.rows, stop - start) if cut.is_wide else (stop - start, cut.columns)
        block = self._filled(*shape, start, stop)
        return block.T if cut.is_wide else block

    def whole(self) -> torch.Tensor:
        """Read all of it: (rows, columns) in the stored dtype, on the worker's device."""
        return self._filled(self.cut.rows, self.cut.columns, 0, self.cut.length)

    def check(self, start: int, stop: int) -> None:
        """Raise NonfiniteError if a block has NaN or Inf."""
        check_finite(self.block(start, stop), self._path, self._tensor)

    def _filled(self, rows: int, columns: int, start: int, stop: int) -> torch.Tensor:
        size = self._item_bytes

        def read(buffer: memoryview, offset: int) -> None:
            first = offset // size
            for of_block, of_matrix, count in self.cut.runs(start, stop, first, first + len(buffer) // size):
                part = buffer[(of_block - first) * size : (of_block - first + count) * size]
                self._read_into(part, self._offset + of_matrix * size)

        block = self._channel.buffer(self._purpose, self.dtype, rows, columns)
        self._channel.fill(block, read)
        return block


class MeanMatrix:
    """The (weighted) mean of several stored matrices, read by blocks, in buffers that do not grow with them.

    Args:
        matrices: The matrices.
        channel: Where they are read to.
        weights: Their weights, which sum to 1; None for an even mean.
    """

    def __init__(
        self, matrices: Sequence[InputMatrix], channel: Channel, weights: Sequence[float] | None = None
    ) -> None:
        self.cut = matrices[0].cut
        self._matrices, self._channel, self._weights = matrices, channel, weights
        self._whole: torch.Tensor | None = None

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Average one block: (stop − start, side) in float64, on the worker's device."""
        cut = self.cut
        if cut.elements * 8 > MEAN_BYTES:
            return self._mean(lambda matrix: matrix.block(start, stop))
        if self._whole is None:
            self._whole = self._mean(lambda matrix: matrix.whole())
        return self._whole[:, start:stop].T if cut.is_wide else self._whole[start:stop]

    def check(self, start: int, stop: int) -> None:
        """Raise NonfiniteError if a block has NaN or Inf in one of the matrices."""
        for matrix in self._matrices:
            matrix.check(start, stop)

    def _mean(self, part: Callable[[InputMatrix], torch.Tensor]) -> torch.Tensor:
        first = part(self._matrices[0])
        total = self._channel.buffer("mean", "F64", *first.shape).copy_(first)
        if self._weights is None:
            for matrix in self._matrices[1:]:
                total += part(matrix)
            return total.div_(len(self._matrices))
        total *= self._weights[0]
        for matrix, weight in zip(self._matrices[1:], self._weights[1:], strict=True):
            total.add_(part(matrix), alpha=weight)
        return total

    @staticmethod
    def held_bytes(cut: Cut) -> int:
        """How much memory the mean, or the block of it that is held at a time, takes at most."""
        return 8 * min(cut.elements, max(cut.block_length * cut.side, MEAN_BYTES // 8))


class MatrixLayer:
    """What a method sees of one matrix: its update by blocks. `matrix_layer` makes one.

    Blocks are float64 tensors (any number, side) on the worker's device. A block is overwritten when the
    next one is asked for, so a method may write to it.

    Attributes:
        name: The name of its tensor.
        cut: How the matrix is cut into blocks.
        factors: The factors of an update that is known to be of low rank, (length, rank) and (rank, side)
            in float64 on the device, in the orientation of blocks. None where it is not.
        wanted: What the output takes.
        has_moved: Whether a difference to the base is possible.
    """

    has_moved = True

    def __init__(
        self,
        name: str,
        base: InputMatrix | None,
        finetuned: InputMatrix | MeanMatrix,
        worker: Worker,
        *,
        factors: Factors | None = None,
        wanted: Wanted = BLOCKS,
    ) -> None:
        self.name, self.cut = name, finetuned.cut
        self.factors, self.wanted = factors, wanted
        self._base, self._finetuned, self._worker = base, finetuned, worker
        self._base_square: torch.Tensor | None = None

    def pairs(self) -> Iterator[tuple[int, int, torch.Tensor | None, torch.Tensor]]:
        """Yield (start, stop, W0, Δ) of every block. Without a base, W0 is None and Δ the matrix itself.

        NaN and Inf are not looked for, because they show in everything that is computed; see `check`.
        """
        for start, stop in self.cut.ranges():
            self._worker.interrupt()
            update = self._upcast(self._finetuned.block(start, stop), "update")
            base = None
            if self._base is not None:
                base = self._upcast(self._base.block(start, stop), "float64 base")
                update -= base
            yield start, stop, base, update

    def updates(
        self, watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None
    ) -> Iterable[torch.Tensor]:
        """Yield Δ by blocks (the `Blocks` of spectral.spectrum).

        Args:
            watch: Called with W0 and Δ of every block, in the first pass.
        """
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
        """Yield (start, stop, W0) of every block, as `pairs` does, without reading the update."""
        assert self._base is not None
        for start, stop in self.cut.ranges():
            self._worker.interrupt()
            yield start, stop, self._upcast(self._base.block(start, stop), "float64 base")

    def check(self) -> None:
        """Look for NaN and Inf, in a pass over all inputs: the base first, which merged adapters contain.

        Factors are looked through when they are read. Their product may overflow where they do not.

        Raises:
            NonfiniteError: The matrix has NaN or Inf in one of the checkpoints.
        """
        for start, stop in self.cut.ranges():
            self._worker.interrupt()
            if self._base is not None:
                self._base.check(start, stop)
            if self.factors is None:
                self._finetuned.check(start, stop)

    def measure_base(self) -> None:
        """Measure `base_norm` in a pass over the base alone.

        Raises:
            NonfiniteError: The base has NaN or Inf.
        """
        import torch

        if self._base is not None:
            squares = [torch.linalg.vector_norm(base).square() for _, _, base in self.bases()]
            self._base_square = torch.stack(squares).sum() if squares else None
            self._check_norm()

    @property
    def base_norm(self) -> float:
        """‖W0‖_F, known after the first pass over `updates` or after `measure_base`; 0 before.

        Raises:
            NonfiniteError: The matrix has NaN or Inf.
        """
        return self._check_norm()

    def _check_norm(self) -> float:
        square = 0.0 if self._base_square is None else float(self._base_square)
        if not math.isfinite(square):  # NaN or Inf, or the sum overflows
            self.check()
        return math.sqrt(square)

    @staticmethod
    def held(
        cut: Cut, item_bytes: Sequence[int], count: int, rank: int | None = None, *, resident_bytes: int
    ) -> Held:
        """How much memory it takes to read and upcast one layer.

        Args:
            cut: How the matrix is cut into blocks.
            item_bytes: The size of a stored element in the base, and in the fine-tuned checkpoints at most.
            count: The number of fine-tuned checkpoints.
            rank: The rank of the update's factors; None where it has none.
            resident_bytes: Up to which size the device holds stored matrices whole.
        """
        stored = sum(cut.held_bytes(size, resident_bytes) for size in item_bytes)
        mean = MeanMatrix.held_bytes(cut) if count > 1 else 0
        upcast = 2 * 8 * cut.block_length * cut.side  # W0 and Δ
        factors = 8 * (rank or 0) * (cut.length + cut.side)
        return Held(device=stored + mean + upcast + (factors if count == 1 else 2 * factors))

    def _upcast(self, block: torch.Tensor, purpose: str) -> torch.Tensor:
        is_wide = self.cut.is_wide
        upcast = self._worker.channel.upcast(block.T if is_wide else block, "F64", purpose)
        return upcast.T if is_wide else upcast


def matrix_layer(
    name: str,
    cut: Cut,
    index: int,
    base: Source | None,
    finetuned: Sequence[Source],
    worker: Worker,
    wanted: Wanted = BLOCKS,
    *,
    first: int | None = None,
    weights: Sequence[float] | None = None,
) -> MatrixLayer:
    """One matrix of a tensor, against the base: of one fine-tuned checkpoint, or the mean of several.

    Args:
        name: The name of the tensor.
        cut: How the matrix is cut into blocks.
        index: Which matrix of the tensor it is; 0 for a tensor that is one matrix.
        base: The base, None for methods without one.
        finetuned: One or more checkpoints.
        worker: What the calling thread computes with.
        wanted: What the output takes.
        first: Its first element in the tensor; None where all matrices have one size.
        weights: The weights of the mean, which sum to 1; None for an even mean.
    """
    first = index * cut.elements if first is None else first
    is_alone = len(finetuned) == 1
    factors = [_factors(source, name, index, cut) for source in finetuned]
    matrices = [
        InputMatrix(source, name, cut, worker.channel, "finetuned", first, is_held=is_alone)
        for source in finetuned
    ]
    of_base = None if base is None else InputMatrix(base, name, cut, worker.channel, "base", first)
    return MatrixLayer(
        name,
        of_base,
        matrices[0] if is_alone else MeanMatrix(matrices, worker.channel, weights),
        worker,
        factors=_mean_of_products([one for one in factors if one is not None], weights, cut, worker)
        if None not in factors
        else None,
        wanted=wanted,
    )


def _factors(source: Source, name: str, index: int, cut: Cut) -> Factors | None:
    """The update of one matrix as a product, where the checkpoint knows it to be one."""
    update = source.update(name)
    return update.factors(index, cut.rows, cut.columns) if isinstance(update, LowRank) else None


def _mean_of_products(
    products: Sequence[Factors], weights: Sequence[float] | None, cut: Cut, worker: Worker
) -> Factors:
    """The factors of the mean of several products, side by side, in the orientation of blocks."""
    import torch

    lefts, rights = (
        [worker.channel.upload(factor) for factor in factors] for factors in zip(*products, strict=True)
    )
    if len(products) == 1:
        left, right = lefts[0], rights[0]
    else:
        if weights is None:
            left = torch.cat(lefts, dim=1).div_(len(products))
        else:
            left = torch.cat([one * weight for one, weight in zip(lefts, weights, strict=True)], dim=1)
        right = torch.cat(rights)
    return (right.T, left.T) if cut.is_wide else (left, right)
