"""Read PyTorch state dicts in zip files at offsets, like safetensors files.

`torch.save` stores every storage uncompressed in its own record, so a tensor has a fixed place in the file.
The archive is checked, and nothing is inflated. `read_pickle` reads the pickle without running it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.archive import RESAVE, SAVE_ALONE, Record, quote, read_records, start_of
from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.foreign import recognise
from monosoup_cli.formats.header import BITS, MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, Header, TensorInfo
from monosoup_cli.formats.pickles import DTYPES, Foreign, PickledTensor, read_pickle
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.strided import Bytes, Strided
from monosoup_cli.formats.torchscript import is_script, script_tensors

__all__ = [
    "StateDict",
    "StateDicts",
    "Unwrapped",
    "is_extra_state",
    "notes_of_choice",
    "place_tensors",
    "read_state_dict",
    "unwrap",
]

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""The keys under which training scripts keep the state dict, next to the optimizer and so on."""
MAX_WRAPPED = 2
MAX_KEY = 200
"""How long the keys on the path to a state dict may be."""
MAX_DEPTH = 4
"""How deep dicts of tensors are looked for."""
EXTRA_STATE = "_extra_state"
"""The end of the names under which modules keep what is not a tensor, such as the scales of an fp8 engine."""
NOT_DENSE = {
    "_rebuild_qtensor": ("a quantised tensor", "save what .dequantize() returns"),
    "_rebuild_sparse_tensor": ("a sparse tensor", "save what .to_dense() returns"),
    "_rebuild_nested_tensor": ("a nested tensor", "save what .unbind() returns"),
    "_rebuild_njt": ("a nested tensor", "save what .unbind() returns"),
    "_rebuild_meta_tensor_no_storage": ("a tensor without data", "load the weights before they are saved"),
    "_rebuild_tensor_v2": ("a tensor of a class of its own", "save what .as_subclass(torch.Tensor) returns"),
    "_rebuild_wrapper_subclass": (
        "a tensor of a class of its own",
        "save plain tensors, such as .dequantize() returns",
    ),
    "DTensor": (
        "one rank's part of a distributed tensor",
        "save what .full_tensor() returns, on every rank; verl's files: python -m verl.model_merger merge",
    ),
}
"""What is a tensor, but not one of elements in a record, and what makes it one."""

DATA = "data/"
AT_ONCE = 8
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of `torch.save` started before they were zip files: a pickled number."""


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
        notes: What the user should know about what was read, in words.
        path: Where the state dict is in the file, with dots; "" for all of it.
        others: Where other dicts of tensors are.
    """

    tensors: Mapping[str, TensorInfo]
    strided: Mapping[str, Strided]
    tied: Mapping[str, str]
    pickle: bytes
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    path: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Unwrapped:
    """The dict of tensors in what was saved, and what is beside it; as in `StateDict`."""

    tensors: Mapping[str, PickledTensor]
    left_out: Sequence[str]
    path: str
    others: Sequence[str]


class StateDicts:
    """The format of `torch.save`."""

    suffixes: ClassVar[Sequence[str]] = (".bin", ".pt", ".pth", ".ckpt")
    stems: ClassVar[Mapping[str, Sequence[str]]] = {".bin": ("pytorch_model", "diffusion_pytorch_model")}

    def open(self, name: str, file: CheckpointFile, state_dict: str | None) -> Shard:
        """Parse the pickle, without the tensors' bytes."""
        state = read_state_dict(file, state_dict)
        header = Header(state.pickle, state.tensors, {"format": "pt"})
        return Shard(
            name,
            file,
            header,
            0,
            is_safetensors=False,
            strided=state.strided,
            tied=state.tied,
            left_out=state.left_out,
            notes=state.notes,
            state_dicts=(state.path, *state.others),
        )


def read_state_dict(file: Bytes, wanted: str | None = None) -> StateDict:
    """Read the state dict in a file of `torch.save`, without running any code from it.

    Args:
        file: The file.
        wanted: Where the state dict is in it, with dots; None for the usual places.

    Raises:
        CheckpointError: The file is malformed, or holds no dict of tensors there.
    """
    _check_magic(file)
    records = read_records(file)
    pickle = file.read(records["data.pkl"].nbytes, start_of(file, records["data.pkl"]))
    content, foreign = read_pickle(pickle, file.shown)
    notes = list[str]()
    if is_script(records):
        unwrapped = Unwrapped(script_tensors(file, records, content), (), "", ())
        notes.append("a TorchScript archive: its parameters and buffers are read, and its code is left out")
    else:
        unwrapped = unwrap(content, file.shown, wanted)
    if foreign and not is_script(records):
        notes.append(f"holds objects that are not read: {_several(foreign)}")
    notes += notes_of_choice(unwrapped)
    placed = place_tensors(file, records, unwrapped.tensors)
    return StateDict(
        *placed, pickle, tuple(unwrapped.left_out), tuple(notes), unwrapped.path, tuple(unwrapped.others)
    )


