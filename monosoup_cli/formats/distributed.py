"""Distributed checkpoints of torch (DCP): folders in which every rank of a run wrote its chunks of tensors.

The chunks are in `*.distcp`, and the pickle in `.metadata` says where. It is read without running anything.
The folder is then one file, which has all tensors one after the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from monosoup_cli.errors import CheckpointError, crop, some
from monosoup_cli.formats.archive import read_records, start_of
from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.gathered import Chunk, Chunked, Gathered, chunked, problem_of
from monosoup_cli.formats.header import AGAIN, BITS, MAX_DIMENSIONS, MAX_ELEMENTS, Header, TensorInfo
from monosoup_cli.formats.pickles import DTYPES, PickledTensor, Storage, read_pickle
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.state_dict import is_extra_state, notes_of_choice, place_tensors, unwrap

__all__ = ["open_distributed"]

SUFFIX = ".distcp"
MAX_METADATA_BYTES = 100_000_000
MAX_OPERATIONS = 50_000_000
"""How long the pickle may be, which describes every chunk of every tensor, those of the optimizer too."""
NAMED = 4
END_BYTES = 4096
"""How much of each end of a chunk is read: more than what `torch.save` writes there of one tensor."""
AT_ONCE = 8
TRAINING = re.compile(
    r"optim(izer)?s?(_states?)?|(lr_)?schedulers?|dataloader|train_state|rng(_states?)?|(grad_)?scaler"
)
"""The keys under which runs keep dicts that are not the model."""
DEFAULTS = "save it with the defaults: FileSystemWriter(PATH)"
GATHER = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NEW.pt"


def open_distributed(
    name: str, beside: Collection[str], open_file: Callable[[str], CheckpointFile], state_dict: str | None
) -> Shard:
    """Open a distributed checkpoint, and read where its chunks are.

    Args:
        name: The name of `.metadata` in the folder, after the part of the folder that it is in.
        beside: The names of what is in its folder.
        open_file: Opens a file of the folder.
        state_dict: Which state dict of a run that saved several; None for the usual one.

    Raises:
        CheckpointError: The description or a chunk is malformed, or a file is missing.
    """
    metadata = open_file(name)
    opened = [metadata]
    try:
        if metadata.nbytes > MAX_METADATA_BYTES:
            raise CheckpointError("too large a description of chunks", path=metadata.shown)
        raw = metadata.read(metadata.nbytes)
        content, _ = read_pickle(raw, metadata.shown, MAX_OPERATIONS)
        try:
            described = _Described.of(content)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(
                "does not describe a distributed checkpoint", path=metadata.shown, hint=AGAIN
            ) from None
        except CheckpointError as error:
            error.path = metadata.shown
            raise
        nested, training = described.nested(metadata.shown)
        if not nested:
            raise CheckpointError(
                f"has no model, only what a run keeps beside it: {some(training, NAMED)}", path=metadata.shown
            )
        chosen = unwrap(nested, metadata.shown, state_dict)
        inside = name.removesuffix(name.rpartition("/")[2])
        names = {name: tensor.storage.key for name, tensor in chosen.tensors.items()}
        needed = {place.file for key in names.values() for place in described.places[key].values()}
        files = {}
        missing = sorted(needed.difference(beside))
        if missing:
            raise CheckpointError(
                f"files of chunks are missing: {some(missing, NAMED)}", path=metadata.shown, hint=AGAIN
            )
        for one in sorted(needed):
            files[one] = open_file(f"{inside}{one}")
            opened.append(files[one])
        tensors = _gather(names, described, files, metadata.shown)
        sizes = "".join(f"{one} {file.nbytes}\n" for one, file in files.items())
        header = Header(raw + sizes.encode(), {one.info.name: one.info for one in tensors}, {"format": "pt"})
        return Shard(
            name,
            Gathered(metadata, list(files.values()), tensors),
            header,
            0,
            is_safetensors=False,
            left_out=(*training, *chosen.left_out),
            notes=notes_of_choice(chosen),
            state_dicts=(chosen.path, *chosen.others),
            chunks={name: metadata, **{f"{inside}{one}": file for one, file in files.items()}},
        )
    except BaseException:
        for file in opened:
            file.close()
        raise


class _Place(NamedTuple):
    """Where a chunk is: the name of its file, and a range of bytes there that `torch.save` wrote."""

    file: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class _Described:
    """What `.metadata` says.

    Attributes:
        tensors: The dtype, the shape and the chunks of every tensor, by its key.
        places: Where its chunks are, by their offsets.
        paths: Where every key stands in what was saved.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...], Sequence[Chunk]]]
    places: Mapping[str, Mapping[tuple[int, ...], _Place]]
    paths: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, content: Any) -> _Described:
        """Take what is known out of a pickle of `torch.distributed.checkpoint.metadata.Metadata`.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is none, or of another version.
        """
        state = content.state
        tensors: dict[str, tuple[str, tuple[int, ...], Sequence[Chunk]]] = {}
        places: dict[str, dict[tuple[int, ...], _Place]] = {}
        paths: dict[str, Sequence[str]] = {}
        planned = state.get("planner_data") or {}
        for key, entry in state["state_dict_metadata"].items():
            paths[_text(key)] = path = _path(planned.get(key) or (key,))
            if entry.name.endswith(" TensorStorageMetadata") and not _is_of_training(path):
                properties = entry.state["properties"].state
                dtype = properties["dtype"] if isinstance(properties, dict) else properties[0]
                chunks = [
                    Chunk(_sizes(one.state["offsets"]), _sizes(one.state["sizes"]))
                    for one in entry.state["chunks"]
                ]
                tensors[key] = dtype.name.removeprefix("torch "), _sizes(entry.state["size"]), chunks
                places[key] = {}
        for index, info in state["storage_data"].items():
            where, stored = index.value.state, info.state
            if _text(where["fqn"]) not in places:
                continue
            place = _Place(_text(stored["relative_path"]), *_sizes((stored["offset"], stored["length"])))
            if not place.file.endswith(SUFFIX) or not place.file.isprintable() or "/" in place.file:
                raise ValueError
            if stored.get("transform_descriptors"):
                raise CheckpointError("its chunks are compressed", hint=DEFAULTS)
            places[where["fqn"]][_sizes(where.get("offset") or ())] = place
        return cls(tensors, places, paths)

    def nested(self, shown: str) -> tuple[dict[str, Any], Sequence[str]]:
        """What was saved, as nested dicts with descriptions of tensors; and what of it is left out."""
        content: dict[str, Any] = {}
        left_out: dict[str, None] = {}
        for key, path in self.paths.items():
            if key not in self.tensors and (_is_of_training(path) or not is_extra_state(key)):
                left_out[path[0]] = None
                continue
            inner = content
            for step in path[:-1]:
                inner = inner.setdefault(step, {})
                if not isinstance(inner, dict):
                    raise CheckpointError("a key within a tensor", path=shown, found=crop(key))
            if path[-1] in inner:
                raise CheckpointError("two keys for one tensor", path=shown, found=crop(key))
            inner[path[-1]] = self._tensor(key) if key in self.tensors else None
        return content, [one for one in left_out if one not in content]

    def _tensor(self, key: str) -> PickledTensor:
        dtype, shape, _ = self.tensors[key]
        strides = tuple(math.prod(shape[number + 1 :]) for number in range(len(shape)))
        return PickledTensor(dtype, Storage(dtype, key, 0), 0, shape, strides, True)


