"""What a checkpoint's folder holds besides the weights that are edited: configuration, tokenizer, licence,
and the other parts of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.sources.folders import Folder
from monosoup_cli.sources.locate import parts_of

__all__ = ["side_files"]

INDEX = re.compile(r"\.index(\.\w+)?\.json$")
OTHER_FORMATS = (
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ot",
    ".tflite",
    ".npz",
    ".pkl",
    ".pickle",
    ".nemo",
)
LEFT_BEHIND = {"README.md", "monosoup_report.json", "trainer_state.json"}
MAX_SIDE_FILE_BYTES = 256 << 20
MAX_ENTRIES = 100_000


def side_files(folder: Folder, inner: str) -> Iterator[str]:
    """The name of every file that belongs beside new weights in `inner` ("" or "unet/").

    Left behind: other weights, training state, hidden files and folders, `checkpoint-*` and
    `original`, files over 256 MiB, and the model card, which the output writes anew. The other
    parts of a pipeline are carried with their weights, in one format. Raises CheckpointError for
    links that lead out of the folder.
    """
    parts = set(parts_of(folder)) - {"", inner.rstrip("/")}
    for number, name in enumerate(_walk(folder, "", parts, is_part=False)):
        if number >= MAX_ENTRIES:  # links among folders can make few files look like many
            raise CheckpointError("holds too many files", path=folder.source)
        if name is not None:
            yield name


def _walk(folder: Folder, inner: str, parts: set[str], *, is_part: bool) -> Iterator[str | None]:
    """The names, and None for what is left behind."""
    names = folder.names(inner)
    carried = _weights(names) if is_part else ()
    for name in names:
        yield None
        relative = f"{inner}/{name}" if inner else name
        if name.startswith((".", "events.out.")) or name in LEFT_BEHIND:
            continue
        is_of_weights = name.endswith((*WEIGHTS, *OTHER_FORMATS)) or INDEX.search(name)
        if is_of_weights and name not in carried:
            continue
        if folder.is_folder(relative):
            if name != "original" and not name.startswith("checkpoint-"):
                yield from _walk(folder, relative, parts, is_part=is_part or relative in parts)
        elif folder.nbytes(relative) <= MAX_SIDE_FILE_BYTES or name in carried:
            yield relative


def _weights(names: Sequence[str]) -> list[str]:
    """The weights of one format, safetensors where they exist, and their index."""
    for suffix in WEIGHTS:
        found = [name for name in names if name.endswith((suffix, f"{suffix}.index.json"))]
        if found:
            return found
    return []
