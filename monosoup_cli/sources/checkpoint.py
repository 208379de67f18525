"""A checkpoint of whole tensors, read from its own files."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial

from monosoup_cli.formats.files import Download
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.strided import contiguous
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.source import DENSE, Reader, Update

__all__ = ["Checkpoint"]

SMALL_SHARE = 0.5
"""If less than this share of a file on the Hub is needed, only parts of it are downloaded, and not cached."""


class Checkpoint:
    """The tensors of one file, or of all shards of a folder; a `Source`.

    Args:
        files: The open files.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.path = files.place.source
        self.tensors: Mapping[str, TensorInfo] = files.tensors
        self._shard_of = {name: shard for shard in files.shards for name in shard.header.tensors}
        self._left_on_hub: set[str] = set()
        self._in_order = threading.local()

    @property
    def model(self) -> Files:
        """Its own files."""
        return self.files

    def update(self, name: str) -> Update:
        """Return `DENSE`: nothing is known of the update of a whole tensor."""
        return DENSE

    def reader(self, name: str) -> Reader:
        """Return a reader of the bytes of a tensor."""
        shard, tensor = self._shard_of[name], self.tensors[name]
        if tensor.name in shard.strided:
            return Reader(tensor.dtype, partial(self._read_in_order, shard, tensor))
        start, read_into = shard.data_start + tensor.start, shard.file.read_into
        return Reader(
            tensor.dtype, lambda buffer, offset: read_into(buffer, start + offset), (shard.file, start)
        )

    def _read_in_order(self, shard: Shard, tensor: TensorInfo, buffer: memoryview, offset: int) -> None:
        """Read a tensor whose elements are not stored in order. Each thread caches the last one."""
        last = self._in_order
        if getattr(last, "tensor", None) is not tensor:
            last.data = None  # before the next one is made
            last.data = contiguous(shard.file, tensor, shard.strided[tensor.name])
            last.tensor = tensor
        buffer[:] = last.data[offset : offset + len(buffer)]

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have up to `limit` bytes of a tensor ready soon. Does not wait."""
        shard, tensor = self._shard_of[name], self.tensors[name]
        shard.file.prefetch(shard.data_start + tensor.start, min(tensor.nbytes, limit))

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """List the downloads that are needed to read some tensors.

        If little of a file is needed, only those parts are downloaded, and its other tensors are no longer
        at hand.

        Args:
            names: The tensors; None for all.
        """
        wanted: dict[str, list[TensorInfo]] = {shard.name: [] for shard in self.files.shards}
        for name in self.tensors if names is None else names:
            wanted[self._shard_of[name].name].append(self.tensors[name])
        self._left_on_hub.clear()
        downloads: list[Download] = []
        for shard in self.files.shards:
            tensors = wanted[shard.name]
            is_little = sum(tensor.nbytes for tensor in tensors) < SMALL_SHARE * shard.file.nbytes
            needs_whole_file = any(tensor.name in shard.strided for tensor in tensors)
            if names is None or not is_little or needs_whole_file:
                downloads += shard.file.select(None)
                continue
            start = shard.data_start
            downloads += shard.file.select([(start + one.start, start + one.stop) for one in tensors])
            if shard.file.is_remote:
                self._left_on_hub.update(shard.header.tensors.keys() - {tensor.name for tensor in tensors})
        return downloads

    def is_at_hand(self, name: str) -> bool:
        """Return whether the tensor exists and `select` did not leave it on the Hub."""
        return name in self.tensors and self.tensors[name].name not in self._left_on_hub

    @property
    def held_bytes(self) -> int:
        """What reading the largest strided tensor takes: its elements in order, and as stored."""
        return max(
            (
                shard.header.tensors[name].nbytes + strided.span
                for shard in self.files.shards
                for name, strided in shard.strided.items()
            ),
            default=0,
        )

    def forget(self) -> None:
        """Drop the tensor that the calling thread caches."""
        self._in_order.__dict__.clear()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file has changed since it was opened."""
        self.files.check_unchanged()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()
