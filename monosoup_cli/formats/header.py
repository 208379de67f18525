"""Parse and build the headers of safetensors files.

A file is a little-endian u64 N, N bytes of JSON, then the bytes of the tensors. This parser is stricter than
the reference reader (0.8): a name may appear only once, sizes may not overflow, and only spaces may follow
the JSON. So every reader understands a file that passes in the same way. Fields that the format does not have
are allowed where the reference reader can parse them, since headers are copied as they stand.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakValueDictionary

from monosoup_cli.errors import CheckpointError
from monosoup_cli.values import unique

__all__ = ["AGAIN", "BITS", "FLOATING", "Header", "TensorInfo", "build_header", "parse_header", "parse_json"]

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element of every dtype of the format."""

FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The dtypes that are edited, mapped to torch's names. Others are decoded to one of these (encodings/), or
copied as bytes."""

AGAIN = "download or copy it again"
"""What helps with a damaged file."""
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**63 - 1
MAX_JSON_PARTS = 8 * MAX_TENSORS
MAX_NUMBER = 1.797693134862315e308
"""The largest number in JSON. Readers in Rust round up to infinity shortly before the largest float64."""
MAX_DEPTH = 127
"""How deep objects and lists may be nested. Readers in Rust go no deeper."""
FIELDS = {"dtype", "shape", "data_offsets"}
"""What the entry of every tensor has."""
INTEGERS = frozenset([int])
"""The type of sizes and offsets: bool, which is an integer to Python, is none in JSON."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_Kind = tuple[str, tuple[int, ...]]
"""A dtype and a shape."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. `start` and `stop` are byte offsets from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A parsed header. `raw` is N and the JSON, byte for byte as in the file."""

    raw: bytes
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] | None

    @property
    def data_bytes(self) -> int:
        return max((tensor.stop for tensor in self.tensors.values()), default=0)


