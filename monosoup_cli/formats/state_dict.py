"""PyTorch state dicts in zip files, read at offsets as safetensors files are: only the pickle is parsed.

`torch.save` stores every storage uncompressed in a record of its own, so a tensor has a fixed place
in the file. The archive and the pickle are checked before torch sees them: nothing is inflated, and
what would take time or memory out of proportion to the pickle is refused. torch then parses the
pickle with `weights_only=True`, without the tensors' bytes.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from monosoup_cli.errors import CheckpointError, MonosoupError, cropped
from monosoup_cli.formats.header import BITS, FLOATING, MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Bytes", "StateDict", "Strided", "contiguous", "read_state_dict"]

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
"""torch's names of the dtypes that safetensors has, of whole bytes per element."""
INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""By their bits: what elements of any dtype can be moved as."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts keep the state dict, beside the optimizer and the like."""
MAX_WRAPPED = 2

MAX_PICKLE_BYTES = 100_000_000
MAX_DIRECTORY_BYTES = 16_000_000
MAX_OPERATIONS = 5_000_000
MAX_TUPLE_DEPTH = 100
AT_ONCE = 8
PIECE = 1 << 20
"""Bytes read at once even where few of them are the tensor's."""

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that `torch.save` began files with before they were zip files."""
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
STORAGE = re.compile(r"data/([0-9]{1,9})")

RESAVE = "save it again with a current torch: torch.save(torch.load(OLD, weights_only=True), NEW)"
SAVE_ALONE = "save the state dict alone: torch.save(model.state_dict(), PATH)"
REBUILT = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "collections Counter",
    "torch Size",
    "torch device",
}
"""The functions that a state dict and plain values beside it need, as a pickle names them."""
NOT_DENSE = {
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_njt": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
    "_rebuild_from_type_v2": "a tensor with attributes, or of a class of its own",
    "_rebuild_parameter_with_state": "a parameter with attributes",
}
PLAIN = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "EMPTY_DICT",
    "EMPTY_LIST",
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Bytes(Protocol):
    """A file that is read at offsets; `shown` is what messages call it."""

    shown: str

    @property
    def nbytes(self) -> int: ...

    def read(self, nbytes: int, offset: int = 0) -> bytes: ...

    def read_into(self, buffer: memoryview, offset: int) -> None: ...


@dataclass(frozen=True)
class Strided:
    """How the elements of a tensor lie that do not follow each other in row-major order.

    `strides` are in elements, 0 where the size is 1; `span` is the bytes from the first element's
    first to the last one's last, which start where the tensor starts.
    """

    strides: tuple[int, ...]
    span: int


@dataclass(frozen=True)
class StateDict:
    """The tensors of a state dict, in its order, by name.

    `start` is a byte offset in the file, and `stop - start` the bytes of the elements, also for the
    tensors in `strided`, whose elements lie in a span of their own. `tied` maps a name to the first
    name with the very same elements. `pickle` holds all of the file but elements and their places;
    `left_out` names what stood beside the state dict.
    """

    tensors: Mapping[str, TensorInfo]
    strided: Mapping[str, Strided]
    tied: Mapping[str, str]
    pickle: bytes
    left_out: tuple[str, ...]


def read_state_dict(file: Bytes) -> StateDict:
    """The state dict in a file that `torch.save` wrote; raises CheckpointError. Runs nothing from it."""
    _check_magic(file)
    records = _records(file)
    pickle = file.read(records["data.pkl"].nbytes, _start(file, records["data.pkl"]))
    _screen(pickle, file.shown)
    content, keys = _parse(pickle, records, file.shown)
    state, left_out = _unwrapped(content, file.shown)
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


def _starts(file: Bytes, keys: Mapping[int, _Record], tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Where the records of these tensors start, by key; asked for several at once, for the file may be far
    away."""
    wanted = {getattr(tensor.untyped_storage(), "_checkpoint_offset", None) for tensor in tensors}
    used = [key for key in keys if key in wanted]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(used, pool.map(lambda key: _start(file, keys[key]), used), strict=True))


def contiguous(file: Bytes, tensor: TensorInfo, strided: Strided) -> memoryview:
    """The elements in row-major order. At most twice their bytes, or a piece, are held beside them."""
    import torch

    elements = _room(tensor.nbytes)
    dtype = getattr(torch, INTEGERS[BITS[tensor.dtype]])
    _gather(file, torch.frombuffer(elements, dtype=dtype).view(tensor.shape), tensor.start, strided.strides)
    return elements


