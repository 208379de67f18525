"""One file of weights, open: what every format makes of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.header import Header
from monosoup_cli.formats.strided import Strided

__all__ = ["Format", "Shard"]


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, open for reading.

    Attributes:
        name: Its name in the folder.
        file: The file.
        header: Its tensors. `header.raw` is everything in the file that says what they are.
        data_start: The byte of the file from which the offsets of its tensors count.
        is_safetensors: Whether the header can be copied into a safetensors file as it is.
        strided: The tensors whose elements are not stored in order.
        tied: The tensors that share all elements with an earlier one, which this maps to.
        left_out: What the file has besides tensors, by name.
    """

    name: str
    file: CheckpointFile
    header: Header
    data_start: int
    is_safetensors: bool = True
    strided: Mapping[str, Strided] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def header_sha256(self) -> str:
        """The SHA-256 of the header, in hexadecimal."""
        return hashlib.sha256(self.header.raw).hexdigest()


class Format(Protocol):
    """A format of files of weights. Each is one file of this room, and one line in `table.py`.

    Attributes:
        suffixes: How names of its files end.
        stems: What libraries call the weights of a model, for each suffix.
    """

    suffixes: ClassVar[Sequence[str]]
    stems: ClassVar[Mapping[str, Sequence[str]]]

    def open(self, name: str, file: CheckpointFile) -> Shard:
        """Read what the file says of its tensors, but none of their bytes.

        Raises:
            CheckpointError: The file is malformed, or not of this format.
        """
        ...
