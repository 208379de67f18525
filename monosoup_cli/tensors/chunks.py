"""Stored tensors that are read piece by piece, without computing on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, FLOATING, bytes_of, check_finite
from monosoup_cli.sources.read import read_float64, read_stored
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch


__all__ = ["are_equal", "check_stored", "stored_chunks"]

COMPARED_ELEMENTS = 1 << 20
"""How many elements of two tensors are compared at a time."""

CHUNK_BYTES = 1 << 20
"""How many bytes of a tensor are read at a time. With more, writers of one file wait for each other."""


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
        chunk = worker.channel.host.take("kept", dtype, count)
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


def are_equal(one: Source, other: Source, name: str, worker: Worker, *, is_checked: bool) -> bool:
    """Whether both checkpoints have a tensor with the same numbers, in whatever floating-point dtype.

    Tensors of codes, which are never edited, are equal where their dtypes, shapes and bytes are. NaN equals
    NaN.

    Raises:
        NonfiniteError: One of the tensors has NaN or Inf, and `is_checked` is True.
    """
    infos = [source.tensors[name] for source in (one, other) if name in source.tensors]
    are_floating = all(info.dtype in FLOATING for info in infos)
    is_alike = are_floating or infos[0].dtype == infos[-1].dtype
    if len(infos) < 2 or infos[0].shape != infos[1].shape or not is_alike:
        for source in (one, other) if is_checked else ():
            check_stored(source, name, worker)
        return False
    are_equal = True
    for start in range(0, infos[0].elements, COMPARED_ELEMENTS):  # all of them, to see every NaN
        worker.interrupt()
        stop = min(start + COMPARED_ELEMENTS, infos[0].elements)
        if are_floating:
            before, after = (
                read_float64(source, name, start, stop, is_checked=is_checked) for source in (one, other)
            )
            is_same = (before == after) | (before.isnan() & after.isnan())
            are_equal = are_equal and bool(is_same.all())
        else:
            codes = [read_stored(source, name, start, stop) for source in (one, other)]
            are_equal = are_equal and codes[0] == codes[1]
    return are_equal