def notes_of_choice(unwrapped: Unwrapped) -> tuple[str, ...]:
    """What to say where there are other state dicts than the one that is read."""
    if not unwrapped.others:
        return ()
    read, others = quote(unwrapped.path), _several(unwrapped.others)
    return (f"the tensors of {read} are read; --state-dict chooses others: {others}",)


def place_tensors(
    file: Bytes, records: Mapping[str, Record], described: Mapping[str, PickledTensor]
) -> tuple[dict[str, TensorInfo], dict[str, Strided], dict[str, str]]:
    """Find the bytes of tensors in an archive.

    Returns:
        The tensors, strided and tied ones, as in `StateDict`.

    Raises:
        CheckpointError: The elements of a tensor are not in the archive, or safetensors cannot hold it.
    """
    starts = _starts(file, records, described.values())
    tensors: dict[str, TensorInfo] = {}
    strided: dict[str, Strided] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in described.items():
        key = tensor.storage.key
        try:
            strides, bits = _layout(name, tensor)
            if key not in starts:
                raise CheckpointError("its elements are not in the file")
            offset, span = _span(tensor, strides, bits // 8, records[f"{DATA}{key}"])
        except CheckpointError as error:
            error.path, error.tensor = file.shown, name
            raise
        start = starts[key] + offset
        dtype, shape = DTYPES[tensor.dtype], tensor.shape
        tensors[name] = TensorInfo(name, dtype, shape, start, start + math.prod(shape) * bits // 8)
        if not _is_contiguous(shape, strides):
            strided[name] = Strided(strides, span)
        if span:
            same = first.setdefault((start, dtype, shape, strides), name)
            if same != name:
                tied[name] = same
    return tensors, strided, tied


def _starts(file: Bytes, records: Mapping[str, Record], tensors: Iterable[PickledTensor]) -> dict[str, int]:
    """Find where the records of these tensors start, by key. Several at once: the file may be remote."""
    keys = {tensor.storage.key: None for tensor in tensors if f"{DATA}{tensor.storage.key}" in records}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        run = pool.map if len(keys) > 1 else map
        starts = run(lambda key: start_of(file, records[f"{DATA}{key}"]), keys)
        return dict(zip(keys, starts, strict=True))


def _check_magic(file: Bytes) -> None:
    """Refuse a file that is not a zip file, and say what to do about it."""
    start = file.read(min(file.nbytes, 16))
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= file.nbytes - 8:
        raise CheckpointError(
            "a safetensors file under another name", path=file.shown, hint="rename it to end in .safetensors"
        )
    if start.startswith(LEGACY):
        raise CheckpointError(
            "in torch's legacy format, which has to be read as a whole", path=file.shown, hint=RESAVE
        )
    other = recognise(file, PurePosixPath(file.shown).name)
    if other is not None:
        raise other
    if not start.startswith(b"PK\x03\x04"):
        raise CheckpointError("not a PyTorch file" if start else "the file is empty", path=file.shown)


def unwrap(content: Any, shown: str, wanted: str | None) -> Unwrapped:
    """Find the dict of tensors in what was saved, and the names of what is saved next to it.

    Args:
        content: What was saved.
        shown: The file that errors name.
        wanted: The path to a dict of tensors, with dots. A file that has one alone need not have it there.
    """

    def refuse(problem: str, hint: str | None = None, **facts: Any) -> CheckpointError:
        return CheckpointError(problem, path=shown, hint=hint, **facts)

    choices = list(_state_dicts(content))
    if wanted is not None and wanted not in choices and len(choices) > 1:
        raise refuse(f"no state dict {quote(wanted)}", found=_several(choices))
    steps = wanted.split(".") if wanted is not None and wanted in choices else None
    within, left_out = "", list[str]()
    while True:
        if not isinstance(content, dict):
            if isinstance(content, Foreign):
                raise refuse(*_foreign(content))
            raise refuse("not a state dict", SAVE_ALONE, found=f"a {_kind(content)}")
        for name in content:
            if not isinstance(name, str):
                raise refuse("a name in the state dict is not text", found=quote(name.value))
            if not _is_unicode(name):
                raise refuse(f"the name {quote(name)} is not valid Unicode")
        others = [name for name, value in content.items() if not _belongs(name, value)]
        if not others:
            tensors = {name: one for name, one in content.items() if isinstance(one, PickledTensor)}
            if not tensors:
                raise refuse("the state dict is empty")
            if len(tensors) > MAX_TENSORS:
                raise refuse("too many tensors", expected=f"at most {MAX_TENSORS:,}")
            left_out += [within + name for name in content if name not in tensors]
            path = within.removesuffix(".")
            return Unwrapped(tensors, left_out, path, [one for one in choices if one != path])
        if steps is not None:
            inner = _next(content, steps)
        else:
            named = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
            if len(named) > 1:
                raise refuse(
                    f"holds several state dicts: {', '.join(named)}",
                    hint=f"choose one: --state-dict {within}{named[0]}",
                )
            inner = named[0] if named and within.count(".") < MAX_WRAPPED else ""
        if not inner:
            foreign = [one for one in content.values() if isinstance(one, Foreign)]
            if choices:
                raise refuse(
                    f"its tensors are under {_several(choices)}",
                    hint=f"choose: --state-dict {crop(choices[0])}",
                )
            if foreign:
                raise refuse(*_foreign(foreign[0]))
            raise refuse(
                f"{quote(within + others[0])} is not a tensor",
                found=f"a {_kind(content[others[0]])}",
                hint=SAVE_ALONE,
            )
        left_out += [within + name for name in content if name != inner]
        content, within = content[inner], f"{within}{inner}."


def _next(content: Mapping[Any, Any], steps: list[str]) -> str:
    """Take the next key of a path off its start. A key may have dots of its own."""
    for count in range(1, len(steps) + 1):
        key = ".".join(steps[:count])
        if isinstance(content.get(key), dict):
            del steps[:count]
            return key
    return ""


def _state_dicts(content: Any) -> dict[str, Any]:
    """Find the dicts of nothing but tensors in what was saved, by their paths."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    level = [("", "", content)]
    for _ in range(MAX_DEPTH):
        below = []
        for above, key, value in level:
            if not isinstance(value, dict) or id(value) in seen:
                continue
            seen.add(id(value))
            path = f"{above}.{key}".removeprefix(".")
            if _is_state_dict(value):
                found[path] = value
            else:
                below += [
                    (path, key, one)
                    for key, one in value.items()
                    if isinstance(key, str) and len(key) <= MAX_KEY and isinstance(one, dict)
                ]
        level = below
    return found


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(one, PickledTensor) for one in value.values()) and all(
        isinstance(name, str) and _belongs(name, one) for name, one in value.items()
    )


def _belongs(name: str, value: object) -> bool:
    """Return whether this is an entry of a state dict: a tensor, or what a module keeps beside them."""
    return isinstance(value, PickledTensor) or is_extra_state(name)


def is_extra_state(name: str) -> bool:
    """Whether a module keeps under this name what is not a tensor."""
    return name.endswith(EXTRA_STATE)


def _several(paths: Sequence[str]) -> str:
    return crop(", ".join(map(repr, paths[:4]))) + (", …" if len(paths) > 4 else "")


def _kind(value: object) -> str:
    return "Tensor" if isinstance(value, PickledTensor) else type(value).__name__


def _foreign(value: Foreign) -> tuple[str, str]:
    """Describe an object in place of a tensor or a state dict, and say what to do."""
    names = [name.rpartition(" ")[2] for name in (value.name, value.function)]
    what, hint = next((NOT_DENSE[name] for name in names if name in NOT_DENSE), (None, SAVE_ALONE))
    return f"holds {what or f'an object that is not a tensor: {quote(value.shown)}'}", hint


def _layout(name: str, tensor: PickledTensor) -> tuple[tuple[int, ...], int]:
    """Return the strides of a tensor, 0 where the size is 1, and the bits of an element.

    Raises:
        CheckpointError: safetensors cannot hold the tensor.
    """
    shape = tensor.shape
    if name in ("", "__metadata__"):
        raise CheckpointError("a name that safetensors does not allow")
    if tensor.dtype not in DTYPES:
        raise CheckpointError("a dtype that safetensors does not have", found=crop(tensor.dtype))
    if not tensor.is_plain:
        raise CheckpointError(
            "a view that conjugates or negates", hint="save what .resolve_conj().resolve_neg() returns"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=len(shape))
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CheckpointError("the shape overflows", found=crop(str(shape)))
    strides = (stride if size > 1 else 0 for size, stride in zip(shape, tensor.strides, strict=True))
    return tuple(strides), BITS[DTYPES[tensor.dtype]]


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the elements are stored in order."""
    expected = 1
    for size, stride in reversed(list(zip(shape, strides, strict=True))):
        if size > 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


def _span(tensor: PickledTensor, strides: tuple[int, ...], itemsize: int, record: Record) -> tuple[int, int]:
    """Return where in its storage the tensor starts, and how far it reaches, both in bytes.

    Raises:
        CheckpointError: Elements overlap, or are outside the storage.
    """
    offset, span = tensor.offset * itemsize, 0
    if 0 not in tensor.shape:
        reach = 0
        for stride, size in sorted(zip(strides, tensor.shape, strict=True)):
            if size > 1:
                if stride <= reach:
                    raise CheckpointError("a view whose elements overlap", found=f"strides {strides}")
                reach += (size - 1) * stride
        span = (reach + 1) * itemsize
        if offset + span > record.nbytes:
            raise CheckpointError(
                "it reaches beyond its storage",
                expected=f"at most {record.nbytes:,} bytes",
                found=f"{offset + span:,}",
            )
    if tensor.storage.nbytes != record.nbytes:
        raise CheckpointError(
            "its storage and its record differ in size",
            expected=f"{tensor.storage.nbytes:,} bytes",
            found=f"{record.nbytes:,}",
        )
    return (offset, span) if span else (0, 0)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
