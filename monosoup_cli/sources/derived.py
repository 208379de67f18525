"""A checkpoint some of whose tensors are made from others while they are read: decoded, or rearranged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from monosoup_cli.formats.files import Download
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.source import DENSE, Reader, Source, Update

__all__ = ["Derived", "Made", "ReadInto", "renamed"]

ReadInto = Callable[[memoryview, int], None]
"""Fills a buffer with the bytes of a tensor from an offset on."""


class Made(Protocol):
    """How one tensor is made from stored ones.

    Attributes:
        info: The name, the shape, and the dtype in which the tensor is written again.
        parts: The names of the stored tensors that are read.
    """

    @property
    def info(self) -> TensorInfo: ...

    @property
    def parts(self) -> Sequence[str]: ...

    def dtype(self, stored: Source) -> str:
        """The dtype in which the tensor is read, in the words of the format."""
        ...

    def open(self, stored: Source) -> ReadInto:
        """Begin to read the tensor in one thread. What the function holds is dropped with it."""
        ...

    def held_bytes(self, stored: Source) -> int:
        """How many bytes that function holds at most."""
        ...


class Derived:
    """The tensors of a checkpoint under other names, or made from several of them; a `Source`.

    Args:
        stored: The checkpoint that is read.
        tensors: Each tensor's name, mapped to the name of a stored one or to how it is made.
        files: The files with what is to be said about how they are read; None for those of `stored`.
    """

    def __init__(self, stored: Source, tensors: Mapping[str, str | Made], files: Files | None = None) -> None:
        self.path = stored.path
        self.files = stored.files if files is None else files
        self.tensors: Mapping[str, TensorInfo] = {
            name: stored.tensors[one] if isinstance(one, str) else one.info for name, one in tensors.items()
        }
        self._model = stored.model if files is None else files
        self._stored, self._made_of = stored, tensors
        self._reading = threading.local()

    @property
    def model(self) -> Files:
        """Those of what is read, or its own files."""
        return self._model

    def update(self, name: str) -> Update:
        """What is known of the update of a stored tensor; `DENSE` for one that is made."""
        made = self._made_of[name]
        return self._stored.update(made) if isinstance(made, str) else DENSE

    def reader(self, name: str) -> Reader:
        """Return a reader of the tensor in the dtype in which it is made."""
        made = self._made_of[name]
        if isinstance(made, str):
            return self._stored.reader(made)
        return Reader(made.dtype(self._stored), lambda buffer, offset: self._read(name, made, buffer, offset))

    def _read(self, name: str, made: Made, buffer: memoryview, offset: int) -> None:
        last = self._reading
        if getattr(last, "name", None) != name:  # each thread keeps what it holds of the last tensor
            last.read_into = last.name = None
            last.read_into, last.name = made.open(self._stored), name
        if len(buffer):
            last.read_into(buffer, offset)

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have a tensor's parts ready soon, unless they are much larger. Does not wait."""
        for part in self._parts(name):
            if self._stored.tensors[part].nbytes <= 2 * self.tensors[name].nbytes:
                self._stored.prefetch(part, limit)

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """List what must be downloaded to read the parts of these tensors."""
        if names is None:
            return self._stored.select(None)
        return self._stored.select(dict.fromkeys(part for name in names for part in self._parts(name)))

    def is_at_hand(self, name: str) -> bool:
        """Return whether all parts of the tensor are at hand."""
        return name in self._made_of and all(map(self._stored.is_at_hand, self._parts(name)))

    def _parts(self, name: str) -> Sequence[str]:
        made = self._made_of[name]
        return (made,) if isinstance(made, str) else made.parts

    @property
    def held_bytes(self) -> int:
        """What the largest of the made tensors takes, and what its parts take."""
        made = (one for one in self._made_of.values() if not isinstance(one, str))
        return max((one.held_bytes(self._stored) for one in made), default=0) + self._stored.held_bytes

    def forget(self) -> None:
        """Drop what the calling thread holds."""
        self._reading.__dict__.clear()
        self._stored.forget()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file has changed since it was opened."""
        self._stored.check_unchanged()


def renamed(stored: Source, names: Mapping[str, str], read_as: Sequence[str]) -> Derived:
    """Read a checkpoint under other names.

    Args:
        stored: The checkpoint.
        names: The new names, mapped to the present ones. A tensor that is not among them is left out.
        read_as: How the names differ, in words for the report.
    """
    return Derived(stored, names, replace(stored.files, read_as=(*stored.files.read_as, *read_as)))
