"""One file of many: tensors whose chunks are in other files, read as if they stood one after the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from monosoup_cli.formats.dtypes import integers_in
from monosoup_cli.formats.files import CheckpointFile, Download
from monosoup_cli.formats.header import BITS, MAX_ELEMENTS, TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Chunk", "Chunked", "Gathered", "chunked", "problem_of"]

DIRECT = 1 << 16
"""How many bytes of a chunk, that lie together, are worth a read of their own."""
WHOLE = 0.5
"""From which share of a file on the Hub on it is downloaded whole, and stays in the cache."""
BLOCK = 1 << 20
"""How many bytes of narrower pieces are put together at a time, in whole rows: not of wider rows."""
MAX_COMPARED = 2_000_000
"""How many pairs of chunks are compared at most: many more than a grid of chunks has to be."""
MAX_PIECES = 1_000_000
"""Into how many stretches of rows a tensor may be cut."""


class Chunk(NamedTuple):
    """The part of a tensor that a chunk has: where it starts and how large it is, in every dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class _Run(NamedTuple):
    """Pieces of a chunk that stand below each other: in rows of the tensor, one after the other.

    Attributes:
        row: The first row.
        rows: How many rows.
        column: The byte of the row at which each piece starts.
        width: How many bytes each piece has.
        file: The file that has them.
        start: The byte of the file at which the first one starts. The others follow.
    """

    row: int
    rows: int
    column: int
    width: int
    file: CheckpointFile
    start: int


