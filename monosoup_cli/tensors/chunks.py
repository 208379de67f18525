"""Stored tensors that are read piece by piece, without computing on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, FLOATING, bytes_of, check_finite
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

    from monosoup_cli.sources.checkpoint import Checkpoint as Source

__all__ = ["check_stored", "stored_chunks"]

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
    read_dtype = source.read_dtype(name)
    dtype = read_dtype if read_dtype in FLOATING else "U8"
    last = source.tensors[name].elements if stop is None else stop
    end = last * BITS[read_dtype] // 8
    for offset in range(start * BITS[read_dtype] // 8, end, CHUNK_BYTES):
        worker.interrupt()
        count = min(CHUNK_BYTES, end - offset) * 8 // BITS[dtype]
        chunk = worker.scratch.take("kept", dtype, count)
        source.read_into(name, bytes_of(chunk), offset)
        yield chunk


def check_stored(source: Source, name: str, worker: Worker) -> None:
    """Look for NaN and Inf in a floating tensor; do nothing where the checkpoint has no tensor of that name.

    Raises:
        NonfiniteError: The tensor has NaN or Inf.
    """
    stored = source.tensors.get(name)
    if stored is not None and stored.dtype in FLOATING:
        for chunk in stored_chunks(source, name, worker):
            check_finite(chunk, source.source, name)