def parse_json(text: bytes, path: str, what: str, *, is_strict: bool = True, takes_nan: bool = False) -> Any:
    """Parse JSON whose text is all Unicode.

    Args:
        text: The JSON.
        path: The file that errors name.
        what: What errors call the JSON: "header", "index".
        is_strict: Whether a key that repeats, NaN, Infinity and numbers beyond float64 are refused, and -0 is
            no integer. Otherwise they are read as Python's own parser reads them, and with it the
            libraries that write such files.
        takes_nan: Whether NaN and Infinity are read, even if all else is strict.

    Raises:
        CheckpointError: The JSON is invalid, or would take a large multiple of its size in memory.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    if sum(text.count(mark) for mark in (b"{", b"[", b":")) > MAX_JSON_PARTS:
        raise CheckpointError(f"the {what} has too many parts", path=path)
    strict: dict[str, Any] = {
        "object_pairs_hook": unique(lambda words: CheckpointError(f"the {what} {words}", path=path)),
        "parse_int": _integer,
        "parse_float": _finite,
        **({} if takes_nan else {"parse_constant": refuse}),
    }
    rules = strict if is_strict else {}
    try:
        found = json.loads(text.decode("utf-8"), **rules)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # half a character cannot be written
    except UnicodeEncodeError:
        raise CheckpointError(f"the {what} is not valid Unicode", path=path) from None
    except UnicodeDecodeError:
        raise CheckpointError(f"the {what} is not valid UTF-8", path=path) from None
    except RecursionError:
        raise CheckpointError(f"the {what} is nested too deeply", path=path) from None
    except ValueError as error:
        raise CheckpointError(f"the {what} is not valid JSON ({error})", path=path) from None
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if abs(number) > MAX_NUMBER:
        raise ValueError("a number out of range")
    return number


def _integer(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    if len(digits) > sys.float_info.max_10_exp:
        _finite(digits)
    return int(digits)


def _is_deep(values: list[Any], limit: int) -> bool:
    """Return whether values have more than `limit` levels of objects and lists."""
    for _ in range(limit + 1):
        nested = [value for value in values if isinstance(value, dict | list)]
        if not nested:
            return False
        values = [
            inner for value in nested for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return True


def parse_header(raw: bytes, file_bytes: int, path: str) -> Header:
    """Parse a header.

    Args:
        raw: The start of the file: N and the JSON.
        file_bytes: The size of the file.
        path: The file that errors name.

    Raises:
        CheckpointError: The header is invalid, or does not fit the size of the file.
    """
    known = _in_use.get(raw)
    if known is not None and len(raw) + known.data_bytes == file_bytes:
        return known
    text = raw[8:]
    if not text.startswith(b"{"):
        raise CheckpointError("not a safetensors file: its header does not start with '{'", path=path)
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise CheckpointError("too many tensors", path=path, expected=f"at most {MAX_TENSORS:,}")
    entries = parse_json(text, path, "header")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise CheckpointError("__metadata__ must map names to strings", path=path)
    kinds: dict[_Kind, tuple[_Kind, int]] = {}
    found = [_tensor(name, entry, path, kinds) for name, entry in entries.items()]
    tensors = {tensor.name: tensor for tensor in found}
    data_bytes, end = file_bytes - len(raw), 0
    for tensor in sorted(found, key=attrgetter("start", "stop")):
        if tensor.start != end:
            raise CheckpointError(
                "data_offsets leave a hole or overlap",
                path=path,
                tensor=tensor.name,
                expected=f"to start at {end}",
                found=tensor.start,
            )
        end = tensor.stop
    if end != data_bytes:
        raise CheckpointError(
            "the file is truncated" if end > data_bytes else "bytes follow the last tensor",
            path=path,
            expected=f"{len(raw) + end:,} bytes",
            found=f"{file_bytes:,}",
            hint=AGAIN if end > data_bytes else None,
        )
    header = _in_use[raw] = Header(raw, tensors, metadata)
    return header


_in_use: WeakValueDictionary[bytes, Header] = WeakValueDictionary()
"""Headers by their bytes: those of a base and of its fine-tunes are often the same."""


def _tensor(name: str, entry: Any, path: str, kinds: dict[_Kind, tuple[_Kind, int]]) -> TensorInfo:
    """Read an entry. `kinds` has the dtypes and shapes that are sound, with their size in bits."""

    def refuse(problem: str, expected: object = None, found: object = None) -> CheckpointError:
        return CheckpointError(problem, path=path, tensor=name, expected=expected, found=found)

    if not isinstance(entry, dict) or not entry.keys() >= FIELDS:
        raise refuse("the entry needs dtype, shape and data_offsets")
    if len(entry) > 3 and _is_deep([entry], MAX_DEPTH - 1):  # the entry is inside of the header
        raise refuse("the entry is nested too deeply")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refuse("unknown dtype", found=repr(dtype))
    if not (isinstance(shape, list) and INTEGERS.issuperset(map(type, shape))):
        raise refuse("the shape must be a list of sizes", found=repr(shape)[:80])
    if len(shape) > MAX_DIMENSIONS:
        raise refuse("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=len(shape))
    kind = dtype, tuple(shape)
    if kind not in kinds:
        kinds[kind] = kind, _bits(dtype, shape, refuse)
    (dtype, sizes), bits = kinds[kind]
    if not (isinstance(offsets, list) and len(offsets) == 2 and INTEGERS.issuperset(map(type, offsets))):
        raise refuse("data_offsets must be two ascending integers", found=repr(offsets)[:80])
    start, stop = offsets
    if not 0 <= start <= stop:
        raise refuse("data_offsets must be two ascending integers", found=repr(offsets)[:80])
    if bits != 8 * (stop - start):
        raise refuse(
            f"the size does not fit the shape {shape} of {dtype}",
            expected=f"{-(-bits // 8):,} bytes",
            found=f"{stop - start:,}",
        )
    return TensorInfo(name, dtype, sizes, start, stop)


def _bits(dtype: str, shape: list[int], refuse: Callable[..., CheckpointError]) -> int:
    """The size of a tensor in bits."""
    if min(shape, default=0) < 0:
        raise refuse("the shape must be a list of sizes", found=repr(shape)[:80])
    # zero sizes are skipped: readers multiply from the left, and overflow before they come to a zero
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise refuse("the shape overflows", found=shape)
    return math.prod(shape) * BITS[dtype]


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> Header:
    """Build the header of a new file.

    Args:
        tensors: (name, dtype, shape) of every tensor, in the order of their bytes.
        metadata: The `__metadata__`; None for none.
    """
    placed, end = {}, 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * BITS[dtype] // 8
        placed[name] = TensorInfo(name, dtype, shape, end, end + nbytes)
        end += nbytes
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for tensor in placed.values():
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.stop],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned, as the reference writer has it
    return Header(struct.pack("<Q", len(text)) + text, placed, metadata)
