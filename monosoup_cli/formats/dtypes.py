"""Dtypes of stored tensors: the words of the format, torch's, and every cast between the two."""

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
    """The torch dtype of a stored one; uint8 for those that are moved as bytes."""
    import torch

    found: torch.dtype = getattr(torch, FLOATING.get(dtype, "uint8"))
    return found


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, to be read from or written to."""
    return _memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())


@lru_cache(maxsize=256)
def _memory(address: int, nbytes: int) -> memoryview:
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many elements are NaN or Inf; one cheap pass where there are none."""
    import torch

    if tensor.numel() == 0:
        return 0
    overflows_in_sums = tensor.dtype == torch.float16
    witnesses = torch.aminmax(tensor) if overflows_in_sums else (tensor.sum(),)
    if all(math.isfinite(witness) for witness in witnesses):
        return 0
    return int((~tensor.isfinite()).sum())


def check_finite(tensor: torch.Tensor, path: str, name: str) -> None:
    """Raise NonfiniteError where a (part of a) tensor of the file at `path` has NaN or Inf."""
    if count := count_nonfinite(tensor):
        raise NonfiniteError(
            f"holds NaN or Inf ({count:,} or more elements)",
            path=path,
            tensor=name,
            hint="--on-nonfinite keep leaves such tensors as fine-tuned",
        )


def check_overflow(part: torch.Tensor, dtype: str, tensor: str) -> None:
    """Raise NonfiniteError where a result that was finite in float64 is not so in its stored dtype."""
    if count := count_nonfinite(part):
        raise NonfiniteError(
            f"the result overflows {dtype} in {count:,} elements",
            tensor=tensor,
            hint="--dtype float32 or bfloat16 has room for it",
        )
