"""What a checkpoint's folder holds besides weights: configuration, tokenizer, licence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from monosoup_cli.checkpoints.locate import resolve_inside
from monosoup_cli.errors import CheckpointError

__all__ = ["side_files"]

WEIGHT_SUFFIXES = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx",
    ".onnx_data", ".gguf", ".ot", ".tflite", ".npz", ".pkl", ".pickle", ".nemo",
)  # fmt: skip
LEFT_BEHIND = {"README.md", "monosoup_report.json", "trainer_state.json"}
MAX_SIDE_FILE_BYTES = 256 << 20


def side_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name inside the folder, real path) of every file that belongs beside new weights.

    Left behind: other weights, training state, hidden files and folders, `checkpoint-*` and
    `original`, files over 256 MiB, and the model card, which the output writes anew. Raises
    CheckpointError for links that lead out of the folder.
    """
    yield from _walk(folder, "", frozenset())


def _walk(root: Path, inner: str, seen: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    real_folder = resolve_inside(root, inner or ".")
    if real_folder in seen:
        return
    try:
        names = sorted(os.listdir(real_folder))
    except OSError as error:
        raise CheckpointError(f"cannot list: {error.strerror}", path=root / inner) from None
    for name in names:
        relative = f"{inner}/{name}" if inner else name
        if name.startswith((".", "events.out.")) or name in LEFT_BEHIND:
            continue
        if name.endswith(WEIGHT_SUFFIXES):
            continue
        path = resolve_inside(root, relative)
        if path.is_dir():
            if name != "original" and not name.startswith("checkpoint-"):
                yield from _walk(root, relative, seen | {real_folder})
        elif not os.access(path, os.R_OK):
            raise CheckpointError("cannot be read", path=root / relative)
        elif not path.is_file():
            raise CheckpointError("not a regular file", path=root / relative)
        elif path.stat().st_size <= MAX_SIDE_FILE_BYTES:
            yield relative, path
