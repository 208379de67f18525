"""Dtypes of stored tensors: the names in the file format, torch's, and every cast between the two."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import TYPE_CHECKING

from monosoup_cli.errors import NonfiniteError
from monosoup_cli.formats.header import BITS, FLOATING

if TYPE_CHECKING:
    import torch

__all__ = ["BITS", "FLOATING", "bytes_of", "check_finite", "check_overflow", "count_nonfinite", "torch_dtype"]


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a stored one; uint8 for dtypes that are copied as bytes."""
    import torch

    converted: torch.dtype = getattr(torch, FLOATING.get(dtype, "uint8"))
    return converted


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, which can be read and written."""
    return _memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())


@lru_cache(maxsize=256)
def _memory(address: int, nbytes: int) -> memoryview:
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """Count the elements that are NaN or Inf, in one cheap pass where there are none."""
    import torch

    if tensor.numel() == 0:
        return 0
    overflows_in_sums = tensor.dtype == torch.float16
    witnesses = torch.aminmax(tensor) if overflows_in_sums else (tensor.sum(),)
    if all(math.isfinite(witness) for witness in witnesses):
        return 0
    return int((~tensor.isfinite()).sum())


def check_finite(tensor: torch.Tensor, path: str, name: str) -> None:
    """Look for NaN and Inf in a stored tensor, or in a part of it.

    Args:
        tensor: The elements.
        path: The checkpoint, for the message.
        name: The name of the tensor.

    Raises:
        NonfiniteError: An element is NaN or Inf.
    """
    if count := count_nonfinite(tensor):
        raise NonfiniteError(
            f"holds NaN or Inf ({count:,} or more elements)",
            path=path,
            tensor=name,
            hint="--on-nonfinite keep leaves such tensors as fine-tuned",
        )


def check_overflow(part: torch.Tensor, dtype: str, tensor: str) -> None:
    """Check that a result is still finite after the cast to its stored dtype.

    Args:
        part: The elements after the cast.
        dtype: The stored dtype.
        tensor: The name of the output tensor.

    Raises:
        NonfiniteError: An element overflowed.
    """
    if count := count_nonfinite(part):
        raise NonfiniteError(
            f"the result overflows {dtype} in {count:,} elements",
            tensor=tensor,
            hint="--dtype float32 or bfloat16 can represent it",
        )