def _is_of_training(path: Sequence[str]) -> bool:
    """Whether this is what a run keeps beside the model."""
    return len(path) > 1 and TRAINING.fullmatch(path[0]) is not None


def _text(text: Any) -> str:
    """This value, if it is text. Of others, not even a hash is computed: that can take any time."""
    if type(text) is not str:
        raise ValueError
    return text


def _path(steps: Any) -> tuple[str, ...]:
    """The keys on the way to a value, as text."""
    if type(steps) is not tuple or not all(type(step) in (str, int) for step in steps):
        raise ValueError
    return tuple(step if isinstance(step, str) else crop(f"{step}") for step in steps)


def _sizes(numbers: Any) -> tuple[int, ...]:
    """These numbers, if they are such as sizes and offsets are."""
    is_list = isinstance(numbers, tuple | list) and len(numbers) <= MAX_DIMENSIONS
    if not is_list or not all(type(one) is int and 0 <= one <= MAX_ELEMENTS for one in numbers):
        raise ValueError
    return tuple(numbers)


class _Slice:
    """A range of a file, read as a file of its own (`Bytes`)."""

    def __init__(self, file: CheckpointFile, place: _Place) -> None:
        if place.start + place.nbytes > file.nbytes:
            raise CheckpointError(
                "a chunk reaches beyond the end of its file",
                path=file.shown,
                expected=f"{place.start + place.nbytes:,} bytes",
                found=f"{file.nbytes:,}",
                hint=AGAIN,
            )
        self.shown, self.nbytes, self._file, self._start = file.shown, place.nbytes, file, place.start
        self._ends: dict[int, bytes] = {}

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        """What describes the elements is at both ends, which are read once: the file may be remote."""
        for start in (0, max(self.nbytes - END_BYTES, 0)):
            if start <= offset and offset + nbytes <= min(start + END_BYTES, self.nbytes):
                if start not in self._ends:
                    size = min(END_BYTES, self.nbytes - start)
                    self._ends[start] = self._file.read(size, self._start + start)
                return self._ends[start][offset - start : offset - start + nbytes]
        return self._file.read(nbytes, self._start + offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._file.read_into(buffer, self._start + offset)


def _gather(
    keys: Mapping[str, str], described: _Described, files: Mapping[str, CheckpointFile], shown: str
) -> list[Chunked]:
    """Find the chunks of these tensors; several at once on the Hub."""

    def begin(one: tuple[str, str, Chunk]) -> tuple[CheckpointFile, int]:
        name, key, chunk = one
        place = described.places.get(key, {}).get(chunk.offsets)
        if place is None:
            raise CheckpointError("a chunk is in no file", path=shown, tensor=name, found=str(chunk.offsets))
        file = files[place.file]
        return file, place.start + _start_in(_Slice(file, place), name, described.tensors[key][0], chunk)

    chunks = {key: [one for one in described.tensors[key][2] if 0 not in one.sizes] for key in keys.values()}
    for name, key in keys.items():
        dtype, shape, _ = described.tensors[key]
        if dtype not in DTYPES:
            raise CheckpointError(
                "a dtype that safetensors does not have", path=shown, tensor=name, found=crop(dtype)
            )
        if problem := problem_of(shape, chunks[key]):
            raise CheckpointError(problem, path=shown, tensor=name, found=f"{len(chunks[key])} chunks")
    wanted = [(name, key, chunk) for name, key in keys.items() for chunk in chunks[key]]
    if any(file.is_remote for file in files.values()):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            begun = iter(list(pool.map(begin, wanted)))
    else:  # threads would wait for each other
        begun = iter(list(map(begin, wanted)))
    tensors, end = list[Chunked](), 0
    for name, key in keys.items():
        dtype, shape, _ = described.tensors[key]
        nbytes = math.prod(shape) * BITS[DTYPES[dtype]] // 8
        info = TensorInfo(name, DTYPES[dtype], shape, end, end + nbytes)
        tensors.append(chunked(info, chunks[key], [next(begun) for _ in chunks[key]]))
        end = info.stop
    return tensors


def _start_in(archive: _Slice, name: str, dtype: str, chunk: Chunk) -> int:
    """The byte at which the elements of a chunk start, in what `torch.save` wrote of it.

    Raises:
        CheckpointError: It is damaged, or of another dtype or shape than it should be.
    """
    if not archive.read(min(4, archive.nbytes)).startswith(b"PK"):
        raise CheckpointError(
            "its chunks are not in torch's own format", path=archive.shown, tensor=name, hint=DEFAULTS
        )
    records = read_records(archive)
    pickle = archive.read(records["data.pkl"].nbytes, start_of(archive, records["data.pkl"]))
    tensor, _ = read_pickle(pickle, archive.shown)
    if not isinstance(tensor, PickledTensor) or (tensor.dtype, tensor.shape) != (dtype, chunk.sizes):
        found = f"{tensor.dtype} {tensor.shape}" if isinstance(tensor, PickledTensor) else "no tensor"
        raise CheckpointError(
            "a chunk is not what it should be",
            path=archive.shown,
            tensor=name,
            expected=f"{dtype} {chunk.sizes}",
            found=crop(found),
        )
    placed, strided, _ = place_tensors(archive, records, {name: tensor})
    if strided:
        raise CheckpointError(
            "a chunk whose elements are not in order",
            path=archive.shown,
            tensor=name,
            hint=f"gather it: {GATHER}",
        )
    return placed[name].start