@dataclass(frozen=True)
class Chunked:
    """One tensor: its runs, and how wide a row is in bytes. A row ends where no chunk ends before it."""

    info: TensorInfo
    row_bytes: int
    runs: Sequence[_Run]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[_Run, int, int]]:
        """The pieces that have bytes of a range: the run, the row in it, and the byte in the tensor."""
        for run in self.runs:
            first = max(start // self.row_bytes - run.row, 0)
            last = min(-(-stop // self.row_bytes) - run.row, run.rows)
            for row in range(first, last):
                at = (run.row + row) * self.row_bytes + run.column
                if at < stop and at + run.width > start:
                    yield run, row, at

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the bytes of the tensor from `start` on."""
        if self.row_bytes > BLOCK or all(run.rows == 1 or run.width >= DIRECT for run in self.runs):
            self._read_pieces(buffer, start)
            return
        rows = max(BLOCK // self.row_bytes, 1)
        stop, at = start + len(buffer), start
        while at < stop:
            row = at // self.row_bytes
            end = min((row + rows) * self.row_bytes, stop)
            self._read_rows(buffer[at - start : end - start], at, row, -(-end // self.row_bytes))
            at = end

    def _read_pieces(self, buffer: memoryview, start: int) -> None:
        stop = start + len(buffer)
        for run, row, at in self.pieces(start, stop):
            first, last = max(at, start), min(at + run.width, stop)
            run.file.read_into(buffer[first - start : last - start], run.start + row * run.width + first - at)

    def _read_rows(self, buffer: memoryview, start: int, first: int, last: int) -> None:
        """The same by whole rows, which are put together from the rows of chunks."""
        whole = _table(bytearray((last - first) * self.row_bytes), self.row_bytes)
        for run in self.runs:
            top, bottom = max(run.row, first), min(run.row + run.rows, last)
            if top < bottom:
                held = bytearray((bottom - top) * run.width)
                run.file.read_into(memoryview(held), run.start + (top - run.row) * run.width)
                columns = slice(run.column, run.column + run.width)
                whole[top - first : bottom - first, columns] = _table(held, run.width)
        begin = start - first * self.row_bytes
        integers_in(buffer, 8).copy_(whole.view(-1)[begin : begin + len(buffer)])


class Gathered:
    """All tensors, one after the other; a `CheckpointFile`.

    Args:
        metadata: The file that describes them.
        files: The files of chunks.
        tensors: The tensors, in the order of their bytes.
    """

    def __init__(
        self, metadata: CheckpointFile, files: Sequence[CheckpointFile], tensors: Sequence[Chunked]
    ) -> None:
        self.shown, self.is_remote = metadata.shown, any(file.is_remote for file in files)
        self._metadata, self._files, self._tensors = metadata, files, tensors
        self._starts = [tensor.info.start for tensor in tensors]

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in (self._metadata, *self._files))

    @property
    def path(self) -> Path | None:
        return self._metadata.path

    @property
    def nbytes(self) -> int:
        return self._tensors[-1].info.stop

    @property
    def version(self) -> dict[str, Any]:
        return self._metadata.version

    def _in(self, start: int, stop: int) -> Iterator[Chunked]:
        """The tensors that have bytes of a range."""
        for tensor in self._tensors[max(bisect_right(self._starts, start) - 1, 0) :]:
            if tensor.info.start >= stop:
                return
            if tensor.info.stop > start and tensor.info.nbytes:
                yield tensor

    def read_into(self, buffer: memoryview, offset: int) -> None:
        stop = offset + len(buffer)
        for tensor in self._in(offset, stop):
            first, last = max(tensor.info.start, offset), min(tensor.info.stop, stop)
            tensor.read_into(buffer[first - offset : last - offset], first - tensor.info.start)

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[CheckpointFile, int, int]]:
        """Where the runs of a range are: of every run what reaches from its first to its last piece."""
        for tensor in self._in(start, stop):
            begin = max(start - tensor.info.start, 0)
            found: dict[_Run, list[int]] = {}
            for run, row, _ in tensor.pieces(begin, min(stop, tensor.info.stop) - tensor.info.start):
                found.setdefault(run, []).append(row)
            for run, rows in found.items():
                yield run.file, run.start + rows[0] * run.width, run.start + (rows[-1] + 1) * run.width

    def prefetch(self, offset: int, nbytes: int) -> None:
        for file, start, stop in self._ranges(offset, offset + nbytes):
            file.prefetch(start, stop - start)

    def select(self, parts: Sequence[tuple[int, int]] | None) -> list[Download]:
        if not self.is_remote:
            return []
        wanted: dict[int, list[tuple[int, int]]] = {id(file): [] for file in self._files}
        for begin, end in [(0, self.nbytes)] if parts is None else parts:
            for file, start, stop in self._ranges(begin, end):
                wanted[id(file)].append((start, stop))
        downloads = []
        for file in self._files:
            ranges = sorted(wanted[id(file)])
            is_most = sum(stop - start for start, stop in ranges) > WHOLE * file.nbytes
            downloads += file.select(None if is_most else ranges)
        return downloads

    def check_unchanged(self) -> None:
        for file in (self._metadata, *self._files):
            file.check_unchanged()

    def close(self) -> None:
        for file in (self._metadata, *self._files):
            file.close()


def _table(buffer: bytearray, width: int) -> torch.Tensor:
    """The bytes of a buffer, in rows."""
    return integers_in(memoryview(buffer), 8).view(-1, width)


def chunked(
    info: TensorInfo, chunks: Sequence[Chunk], places: Sequence[tuple[CheckpointFile, int]]
) -> Chunked:
    """A tensor of chunks, each element of which is in one of them.

    Args:
        info: The tensor. `start` is its place among others.
        chunks: Its chunks, none of them empty.
        places: For each, the file and the byte at which its elements start, in order.
    """
    item_bytes, cuts = BITS[info.dtype] // 8, _cuts(info.shape, chunks)
    runs = [
        run
        for chunk, place in zip(chunks, places, strict=True)
        for run in _runs(info.shape, chunk, cuts, item_bytes, *place)
    ]
    row_bytes = math.prod(info.shape[cuts[-1] if cuts else 0 :]) * item_bytes
    return Chunked(info, row_bytes, sorted(runs, key=lambda run: (run.row, run.column)))


def problem_of(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> str:
    """What is wrong with the chunks of a tensor: each element must be in exactly one. "" if nothing is."""
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        return "the shape overflows"
    if any(not len(shape) == len(one.offsets) == len(one.sizes) for one in chunks):
        return "a chunk has other dimensions than its tensor"
    if any(at + size > whole for one in chunks for at, size, whole in zip(*one, shape, strict=True)):
        return "a chunk reaches beyond its tensor"
    if sum(math.prod(one.sizes) for one in chunks) != math.prod(shape) or _overlap(chunks):
        return "its chunks are not the whole tensor"
    cuts = _cuts(shape, chunks)
    if len(cuts) > 1 and len(chunks) * math.prod(shape[: cuts[-2]]) > MAX_PIECES:
        return "it is cut into too many pieces"
    return ""


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks have an element in common; True also where it takes too long to see that."""
    dimensions = range(len(chunks[0].offsets)) if chunks else ()
    if not dimensions:
        return len(chunks) > 1
    along = max(dimensions, key=lambda d: len({one.offsets[d] for one in chunks}))
    ordered = sorted(chunks, key=lambda one: one.offsets[along])
    left = MAX_COMPARED
    for number, one in enumerate(ordered):
        end = one.offsets[along] + one.sizes[along]
        for other in islice(ordered, number + 1, None):
            if other.offsets[along] >= end:
                break
            left -= 1
            if not left or all(a < b + d and b < a + c for a, c, b, d in zip(*one, *other, strict=True)):
                return True
    return False


def _cuts(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> list[int]:
    """The dimensions along which a tensor is cut."""
    return [d for d, size in enumerate(shape) if any(one.sizes[d] != size for one in chunks)]


def _runs(
    shape: tuple[int, ...],
    chunk: Chunk,
    cuts: Sequence[int],
    item_bytes: int,
    file: CheckpointFile,
    start: int,
) -> list[_Run]:
    """The runs of a chunk: one for all of it, where its rows follow each other in the tensor.

    A row of the tensor is what has one index in all dimensions before the last cut. Between that and the cut
    before it, chunks have all indices.
    """
    if not cuts:
        return [_Run(0, 1, 0, math.prod(shape) * item_bytes, file, start)]
    *before, cut = cuts
    below = math.prod(shape[cut + 1 :]) * item_bytes
    column, width = chunk.offsets[cut] * below, chunk.sizes[cut] * below
    if not before:
        return [_Run(0, math.prod(shape[:cut]), column, width, file, start)]
    whole = math.prod(shape[before[-1] + 1 : cut])
    rows = chunk.sizes[before[-1]] * whole
    runs = []
    ranges = [range(at, at + size) for at, size in zip(*(part[: before[-1]] for part in chunk), strict=True)]
    for index in product(*ranges):
        row = 0
        for at, size in zip((*index, chunk.offsets[before[-1]]), shape, strict=False):
            row = row * size + at
        runs.append(_Run(row * whole, rows, column, width, file, start))
        start += rows * width
    return runs
