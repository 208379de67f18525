"""The open files of a checkpoint, and where they were found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.shard import Shard, stored_files
from monosoup_cli.sources.folders import Folder

__all__ = [
    "Codes",
    "Files",
    "Index",
    "Kind",
    "LoraFile",
    "Model",
    "PeftAdapter",
    "Place",
    "encodings_of",
    "metadata_of",
    "paths_of",
]


@dataclass(frozen=True)
class Kind:
    """What the tensors in some files are. An adapter is a checkpoint only when merged into a base.

    Attributes:
        is_adapter: Whether they are what an adapter changes, and not whole tensors.
        is_in_parts: Whether they may be of several parts of a pipeline.
        settings: The configuration of an adapter that has one.
        inner: The files of an adapter that stands in the same files as the base it changes.
    """

    is_adapter: ClassVar[bool] = True
    is_in_parts: ClassVar[bool] = False
    settings: Mapping[str, Any] | None = None
    inner: Files | None = None


@dataclass(frozen=True)
class Model(Kind):
    """A checkpoint of whole tensors."""

    is_adapter: ClassVar[bool] = False


@dataclass(frozen=True)
class PeftAdapter(Kind):
    """A LoRA adapter as peft writes it. Its settings are its adapter_config.json."""


@dataclass(frozen=True)
class LoraFile(Kind):
    """A LoRA adapter in a single file, which has no configuration."""

    is_in_parts: ClassVar[bool] = True


@dataclass(frozen=True)
class Index:
    """The index of a sharded checkpoint: its name in the folder, and its content."""

    name: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint was found.

    Attributes:
        source: What the user typed.
        folder: The folder that the weights belong to; None for a single file.
        inner: The part of the folder that has the weights, "" or "unet/".
        origin: The folder on the Hub that contains the single file; None for files on the disk.
        file_name: The name of a single file.
    """

    source: str
    folder: Folder | None = None
    inner: str = ""
    origin: Folder | None = None
    file_name: str = ""

    @property
    def repository(self) -> str | None:
        """The id on the Hub; None if the checkpoint is not from there."""
        folder = self.folder or self.origin
        return None if folder is None else folder.repository

    @property
    def revision(self) -> str | None:
        """The commit on the Hub."""
        folder = self.folder or self.origin
        return None if folder is None else folder.revision

    @property
    def path(self) -> str:
        """The path of the folder or file on this machine, for other programs."""
        folder = self.folder or self.origin
        is_typed = folder is None or folder.root == Path(self.source)
        if is_typed and os.path.lexists(self.source):
            return self.source
        assert folder is not None
        assert folder.root is not None
        return str(folder.root if self.folder else folder.root / self.file_name)


@dataclass(frozen=True)
class Codes:
    """What a tensor is decoded from: the tensor with the codes, and how it is stored, in words."""

    tensor: str
    words: str


@dataclass(frozen=True)
class Files:
    """The open files of a checkpoint; a context manager that closes them.

    Attributes:
        place: Where they were found.
        shards: The files of weights.
        index: The index of a sharded checkpoint.
        config: The content of config.json.
        kind: What the tensors are.
        read_as: How tensor names are changed when they are read, in words.
        notes: What else the user should know about how they were found and are read, in words.
        decoded: The tensors that are read from codes, with these codes.
        tensors: Every tensor, in the order of the files and of the bytes in each.
    """

    place: Place
    shards: tuple[Shard, ...]
    index: Index | None = None
    config: Mapping[str, Any] | None = None
    kind: Kind = field(default_factory=Model)
    read_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decoded: Mapping[str, Codes] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        tensors: dict[str, TensorInfo] = {}
        for shard in self.shards:
            own = shard.header.tensors
            if not own.keys().isdisjoint(tensors.keys()):
                name = next(name for name in own if name in tensors)
                first = next(shard for shard in self.shards if name in shard.header.tensors)
                raise CheckpointError(
                    "the tensor is in two shards",
                    path=self.place.source,
                    tensor=name,
                    found=f"{first.name} and {shard.name}",
                )
            in_order = sorted(own.values(), key=attrgetter("start"))
            tensors.update((tensor.name, tensor) for tensor in in_order)
        object.__setattr__(self, "tensors", tensors)

    @property
    def bytes_read(self) -> int:
        """How many bytes have been read so far, headers included."""
        return sum(shard.file.bytes_read for shard in self.shards)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file has changed since it was opened."""
        for shard in self.shards:
            shard.file.check_unchanged()

    def close(self) -> None:
        """Close all files."""
        for shard in self.shards:
            shard.file.close()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def paths_of(files: Files) -> list[Path]:
    """The files of a checkpoint that are on this machine."""
    found = (file.path for shard in files.shards for file in stored_files(shard).values())
    return [path for path in found if path is not None]


def encodings_of(files: Files) -> dict[str, int]:
    """How the tensors are stored that are read from codes, in words, and how many are."""
    return dict(Counter(codes.words for codes in files.decoded.values()))


def metadata_of(files: Files) -> dict[str, str]:
    """The `__metadata__` of all files of a checkpoint."""
    return {name: text for shard in files.shards for name, text in (shard.header.metadata or {}).items()}
