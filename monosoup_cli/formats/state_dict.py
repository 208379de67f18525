"""Read PyTorch state dicts in zip files at offsets, like safetensors files.

`torch.save` stores every storage uncompressed in its own record, so a tensor has a fixed place in the file.
Only the pickle is parsed. The archive and the pickle are checked before torch sees them: nothing is inflated,
and a pickle that would take time or memory out of proportion to its size is refused. torch then parses the
pickle with `weights_only=True`, without the bytes of the tensors.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.archive import RESAVE, SAVE_ALONE, Record, quote, read_records, start_of
from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.header import (
    BITS,
    FLOATING,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    Header,
    TensorInfo,
)
from monosoup_cli.formats.pickles import check_pickle
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.strided import Bytes, Strided

if TYPE_CHECKING:
    import torch

__all__ = ["StateDict", "StateDicts", "read_state_dict"]

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "complex64": "C64",
    "int64": "I64",
    "uint64": "U64",
    **{name: dtype for dtype, name in FLOATING.items()},
}
"""torch's dtypes of whole bytes, mapped to the names that safetensors has for them."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""The keys under which training scripts keep the state dict, next to the optimizer and so on."""
MAX_WRAPPED = 2

AT_ONCE = 8
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of `torch.save` started before they were zip files: a pickled number."""
STORAGE = re.compile(r"data/([0-9]{1,9})")


@dataclass(frozen=True)
class StateDict:
    """The tensors of a state dict.

    Attributes:
        tensors: The tensors by name, in the order of the state dict. `start` is a byte offset in the
            file, and `stop - start` the number of bytes of the elements, also for strided tensors.
        strided: The tensors whose elements are not stored in order.
        tied: The names of tensors that share all elements with an earlier one, mapped to its name.
        pickle: Everything in the file except the elements and their offsets.
        left_out: The names of what is saved next to the state dict.
    """

    tensors: Mapping[str, TensorInfo]
    strided: Mapping[str, Strided]
    tied: Mapping[str, str]
    pickle: bytes
    left_out: tuple[str, ...]


class StateDicts:
    """The format of `torch.save`."""

    suffixes: ClassVar[Sequence[str]] = (".bin", ".pt", ".pth", ".ckpt")
    stems: ClassVar[Mapping[str, Sequence[str]]] = {".bin": ("pytorch_model", "diffusion_pytorch_model")}

    def open(self, name: str, file: CheckpointFile) -> Shard:
        """Parse the pickle, without the tensors' bytes."""
        state = read_state_dict(file)
        header = Header(state.pickle, state.tensors, {"format": "pt"})
        return Shard(name, file, header, 0, False, state.strided, state.tied, state.left_out)


