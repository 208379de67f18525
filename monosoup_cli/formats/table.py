"""The file formats of weights, in the order in which a folder is searched for them."""

from __future__ import annotations

import sys

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.safetensors import Safetensors
from monosoup_cli.formats.shard import Format, Shard
from monosoup_cli.formats.state_dict import StateDicts

__all__ = ["CHUNKS", "FORMATS", "METADATA", "STEMS", "WEIGHTS", "is_standard", "open_shard"]

FORMATS: tuple[Format, ...] = (Safetensors(), StateDicts())

WEIGHTS = tuple(suffix for one in FORMATS for suffix in one.suffixes)
"""The suffixes of files of weights."""

METADATA, CHUNKS = ".metadata", ".distcp"
"""What describes a distributed checkpoint of torch, and the suffix of what has its tensors."""

STEMS = {suffix: stems for one in FORMATS for suffix, stems in one.stems.items()}
"""The names that libraries give to the weights of a model, without the suffix, by suffix."""


def is_standard(name: str) -> bool:
    """Whether a file is weights of a model by its name, and not some pickle that a run left."""
    is_named = name.startswith(tuple(STEMS[".bin"])) and name.endswith((*WEIGHTS, ".index.json"))
    return is_named or name.endswith(WEIGHTS[0])


def open_shard(name: str, file: CheckpointFile, state_dict: str | None = None) -> Shard:
    """Open a file of weights in the format of its suffix, by default as safetensors. Closes it on an error.

    Args:
        name: Its name in the folder.
        file: The file.
        state_dict: Which state dict of a file that has several; None for the usual one.

    Raises:
        CheckpointError: The file is malformed, or not of that format; or numbers are big-endian here.
    """
    chosen = next((one for one in FORMATS if name.endswith(tuple(one.suffixes))), FORMATS[0])
    try:
        if sys.byteorder != "little":
            raise CheckpointError("little-endian, and cannot be read on this machine", path=file.shown)
        return chosen.open(name, file, state_dict)
    except BaseException:
        file.close()
        raise
