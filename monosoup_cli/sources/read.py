"""Elements of a stored tensor in memory, for what is small or read in pieces of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, as_float64, check_finite

if TYPE_CHECKING:
    import torch

    from monosoup_cli.sources.source import Source

__all__ = ["read_float64", "read_stored"]


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
