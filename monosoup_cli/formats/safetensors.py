"""The safetensors format, whose header says where every tensor is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from monosoup_cli.formats.files import CheckpointFile, read_header
from monosoup_cli.formats.shard import Shard

__all__ = ["Safetensors"]


class Safetensors:
    """The safetensors format."""

    suffixes: ClassVar[Sequence[str]] = (".safetensors",)
    stems: ClassVar[Mapping[str, Sequence[str]]] = {".safetensors": ("model", "diffusion_pytorch_model")}

    def open(self, name: str, file: CheckpointFile, state_dict: str | None) -> Shard:
        """Read the header."""
        header = read_header(file)
        return Shard(name, file, header, len(header.raw))
