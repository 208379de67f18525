"""A checkpoint, opened: its files, its tensors, and where the bytes of each lie."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import CheckpointFile, Download
from monosoup_cli.formats.header import Header, TensorInfo
from monosoup_cli.sources.folders import Folder

if TYPE_CHECKING:
    import torch

    from monosoup_cli.formats.state_dict import Strided

__all__ = ["Checkpoint", "Factors", "Shard"]

Factors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

LITTLE = 0.5
"""Of a file on the Hub: a smaller share is fetched in parts, which are not kept for the next run."""


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, open for reading.

    `name`: in its folder. `data_start`: where the offsets of its tensors count from. Of a state
    dict, `header.raw` is the pickle; `strided` are the tensors whose elements do not lie in order,
    and `tied` names the one that shares all of its elements with an earlier one.
    """

    name: str
    file: CheckpointFile
    header: Header
    data_start: int
    is_state_dict: bool = False
    strided: Mapping[str, Strided] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def header_sha256(self) -> str:
        return hashlib.sha256(self.header.raw).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, or of a folder's file or shards.

    `tensors` is in the order of the files, and in each of the bytes. `folder` is None for a single
    file, whose folder on the Hub is its `origin`; `inner` is the part of the folder that holds the
    weights ("" or "unet/"), and `index` the parsed index, None without one. `names`: how tensors are
    called here → as they stand in the files, where the two differ; `read_as` says so to people.
    `adapter_config`: of a LoRA adapter, which is no checkpoint until it is merged into a base. Use as
    a context manager: it holds open files.
    """

    source: str
    shards: tuple[Shard, ...]
    folder: Folder | None = None
    inner: str = ""
    index: Mapping[str, Any] | None = None
    index_name: str | None = None
    config: Mapping[str, Any] | None = None
    names: Mapping[str, str] | None = None
    read_as: tuple[str, ...] = ()
    origin: Folder | None = None
    adapter_config: Mapping[str, Any] | None = None
    tensors: Mapping[str, TensorInfo] = field(init=False)
    shard_of: Mapping[str, Shard] = field(init=False)
    _left: set[str] = field(init=False, default_factory=set)
    _in_order: threading.local = field(init=False, default_factory=threading.local)

    def __post_init__(self) -> None:
        placed: dict[str, tuple[TensorInfo, Shard]] = {}
        for shard in self.shards:
            for tensor in sorted(shard.header.tensors.values(), key=lambda tensor: tensor.start):
                if tensor.name in placed:
                    raise CheckpointError(
                        "stands in two shards",
                        path=self.source,
                        tensor=tensor.name,
                        found=f"{placed[tensor.name][1].name} and {shard.name}",
                    )
                placed[tensor.name] = (tensor, shard)
        if self.names is not None:
            placed = {name: placed[stored] for name, stored in self.names.items()}
        object.__setattr__(self, "tensors", {name: tensor for name, (tensor, _) in placed.items()})
        object.__setattr__(self, "shard_of", {name: shard for name, (_, shard) in placed.items()})

    def renamed(self, names: Mapping[str, str], read_as: tuple[str, ...]) -> Checkpoint:
        """The same with tensors called differently: `names` maps how to what they are called now."""
        return replace(self, names=names, read_as=read_as)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def model(self) -> Checkpoint:
        """The checkpoint whose layout, configuration and other files an output takes over."""
        return self

    def changes(self, name: str) -> bool:
        """Whether the tensor may differ from the base's, as far as headers tell."""
        return True

    def read_dtype(self, name: str) -> str:
        """The dtype in which the bytes of a tensor are read."""
        return self.tensors[name].dtype

    def factors(self, name: str, index: int, rows: int, columns: int) -> Factors | None:
        """The update of one (rows, columns) matrix of a tensor as left (rows, rank) times right
        (rank, columns), in float64; None where it is not known to be of low rank."""
        return None

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """What its tensors mean, beside their bytes; None where they speak for themselves."""
        return None

    def update_of(self, name: str) -> dict[str, Any]:
        """What the report says of the update of one tensor, beside what is measured."""
        return {}

    @property
    def revision(self) -> str | None:
        """The commit, of a checkpoint from the Hub."""
        place = self.folder or self.origin
        return None if place is None else place.revision

    @property
    def repository(self) -> str | None:
        """Its id on the Hub, where it is from there."""
        place = self.folder or self.origin
        return None if place is None else place.repository

    @property
    def metadata(self) -> dict[str, str]:
        """The `__metadata__` of all files."""
        return {name: text for shard in self.shards for name, text in (shard.header.metadata or {}).items()}

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on."""
        self.reader(name)(buffer, offset)

    def reader(self, name: str) -> Callable[[memoryview, int], None]:
        """`read_into` for one tensor that is read piece by piece."""
        shard, tensor = self.shard_of[name], self.tensors[name]
        if tensor.name in shard.strided:
            return lambda buffer, offset: self._read_in_order(shard, tensor, buffer, offset)
        start, read_into = shard.data_start + tensor.start, shard.file.read_into
        return lambda buffer, offset: read_into(buffer, start + offset)

    def _read_in_order(self, shard: Shard, tensor: TensorInfo, buffer: memoryview, offset: int) -> None:
        """From a tensor whose elements do not lie in order: each thread keeps the last one, put in order."""
        from monosoup_cli.formats.state_dict import contiguous

        last = self._in_order
        if getattr(last, "tensor", None) is not tensor:
            last.data = None  # before the next one is made
            last.data = contiguous(shard.file, tensor, shard.strided[tensor.name])
            last.tensor = tensor
        buffer[:] = last.data[offset : offset + len(buffer)]

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """What has to be downloaded to read the tensors of these names (None: all). Of a file of which
        little is needed only parts are, and nothing else of it `is_at_hand` then."""
        wanted: dict[str, list[TensorInfo]] = {shard.name: [] for shard in self.shards}
        for name in self.tensors if names is None else names:
            wanted[self.shard_of[name].name].append(self.tensors[name])
        downloads = []
        for shard in self.shards:
            tensors = wanted[shard.name]
            is_little = sum(tensor.nbytes for tensor in tensors) < LITTLE * shard.file.nbytes
            is_whole = any(tensor.name in shard.strided for tensor in tensors)
            if names is None or not is_little or is_whole:
                downloads += shard.file.select(None)
                continue
            start = shard.data_start
            downloads += shard.file.select([(start + each.start, start + each.stop) for each in tensors])
            if shard.file.is_remote:
                self._left.update(shard.header.tensors.keys() - {tensor.name for tensor in tensors})
        return downloads

    def is_at_hand(self, name: str) -> bool:
        """Whether there is such a tensor, and it was not left on the Hub by what was selected."""
        return name in self.tensors and self.tensors[name].name not in self._left

    @property
    def place(self) -> str:
        """What other programs open: the folder or the file on this machine."""
        if os.path.lexists(self.source):
            return self.source
        place = self.folder or self.origin
        assert place is not None
        assert place.root is not None
        return str(place.root if self.folder else place.root / self.shards[0].name)

    @property
    def kept_in_order(self) -> int:
        """Bytes that a thread may hold of tensors whose elements do not lie in order."""
        return max(
            (
                shard.header.tensors[name].nbytes + strided.span
                for shard in self.shards
                for name, strided in shard.strided.items()
            ),
            default=0,
        )

    def forget(self) -> None:
        """Drop what the calling thread holds of them."""
        self._in_order.__dict__.clear()

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have the tensor, or its first `limit` bytes, at hand soon."""
        shard, tensor = self.shard_of[name], self.tensors[name]
        shard.file.prefetch(shard.data_start + tensor.start, min(tensor.nbytes, limit))

    @property
    def bytes_read(self) -> int:
        """Headers included, from all files, so far."""
        return sum(shard.file.bytes_read for shard in self.shards)

    def check_unchanged(self) -> None:
        for shard in self.shards:
            shard.file.check_unchanged()

    def close(self) -> None:
        for shard in self.shards:
            shard.file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
