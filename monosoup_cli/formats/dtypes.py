"""The dtypes of safetensors, their torch dtypes, and every cast between them.

Tensors are upcast to float64 before anything is computed, and results are cast once, when they are stored.
(torch casts to 16 bits by way of float32.)
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from monosoup_cli.errors import NonfiniteError, ResultOverflowError
from monosoup_cli.formats.header import BITS, FLOATING

if TYPE_CHECKING:
    import torch

__all__ = [
    "BITS",
    "FLOATING",
    "NUMBERS",
    "as_bytes",
    "as_float32",
    "as_float64",
    "bytes_of",
    "cast",
    "check_finite",
    "check_overflow",
    "count_different",
    "count_nonfinite",
    "empty",
    "finfo",
    "float64_in",
    "integers_in",
    "looked_up",
    "mark_nonfinite",
    "number_in",
    "overflow_error",
    "torch_dtype",
]

NUMBERS = {**FLOATING, "I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64"}
"""The dtypes that a single number can have, mapped to torch's names."""

SMALL_FLOATS = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""The floats of eight bits, mapped to torch's names."""

INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""torch's integers by their bits."""


def torch_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype; uint8 for those that are only copied as bytes."""
    import torch

    torch_one: torch.dtype = getattr(torch, FLOATING.get(dtype, "uint8"))
    return torch_one


def finfo(dtype: str) -> torch.finfo:
    """Return torch's limits of a floating-point dtype of safetensors."""
    import torch

    return torch.finfo(torch_dtype(dtype))


def empty(shape: tuple[int, ...], dtype: str, device: torch.device) -> torch.Tensor:
    """Allocate an uninitialized tensor of a safetensors dtype."""
    import torch

    return torch.empty(shape, dtype=torch_dtype(dtype), device=device)


def float64_in(buffer: memoryview) -> torch.Tensor:
    """View the memory of a buffer as a float64 tensor."""
    import torch

    return torch.frombuffer(buffer, dtype=torch.float64)


def integers_in(buffer: memoryview, bits: int) -> torch.Tensor:
    """View the memory of a buffer as integers of some bits, to copy elements of any dtype of that width."""
    import torch

    return torch.frombuffer(buffer, dtype=getattr(torch, INTEGERS[bits]))


def number_in(data: bytearray, dtype: str) -> float:
    """Read the one number in these bytes, of a dtype in NUMBERS."""
    import torch

    return float(torch.frombuffer(data, dtype=getattr(torch, NUMBERS[dtype])).item())


def as_float64(data: bytearray, dtype: str) -> torch.Tensor:
    """Upcast the elements in these bytes to a flat float64 tensor."""
    import torch

    if not data:
        return torch.empty(0, dtype=torch.float64)
    return torch.frombuffer(data, dtype=torch_dtype(dtype)).to(torch.float64)


def as_float32(data: bytearray, dtype: str) -> torch.Tensor:
    """Widen the elements in these bytes to a flat float32 tensor: floats of at most 32 bits, or integers.

    Integers are exact up to 24 bits.
    """
    import torch

    if not data:
        return torch.empty(0, dtype=torch.float32)
    if dtype in SMALL_FLOATS:  # by a table, which is five times as fast as torch's cast
        return looked_up(torch.frombuffer(data, dtype=torch.uint8), _small_floats(dtype))
    return torch.frombuffer(data, dtype=getattr(torch, NUMBERS[dtype])).float()


@cache
def _small_floats(dtype: str) -> torch.Tensor:
    """Every float of eight bits, by its bits, in float32."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(getattr(torch, SMALL_FLOATS[dtype])).float()


def looked_up(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The rows of a table of float32 that bytes are the numbers of: (*codes, *row)."""
    import torch

    rows = table.view(len(table), -1)
    word = {2: torch.float64, 4: torch.complex128}.get(rows.shape[1], torch.float32)
    if rows.shape[1] in (1, 2, 4):  # words are copied, seven times as fast as rows
        rows = rows.view(word).view(-1)
    found = rows.index_select(0, codes.reshape(-1).int())
    return found.view(torch.float32).view(*codes.shape, *table.shape[1:])


def cast(part: torch.Tensor, dtype: str, tensor: str) -> torch.Tensor:
    """Cast a result to the dtype in which it is stored, contiguous.

    Raises:
        ResultOverflowError: A finite element does not fit the dtype.
    """
    stored = part.to(torch_dtype(dtype)).contiguous()
    check_overflow(stored, dtype, tensor)
    return stored


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View the elements of a contiguous tensor, on whatever device, as uint8."""
    import torch

    return tensor.view(-1).view(torch.uint8)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor, to read from or write to."""
    return _memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())


@lru_cache(maxsize=256)
def _memory(address: int, nbytes: int) -> memoryview:
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """Count the elements that are NaN or Inf, in one cheap pass if there are none."""
    import torch

    if tensor.numel() == 0:
        return 0
    overflows_in_sums = tensor.dtype == torch.float16
    witnesses = torch.aminmax(tensor) if overflows_in_sums else (tensor.sum(),)
    if all(math.isfinite(witness) for witness in witnesses):
        return 0
    return int(mark_nonfinite(tensor).sum())


def count_different(data: bytearray, other: bytearray, elements: int) -> int:
    """In how many of so many elements the bytes of two tensors differ; of codes below a byte, in how many
    bytes."""
    import torch

    if data == other:
        return 0
    size = max(len(data) // elements, 1)
    rows = [torch.frombuffer(one, dtype=torch.uint8).view(-1, size) for one in (data, other)]
    return int((rows[0] != rows[1]).any(1).sum())


def mark_nonfinite(tensor: torch.Tensor) -> torch.Tensor:
    """Return a bool tensor of the same shape, True where an element is NaN or Inf."""
    return ~tensor.isfinite()


def check_finite(tensor: torch.Tensor, path: str, name: str) -> None:
    """Raise NonfiniteError if a tensor of the checkpoint at `path`, or a part of it, has NaN or Inf."""
    if count := count_nonfinite(tensor):
        raise NonfiniteError(
            f"holds NaN or Inf ({count:,} or more elements)",
            path=path,
            tensor=name,
            hint="--on-nonfinite keep leaves such tensors as they are, and --exclude leaves those that it"
            " names",
        )


def check_overflow(part: torch.Tensor, dtype: str, tensor: str) -> None:
    """Raise ResultOverflowError if a result is finite in float64 but not in its stored dtype."""
    if count := count_nonfinite(part):
        raise overflow_error(count, dtype, tensor)


def overflow_error(count: int, dtype: str, tensor: str) -> ResultOverflowError:
    """Make the error for a result of which so many elements do not fit the stored dtype."""
    wider = "--dtype float32 or bfloat16 can represent it"
    as_it_was = "--dtype keep and --exclude leave the tensor as fine-tuned"
    return ResultOverflowError(
        f"the result overflows {dtype} in {count:,} elements",
        tensor=tensor,
        hint=wider if dtype == "F16" else as_it_was,
    )