def _room(nbytes: int) -> memoryview:
    """Memory that goes back to the system when it is not used any more: a freed block of this size would
    have the allocator keep others."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def _gather(file: Bytes, into: torch.Tensor, start: int, strides: tuple[int, ...]) -> None:
    import torch

    reach = [(size - 1) * stride for size, stride in zip(into.shape, strides, strict=True)]
    span = (sum(reach) + 1) * into.element_size()
    if span <= max(2 * into.numel() * into.element_size(), PIECE):
        buffer = _room(span)
        file.read_into(buffer, start)
        into.copy_(torch.frombuffer(buffer, dtype=into.dtype).as_strided(into.shape, strides))
        return
    widest = reach.index(max(reach))
    for row in range(into.shape[widest]):
        row_start = start + row * strides[widest] * into.element_size()
        _gather(file, into.select(widest, row), row_start, strides[:widest] + strides[widest + 1 :])


def _check_magic(file: Bytes) -> None:
    """Refuse what is no zip file, with what to do about it."""
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
        problem, hint = "a tar archive, as torch wrote before 2018", "convert it to safetensors"
    elif start.startswith(b"\x80"):
        problem, hint = "a pickle that torch.save did not write", SAVE_ALONE
    elif start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= file.nbytes - 8:
        problem, hint = "a safetensors file under another name", "rename it to end in .safetensors"
    raise CheckpointError(problem, path=file.shown, hint=hint)


class _Seekable(io.RawIOBase):
    """The file as zipfile wants it."""

    def __init__(self, file: Bytes) -> None:
        self._file, self._position = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.nbytes}[whence]
        if origin + offset < 0:
            raise OSError("before the start of the file")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._file.nbytes - self._position, 0)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                "the directory of the zip archive is too large",
                path=self._file.shown,
                expected=f"at most {MAX_DIRECTORY_BYTES:,} bytes",
                found=f"{size:,}",
            )
        found = self._file.read(size, self._position)
        self._position += size
        return found


@dataclass(frozen=True)
class _Record:
    """An uncompressed record: where its header is, and where the next one's is at the earliest."""

    name: bytes
    header: int
    nbytes: int
    end: int


def _records(file: Bytes) -> dict[str, _Record]:
    """The records of the zip archive by their names, without those of its one folder."""

    def refuse(problem: str, **facts: Any) -> CheckpointError:
        return CheckpointError(problem, path=file.shown, **facts)

    try:
        with zipfile.ZipFile(_Seekable(file)) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except MonosoupError:
        raise
    except Exception:  # zipfile has no word of its own for much that can be wrong
        raise refuse("the zip archive is damaged or truncated") from None
    records: dict[str, _Record] = {}
    folders = {info.filename.partition("/")[0] for info in infos}
    if any(re.match(r"[^/]*/(code/|constants\.pkl$)", info.filename) for info in infos):
        raise refuse("a TorchScript archive, which holds code", hint=SAVE_ALONE)
    ends = [info.header_offset for info in infos[1:]] + [file.nbytes]
    for info, end in zip(infos, ends, strict=True):
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise refuse(f"the record {_quoted(name)} is compressed", hint=RESAVE)
        if info.flag_bits & 1:
            raise refuse(f"the record {_quoted(name)} is encrypted")
        if name in records:
            raise refuse(f"the zip archive has the record {_quoted(name)} twice")
        raw = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        records[name] = _Record(raw, info.header_offset, info.file_size, end)
    if "data.pkl" not in records or len(folders) != 1:
        raise refuse("a zip archive that torch.save did not write")
    if records["data.pkl"].nbytes > MAX_PICKLE_BYTES:
        raise refuse(
            "the pickle is too large",
            expected=f"at most {MAX_PICKLE_BYTES:,} bytes",
            found=f"{records['data.pkl'].nbytes:,}",
        )
    order = records.get("byteorder")
    if order is not None and file.read(min(order.nbytes, 16), _start(file, order)) != b"little":
        raise refuse("its numbers are not little-endian", hint="save it again on a little-endian machine")
    return records


