"""One open file of weights, and the interface of file formats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.header import Header
from monosoup_cli.formats.strided import Strided

__all__ = ["Format", "Shard", "stored_files"]


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, open for reading.

    Attributes:
        name: Its name in the folder.
        file: The file.
        header: Its tensors. `header.raw` is everything in the file that describes them.
        data_start: The byte of the file from which the offsets of its tensors are counted.
        is_safetensors: Whether the header can be copied into a safetensors file unchanged.
        strided: The tensors whose elements are not stored in order.
        tied: The names of tensors that share all elements with an earlier one, mapped to its name.
        left_out: The names of what the file has besides tensors.
        notes: What the user should know about what was read, in words.
        state_dicts: Where the tensors are in a file that may have several state dicts, and where others are.
        chunks: The files that have its tensors, by name, where `file` stands for several.
    """

    name: str
    file: CheckpointFile
    header: Header
    data_start: int
    is_safetensors: bool = True
    strided: Mapping[str, Strided] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    state_dicts: tuple[str, ...] = ()
    chunks: Mapping[str, CheckpointFile] = field(default_factory=dict)

    @property
    def header_sha256(self) -> str:
        """The SHA-256 of the header, in hexadecimal."""
        return hashlib.sha256(self.header.raw).hexdigest()


def stored_files(shard: Shard) -> Mapping[str, CheckpointFile]:
    """The files on the disk or on the Hub that have a shard's bytes, by name."""
    return shard.chunks or {shard.name: shard.file}


class Format(Protocol):
    """A file format of weights. To add one, write a module and add a line to `table.py`.

    Attributes:
        suffixes: The suffixes of its files.
        stems: The names that libraries give to the weights of a model, by suffix.
    """

    suffixes: ClassVar[Sequence[str]]
    stems: ClassVar[Mapping[str, Sequence[str]]]

    def open(self, name: str, file: CheckpointFile, state_dict: str | None) -> Shard:
        """Read the description of the tensors in a file, but none of their bytes.

        Args:
            name: Its name in the folder.
            file: The file.
            state_dict: Which state dict of a file that has several; None for the usual one. Formats of one
                set of tensors ignore it.

        Raises:
            CheckpointError: The file is malformed, or not of this format.
        """
        ...
