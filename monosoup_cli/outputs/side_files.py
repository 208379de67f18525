"""The other files of a checkpoint's folder: configuration, tokenizer, licence, other parts of a pipeline."""

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
    """List the files to copy along with new weights.

    This leaves out other weights, training state, hidden files and folders, `checkpoint-*` and `original`,
    files over 256 MiB, and the model card, since the output has its own. The other parts of a pipeline are
    copied with their weights, in one format.

    Args:
        folder: The checkpoint's folder.
        inner: The part of it that the new weights belong to: "" or, in a pipeline, "unet/".

    Yields:
        The name of each file, relative to the folder.

    Raises:
        CheckpointError: A link leads out of the folder, or there are too many files.
    """
    parts = set(parts_of(folder)) - {"", inner.rstrip("/")}
    for number, name in enumerate(_walk(folder, "", parts, is_part=False)):
        if number >= MAX_ENTRIES:  # through links between folders, a few files can appear many times
            raise CheckpointError("contains too many files", path=folder.source)
        if name is not None:
            yield name


def _walk(folder: Folder, inner: str, parts: set[str], *, is_part: bool) -> Iterator[str | None]:
    """Yield None for every entry, and the name of each file to copy."""
    names = folder.names(inner)
    carried = _weights(names) if is_part else ()
    for name in names:
        yield None
        relative = f"{inner}/{name}" if inner else name
        if name.startswith((".", "events.out.")) or name in LEFT_BEHIND:
            continue
        is_weights = name.endswith((*WEIGHTS, *OTHER_FORMATS)) or INDEX.search(name)
        if is_weights and name not in carried:
            continue
        if folder.is_folder(relative):
            if name != "original" and not name.startswith("checkpoint-"):
                yield from _walk(folder, relative, parts, is_part=is_part or relative in parts)
        elif folder.nbytes(relative) <= MAX_SIDE_FILE_BYTES or name in carried:
            yield relative


def _weights(names: Sequence[str]) -> list[str]:
    """The weights of one format, with their index: safetensors if there are any."""
    for suffix in WEIGHTS:
        weights = [name for name in names if name.endswith((suffix, f"{suffix}.index.json"))]
        if weights:
            return weights
    return []