def _start(file: Bytes, record: _Record) -> int:
    """Where the record's bytes start, by its own header; it has to agree with the directory."""
    size = LOCAL_HEADER.size + len(record.name)
    if 0 <= record.header <= record.end - size:
        raw = file.read(size, record.header)
        signature, _, _, method, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(raw)
        start = record.header + LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)
        agrees = signature == b"PK\x03\x04" and method == zipfile.ZIP_STORED
        if agrees and raw[LOCAL_HEADER.size :] == record.name and start + record.nbytes <= record.end:
            return start
    raise CheckpointError(
        f"the record {_quoted(record.name.decode(errors='replace'))} is not where the zip archive says",
        path=file.shown,
    )


@dataclass(eq=False)
class _Part:
    """What is known of a value while a pickle is screened.

    `weight` is how many parts it takes to hash or to copy it: its own items and, as a tuple cannot
    change, those of the tuples in it. `depth` counts tuples in tuples, `items` are a tuple's. What
    `rebuilds` may be called, and what is `rebuilt` may be given a state.
    """

    weight: int = 1
    depth: int = 0
    items: tuple[_Part, ...] | None = None
    rebuilds: bool = False
    rebuilt: bool = False

    def add(self, items: Iterable[_Part]) -> None:
        self.weight += sum(item.weight if item.items is not None else 1 for item in items)

    @property
    def cost(self) -> int:
        """Of passing it on as arguments: the lists in a tuple may have grown since it was made."""
        return self.weight + sum(item.weight for item in self.items or ())


@dataclass
class _Stack:
    parts: list[_Part] = field(default_factory=list)
    below: list[list[_Part]] = field(default_factory=list)

    def pop_mark(self) -> list[_Part]:
        found, self.parts = self.parts, self.below.pop()
        return found

    def pop(self, count: int) -> list[_Part]:
        if count > len(self.parts):
            raise IndexError
        start = len(self.parts) - count
        found, self.parts[start:] = self.parts[start:], []
        return found


def _screen(pickle: bytes, shown: str) -> None:
    """Refuse a pickle that names anything but tensors and plain values, or that would cost more than
    its length warrants: values can refer to each other, so that few bytes make for much work."""
    allowed = _allowed()
    stack, memo = _Stack(), dict[int, _Part]()
    left = 1_000_000 + 16 * len(pickle)

    def refuse(problem: str, hint: str | None = SAVE_ALONE) -> CheckpointError:
        return CheckpointError(problem, path=shown, hint=hint)

    try:
        for count, (operation, found, _) in enumerate(pickletools.genops(pickle)):
            name, argument = operation.name, cast(Any, found)
            if count >= MAX_OPERATIONS:
                raise refuse("its pickle has too many parts")
            if name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack.parts[-1]
            elif name in PLAIN:
                stack.parts.append(_Part())
            elif name in ("BINGET", "LONG_BINGET"):
                stack.parts.append(memo[argument])
            elif name == "MARK":
                stack.below.append(stack.parts)
                stack.parts = []
            elif name == "TUPLE" or name in TUPLES or name == "EMPTY_TUPLE":
                items = stack.pop_mark() if name == "TUPLE" else stack.pop(TUPLES.get(name, 0))
                part = _Part(1, 1 + max((item.depth for item in items), default=0), tuple(items))
                part.add(items)
                if part.depth > MAX_TUPLE_DEPTH:
                    raise refuse("its pickle is nested too deeply")
                stack.parts.append(part)
            elif name in ("APPENDS", "APPEND"):
                items = stack.pop_mark() if name == "APPENDS" else stack.pop(1)
                stack.parts[-1].add(items)
            elif name in ("SETITEMS", "SETITEM"):
                items = stack.pop_mark() if name == "SETITEMS" else stack.pop(2)
                stack.parts[-1].add(items)
                left -= sum(key.weight for key in items[::2])
            elif name == "GLOBAL":
                if argument not in allowed:
                    raise refuse(*_foreign(argument))
                stack.parts.append(_Part(rebuilds=argument in REBUILT))
            elif name == "REDUCE":
                function, arguments = stack.pop(2)
                if not function.rebuilds or arguments.items is None:
                    raise ValueError
                left -= arguments.cost
                stack.parts.append(_Part(rebuilt=True))
            elif name == "BUILD":
                (state,) = stack.pop(1)
                if not stack.parts[-1].rebuilt:
                    raise ValueError
                left -= state.cost
            elif name == "BINPERSID":
                stack.pop(1)
                stack.parts.append(_Part())
            elif name == "PROTO" and argument == 2:
                pass
            elif name == "PROTO":
                raise refuse(f"pickled in protocol {argument}, not torch's own", RESAVE)
            elif name != "STOP":
                raise refuse(f"its pickle has the operation {name}, which torch.save does not write", None)
            if left < 0:
                raise refuse("its pickle takes far more work than its size warrants", None)
    except (ValueError, LookupError):
        raise refuse("its pickle is malformed", None) from None


