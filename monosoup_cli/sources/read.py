"""Elements of a stored tensor in memory, for what is small or read in pieces of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, as_float64, bytes_of, check_finite, torch_dtype

if TYPE_CHECKING:
    import torch

    from monosoup_cli.sources.source import Reader, Source

__all__ = ["RangesInFloat64", "read_float64", "read_stored", "read_together"]


def read_stored(source: Source, name: str, start: int, stop: int) -> bytearray:
    """Read the elements start:stop of a tensor as they are stored."""
    reader = source.reader(name)
    first, last = (-(-element * BITS[reader.dtype] // 8) for element in (start, stop))
    data = bytearray(last - first)
    if data:
        reader.read_into(memoryview(data), first)
    return data


def read_float64(
    source: Source, name: str, start: int = 0, stop: int | None = None, *, is_checked: bool = True
) -> torch.Tensor:
    """Read a floating-point tensor in float64: whole in its shape, or the elements start:stop flat.

    Raises:
        NonfiniteError: An element is NaN or Inf, and `is_checked` is True.
    """
    info = source.tensors[name]
    data = read_stored(source, name, start, info.elements if stop is None else stop)
    values = as_float64(data, source.reader(name).dtype)
    if is_checked:
        check_finite(values, source.path, name)
    return values if stop is not None else values.view(info.shape)


class RangesInFloat64:
    """Reads ranges of one tensor in float64, through memory that the next range reuses, because fresh memory
    for each would cost more than the arithmetic on it. NaN and Inf are not looked for.

    Args:
        source: The checkpoint.
        name: The name of a floating-point tensor.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._reader = source.reader(name)
        self._item_bytes = BITS[self._reader.dtype] // 8
        self._stored: torch.Tensor | None = None

    def __call__(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Fill a flat float64 tensor with the elements from `start` on, and return it."""
        import torch

        size = len(values)
        if self._stored is None or len(self._stored) < size:
            self._stored = torch.empty(size, dtype=torch_dtype(self._reader.dtype))
        stored = self._stored[:size]
        self._reader.read_into(bytes_of(stored), start * self._item_bytes)
        return values.copy_(stored)


def read_together(readers: Sequence[Reader], buffer: memoryview, nbytes: int) -> None:
    """Read whole tensors of one size, one after the other; those that are neighbours in a file in one call.

    Args:
        readers: A reader for each tensor.
        buffer: Is filled.
        nbytes: The size of one tensor.
    """
    first = 0
    while first < len(readers):
        one, stop = readers[first], first + 1
        if one.place is not None:
            file, start = one.place
            while stop < len(readers) and readers[stop].place == (file, start + (stop - first) * nbytes):
                stop += 1
        one.read_into(buffer[first * nbytes : stop * nbytes], 0)
        first = stop