def read_state_dict(file: Bytes) -> StateDict:
    """Read the state dict in a file of `torch.save`, without running any code from it.

    Raises:
        CheckpointError: The file is malformed or holds anything but tensors and plain values.
    """
    _check_magic(file)
    records = read_records(file)
    pickle = file.read(records["data.pkl"].nbytes, start_of(file, records["data.pkl"]))
    check_pickle(pickle, file.shown)
    content, keys = _parse(pickle, records, file.shown)
    state, left_out = _unwrap(content, file.shown)
    starts = _starts(file, keys, state.values())
    tensors: dict[str, TensorInfo] = {}
    strided: dict[str, Strided] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        try:
            strides, bits = _layout(name, tensor)
            storage = tensor.untyped_storage()
            key = getattr(storage, "_checkpoint_offset", None)
            if key not in keys:
                raise CheckpointError("its elements are not in the file")
            record = keys[key]
            offset, span = _span(tensor, strides, bits // 8, storage.nbytes(), record)
        except CheckpointError as error:
            error.path, error.tensor = file.shown, name
            raise
        start = starts[key] + offset
        dtype, shape = DTYPES[_torch_name(tensor.dtype)], tuple(tensor.shape)
        tensors[name] = TensorInfo(name, dtype, shape, start, start + math.prod(shape) * bits // 8)
        if not tensor.is_contiguous():
            strided[name] = Strided(strides, span)
        if span:
            same = first.setdefault((start, dtype, shape, strides), name)
            if same != name:
                tied[name] = same
    return StateDict(tensors, strided, tied, pickle, left_out)


def _starts(file: Bytes, keys: Mapping[int, Record], tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Find where the records of these tensors start, by key. Several at once: the file may be remote."""
    wanted = {getattr(tensor.untyped_storage(), "_checkpoint_offset", None) for tensor in tensors}
    used = [key for key in keys if key in wanted]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(used, pool.map(lambda key: start_of(file, keys[key]), used), strict=True))


def _check_magic(file: Bytes) -> None:
    """Refuse a file that is not a zip file, and say what to do about it."""
    start = file.read(min(file.nbytes, 512))
    if start.startswith(b"PK\x03\x04"):
        return
    problem, hint = "not a PyTorch file", None
    if not start:
        problem = "the file is empty"
    elif start.startswith(b"version https://git-lfs"):
        problem, hint = "a git-lfs pointer, not the file itself", "run `git lfs pull`"
    elif start.startswith(LEGACY):
        problem, hint = "in torch's legacy format, which has to be read as a whole", RESAVE
    elif start[257:262] == b"ustar":
        problem, hint = "a tar archive, as torch wrote before 2018", SAVE_ALONE
    elif start.startswith(b"\x80"):
        problem, hint = "a pickle that torch.save did not write", SAVE_ALONE
    elif start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= file.nbytes - 8:
        problem, hint = "a safetensors file under another name", "rename it to end in .safetensors"
    raise CheckpointError(problem, path=file.shown, hint=hint)


def _parse(pickle: bytes, records: Mapping[str, Record], shown: str) -> tuple[Any, dict[int, Record]]:
    """Have torch parse the pickle, with storages that have no bytes.

    torch gets an archive of the same pickle and empty records, so it cannot read anything else.

    Returns:
        The content, and the record of each `_checkpoint_offset` of a storage.
    """
    import torch

    archive, keys = io.BytesIO(), {}
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", pickle)
        made.writestr("archive/version", "3\n")
        for name, record in records.items():
            if STORAGE.fullmatch(name):
                made.writestr(f"archive/{name}", b"")
                keys[archive.tell()] = record
    archive.seek(0)
    try:
        with warnings.catch_warnings(), _without_bytes():
            warnings.simplefilter("ignore")
            return torch.load(archive, map_location="meta", weights_only=True), keys
    except Exception as error:  # torch's advice on what it refuses is to trust the file: not repeated
        raise CheckpointError(
            f"torch cannot read its pickle ({type(error).__name__})", path=shown, hint=SAVE_ALONE
        ) from None


def _without_bytes() -> Any:
    """Return a context in which torch reads no storages. Since torch 2.11 the meta device is enough."""
    import torch

    if hasattr(torch.serialization, "_is_meta_location"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _unwrap(content: Any, shown: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Find the dict of tensors in what was saved, and the names of what is saved next to it."""
    import torch

    def refuse(problem: str, **facts: Any) -> CheckpointError:
        return CheckpointError(problem, path=shown, **facts)

    within, left_out = "", list[str]()
    for wrapped in range(MAX_WRAPPED + 1):
        if not isinstance(content, dict):
            raise refuse("not a state dict", found=f"a {type(content).__name__}", hint=SAVE_ALONE)
        for name in content:
            if not isinstance(name, str):
                raise refuse("a name in the state dict is not text", found=quote(name))
            if not _is_unicode(name):
                raise refuse(f"the name {quote(name)} is not valid Unicode")
        others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
        if not others:
            if not content:
                raise refuse("the state dict is empty")
            if len(content) > MAX_TENSORS:
                raise refuse("too many tensors", expected=f"at most {MAX_TENSORS:,}")
            return content, tuple(left_out)
        inner = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
        if len(inner) > 1:
            raise refuse(f"holds several state dicts: {', '.join(inner)}", hint=SAVE_ALONE)
        if not inner or wrapped == MAX_WRAPPED:
            under = [name for name, value in content.items() if _holds_tensors(value)]
            if under:
                inside = crop("".join(f"[{key!r}]" for key in [*within.split(".")[:-1], under[0]]))
                raise refuse(
                    f"its tensors are under {crop(', '.join(map(repr, under[:4])))}",
                    hint=f"save them alone: torch.save(torch.load(OLD, weights_only=True){inside}, NEW)",
                )
            raise refuse(
                f"{quote(within + others[0])} is not a tensor",
                found=f"a {type(content[others[0]]).__name__}",
                hint=SAVE_ALONE,
            )
        left_out += [within + name for name in content if name != inner[0]]
        content, within = content[inner[0]], f"{within}{inner[0]}."
    raise AssertionError


def _holds_tensors(value: object) -> bool:
    import torch

    return isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values())


def _layout(name: str, tensor: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """Return the strides of a dense tensor, 0 where the size is 1, and the bits of an element.

    Raises:
        CheckpointError: safetensors cannot hold the tensor.
    """
    import torch

    dtype, shape = _torch_name(tensor.dtype), tuple(tensor.shape)
    if name in ("", "__metadata__"):
        raise CheckpointError("a name that safetensors does not allow")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError("not a dense tensor")
    if dtype not in DTYPES:
        raise CheckpointError("a dtype that safetensors does not have", found=crop(dtype))
    if tensor.is_conj() or tensor.is_neg():
        raise CheckpointError(
            "a view that conjugates or negates", hint="save what .resolve_conj().resolve_neg() returns"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=len(shape))
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CheckpointError("the shape overflows", found=crop(str(shape)))
    strides = (stride if size > 1 else 0 for size, stride in zip(shape, tensor.stride(), strict=True))
    return tuple(strides), BITS[DTYPES[dtype]]


def _span(
    tensor: torch.Tensor, strides: tuple[int, ...], itemsize: int, storage_bytes: int, record: Record
) -> tuple[int, int]:
    """Return where in its storage the tensor starts, and how far it reaches, both in bytes.

    Raises:
        CheckpointError: Elements overlap, or are outside the storage.
    """
    offset, span = int(tensor.storage_offset()) * itemsize, 0
    if 0 not in tensor.shape:
        reach = 0
        for stride, size in sorted(zip(strides, tensor.shape, strict=True)):
            if size > 1:
                if stride <= reach:
                    raise CheckpointError("a view whose elements overlap", found=f"strides {strides}")
                reach += (size - 1) * stride
        span = (reach + 1) * itemsize
        if offset < 0 or offset + span > record.nbytes:
            raise CheckpointError(
                "it reaches beyond its storage",
                expected=f"at most {record.nbytes:,} bytes",
                found=f"{offset + span:,}",
            )
    if storage_bytes != record.nbytes:
        raise CheckpointError(
            "its storage and its record differ in size",
            expected=f"{storage_bytes:,} bytes",
            found=f"{record.nbytes:,}",
        )
    return (offset, span) if span else (0, 0)


def _torch_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