def _allowed() -> set[str]:
    """What a pickle may name: REBUILT, dtypes and storages."""
    import torch

    return (
        REBUILT
        | {
            f"torch {name}"
            for name, value in vars(torch).items()
            if isinstance(value, torch.dtype) or (name.endswith("Storage") and isinstance(value, type))
        }
        | {"torch.storage UntypedStorage", "torch.storage TypedStorage"}
    )


def _foreign(named: str) -> tuple[str, str]:
    """What is refused that a pickle names, and what to do."""
    module, _, name = named.rpartition(" ")
    if name in NOT_DENSE:
        return f"holds {NOT_DENSE[name]}", SAVE_ALONE
    return f"holds an object that is not a tensor: {_quoted(f'{module}.{name}')}", SAVE_ALONE


def _parse(pickle: bytes, records: Mapping[str, _Record], shown: str) -> tuple[Any, dict[int, _Record]]:
    """What torch makes of the pickle, its storages without bytes, and the record of each
    `_checkpoint_offset` of a storage.

    torch is given an archive of the same pickle and of empty records, so that it reads nothing else.
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
    """Where torch does not read storages: of itself on the meta device since 2.11, before among fakes."""
    import torch

    if hasattr(torch.serialization, "_is_meta_location"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _unwrapped(content: Any, shown: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The dict of tensors in what was saved, and the names of what stood beside it."""
    import torch

    def refuse(problem: str, **facts: Any) -> CheckpointError:
        return CheckpointError(problem, path=shown, **facts)

    within, left_out = "", list[str]()
    for wrapped in range(MAX_WRAPPED + 1):
        if not isinstance(content, dict):
            raise refuse("not a state dict", found=f"a {type(content).__name__}", hint=SAVE_ALONE)
        for name in content:
            if not isinstance(name, str):
                raise refuse("a name in the state dict is not text", found=_quoted(name))
            if not _is_unicode(name):
                raise refuse(f"the name {_quoted(name)} is not valid Unicode")
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
                inside = cropped("".join(f"[{key!r}]" for key in [*within.split(".")[:-1], under[0]]))
                raise refuse(
                    f"its tensors stand under {cropped(', '.join(map(repr, under[:4])))}",
                    hint=f"save them alone: torch.save(torch.load(OLD, weights_only=True){inside}, NEW)",
                )
            raise refuse(
                f"{_quoted(within + others[0])} is not a tensor",
                found=f"a {type(content[others[0]]).__name__}",
                hint=SAVE_ALONE,
            )
        left_out += [within + name for name in content if name != inner[0]]
        content, within = content[inner[0]], f"{within}{inner[0]}."
    raise AssertionError


def _holds_tensors(value: object) -> bool:
    import torch

    return isinstance(value, dict) and any(isinstance(each, torch.Tensor) for each in value.values())


def _layout(name: str, tensor: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """The strides of a plain dense tensor that safetensors can hold, 0 where they do not matter,
    and the bits of an element."""
    import torch

    dtype, shape = _torch_name(tensor.dtype), tuple(tensor.shape)
    if name in ("", "__metadata__"):
        raise CheckpointError("a name that safetensors does not allow")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError("not a dense tensor")
    if dtype not in DTYPES:
        raise CheckpointError("a dtype that safetensors does not have", found=cropped(dtype))
    if tensor.is_conj() or tensor.is_neg():
        raise CheckpointError(
            "a view that conjugates or negates", hint="save what .resolve_conj().resolve_neg() returns"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=len(shape))
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CheckpointError("the shape overflows", found=cropped(str(shape)))
    strides = (stride if size > 1 else 0 for size, stride in zip(shape, tensor.stride(), strict=True))
    return tuple(strides), BITS[DTYPES[dtype]]


def _span(
    tensor: torch.Tensor, strides: tuple[int, ...], itemsize: int, storage_bytes: int, record: _Record
) -> tuple[int, int]:
    """Where in its storage the tensor starts, and how far it spans; both in bytes, and inside."""
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
            "its storage is not of the size that its record has",
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


def _quoted(name: object) -> str:
    return cropped(repr(name) if isinstance(name, str | int | float) else type(name).__name__)
