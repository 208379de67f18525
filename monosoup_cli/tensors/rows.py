"""Tensors that differ between inputs only in the number of rows, such as the embeddings of new tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from monosoup_cli.formats.header import TensorInfo

__all__ = ["are_grids", "crop", "overlap"]


def overlap(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of different shapes differ only in the number of rows, and rows correspond."""
    is_alike = len(one.shape) == len(other.shape) and one.shape[1:] == other.shape[1:]
    return is_alike and not are_grids(one, other)


def are_grids(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether rows are positions in square images of two sizes, with or without one for the class."""
    counts = [tensor.shape[0] for tensor in (one, other) if tensor.shape]
    return "pos" in one.name and any(
        all(count > extra and math.isqrt(count - extra) ** 2 == count - extra for count in counts)
        for extra in (0, 1)
    )


def crop(headers: Mapping[str, TensorInfo], rows: Mapping[str, int]) -> Mapping[str, TensorInfo]:
    """The headers as if the named tensors had only so many rows."""
    if not rows:
        return headers
    return {
        name: replace(tensor, shape=(rows[name], *tensor.shape[1:])) if name in rows else tensor
        for name, tensor in headers.items()
    }
