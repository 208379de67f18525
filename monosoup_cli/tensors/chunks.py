"""Stored tensors that are read piece by piece, without computing on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, FLOATING, as_float64, bytes_of, check_finite
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch


__all__ = ["are_equal", "check_stored", "stored_chunks"]

COMPARED_ELEMENTS = 1 << 20
"""How many elements of two tensors are compared at a time."""

CHUNK_BYTES = 8 << 20
"""How many bytes of a tensor are read at a time."""


def stored_chunks(
    source: Source, name: str, worker: Worker, start: int = 0, stop: int | None = None
) -> Iterator[torch.Tensor]:
    """Read a tensor, or a part of it, piece by piece.

    Args:
        source: The checkpoint that has it.
        name: The name of the tensor.
        worker: Whose buffer is used; a piece is overwritten by the next one.
        start: The first element.
        stop: The element after the last one, None for all that follow.

    Yields:
        One-dimensional CPU tensors, in the dtype that is read where that is a floating one, else uint8.
    """
    reader = source.reader(name)
    read_dtype = reader.dtype
    dtype = read_dtype if read_dtype in FLOATING else "U8"
    last = source.tensors[name].elements if stop is None else stop
    end = last * BITS[read_dtype] // 8
    for offset in range(start * BITS[read_dtype] // 8, end, CHUNK_BYTES):
        worker.interrupt()
        count = min(CHUNK_BYTES, end - offset) * 8 // BITS[dtype]
        chunk = worker.scratch.take("kept", dtype, count)
        reader.read_into(bytes_of(chunk), offset)
        yield chunk


def check_stored(source: Source, name: str, worker: Worker) -> None:
    """Look for NaN and Inf in a floating-point tensor; do nothing if the checkpoint lacks the name.

    Raises:
        NonfiniteError: The tensor has NaN or Inf.
    """
    stored = source.tensors.get(name)
    if stored is not None and stored.dtype in FLOATING:
        for chunk in stored_chunks(source, name, worker):
            check_finite(chunk, source.path, name)


def are_equal(one: Source, other: Source, name: str, worker: Worker) -> bool:
    """Whether both checkpoints have a tensor with the same numbers, whatever its dtype.

    Tensors of codes, which are never edited, count as equal where both checkpoints have one.

    Raises:
        NonfiniteError: One of the tensors has NaN or Inf.
    """
    infos = [source.tensors[name] for source in (one, other) if name in source.tensors]
    is_of_both = len(infos) == 2
    if is_of_both and any(info.dtype not in FLOATING for info in infos):
        return True
    if not is_of_both or infos[0].shape != infos[1].shape:
        for source in (one, other):
            check_stored(source, name, worker)
        return False
    are_equal = True
    for start in range(0, infos[0].elements, COMPARED_ELEMENTS):  # all of them, to see every NaN
        worker.interrupt()
        stop = min(start + COMPARED_ELEMENTS, infos[0].elements)
        parts = [_read(source, name, start, stop) for source in (one, other)]
        are_equal = are_equal and parts[0].equal(parts[1])
    return are_equal


def _read(source: Source, name: str, start: int, stop: int) -> torch.Tensor:
    """The elements start:stop of a tensor in float64. Raises NonfiniteError for NaN and Inf."""
    reader = source.reader(name)
    item_bytes = BITS[reader.dtype] // 8
    data = bytearray((stop - start) * item_bytes)
    reader.read_into(memoryview(data), start * item_bytes)
    values = as_float64(data, reader.dtype)
    check_finite(values, source.path, name)
    return values
