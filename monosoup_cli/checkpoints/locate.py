"""From what the user typed to a `Checkpoint`: its files, its tensors, its index.

Everything here is decided from names and headers; no byte of a tensor is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from monosoup_cli.checkpoints.files import InputFile, read_json
from monosoup_cli.checkpoints.header import Header, TensorInfo
from monosoup_cli.errors import CheckpointError, UsageError

__all__ = ["INDEX_SUFFIX", "OTHER_FORMATS", "Checkpoint", "Shard", "open_checkpoint", "resolve_inside"]

INDEX_SUFFIX = ".safetensors.index.json"
STEMS = ("model", "diffusion_pytorch_model")
SHARD_NAME = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors$")
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
ADAPTER_CONFIG = "adapter_config.json"

QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|absmax|quant_map|quant_state(\..+)?|SCB|weight_scale|weight_scale_inv|weight_packed)$"
)
"""The last components of names that GPTQ, AWQ, bitsandbytes, fp8 and compressed-tensors write."""


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint, open for reading."""

    name: str
    file: InputFile
    header: Header

    @property
    def header_sha256(self) -> str:
        return hashlib.sha256(self.header.raw).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, or of a folder's file or shards.

    `tensors` is in the order of the files, and in each of the bytes; `index` is the folder's
    parsed index, None without one. Use as a context manager: it holds open files.
    """

    source: str
    shards: tuple[Shard, ...]
    folder: Path | None = None
    index: Mapping[str, Any] | None = None
    index_name: str | None = None
    tensors: Mapping[str, TensorInfo] = field(init=False)
    shard_of: Mapping[str, Shard] = field(init=False)

    def __post_init__(self) -> None:
        placed: dict[str, tuple[TensorInfo, Shard]] = {}
        for shard in self.shards:
            for tensor in sorted(shard.header.tensors.values(), key=lambda tensor: tensor.start):
                if tensor.name in placed:
                    raise CheckpointError(
                        "stands in two shards", path=self.source, tensor=tensor.name,
                        found=f"{placed[tensor.name][1].name} and {shard.name}",
                    )  # fmt: skip
                placed[tensor.name] = (tensor, shard)
        object.__setattr__(self, "tensors", {name: tensor for name, (tensor, _) in placed.items()})
        object.__setattr__(self, "shard_of", {name: shard for name, (_, shard) in placed.items()})

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on."""
        shard = self.shard_of[name]
        start = len(shard.header.raw) + self.tensors[name].start
        shard.file.read_into(buffer, start + offset)

    def reader(self, name: str) -> Callable[[memoryview, int], None]:
        """`read_into` for one tensor that is read piece by piece."""
        shard = self.shard_of[name]
        start, read_into = len(shard.header.raw) + self.tensors[name].start, shard.file.read_into
        return lambda buffer, offset: read_into(buffer, start + offset)

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have the tensor, or its first `limit` bytes, at hand soon."""
        shard, tensor = self.shard_of[name], self.tensors[name]
        shard.file.prefetch(len(shard.header.raw) + tensor.start, min(tensor.nbytes, limit))

    @property
    def bytes_read(self) -> int:
        """Headers included, from all files, so far."""
        return sum(shard.file.bytes_read for shard in self.shards)

    def check_unchanged(self) -> None:
        for shard in self.shards:
            shard.file.check_unchanged()

    def close(self) -> None:
        for shard in self.shards:
            shard.file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a `.safetensors` file, or a folder with one such file or with an index and shards.

    Every header is read and validated. Raises CheckpointError.
    """
    source = os.fspath(source)
    if not source:
        raise UsageError("the path of a checkpoint is empty")
    path = Path(source)
    try:
        mode = path.stat().st_mode if path.exists() else 0
    except OSError as error:
        raise CheckpointError(f"cannot open: {error.strerror}", path=source) from None
    if stat.S_ISDIR(mode):
        return _open_folder(source, path)
    if not os.path.lexists(path):
        is_hub_id = source.startswith("hf://") or (HUB_ID.fullmatch(source) and not path.suffix)
        raise CheckpointError(
            "no such file or folder",
            path=source,
            hint="ids on the Hub are not read yet: download it first" if is_hub_id else None,
        )
    if path.name.endswith(INDEX_SUFFIX):
        raise CheckpointError("an index, not a checkpoint", path=source, hint="name its folder")
    if path.suffix in OTHER_FORMATS:
        raise CheckpointError("not a safetensors file", path=source, hint="convert it to safetensors")
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError("a link that leads nowhere", path=source) from None
    return _single(source, _open_shard(path.name, resolved, source))


def _open_folder(source: str, folder: Path) -> Checkpoint:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"cannot list: {error.strerror}", path=source) from None
    weights = [name for name in names if name.endswith(".safetensors")]
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if ADAPTER_CONFIG in names:
        raise CheckpointError(
            "a LoRA adapter, which this version does not read", path=source,
            hint="merge it into its base first",
        )  # fmt: skip
    _refuse_quantisation_config(folder, names)
    standard_indexes = [f"{stem}{INDEX_SUFFIX}" for stem in STEMS if f"{stem}{INDEX_SUFFIX}" in indexes]
    standard_files = [f"{stem}.safetensors" for stem in STEMS if f"{stem}.safetensors" in weights]
    candidates = [*standard_indexes, *standard_files] or indexes or weights
    if not candidates:
        other = next((name for name in names if name.endswith((*OTHER_FORMATS, ".gguf"))), None)
        found = f", only {other}" if other else ""
        raise CheckpointError(f"no safetensors file in this folder{found}", path=source)
    if len(candidates) > 1:
        raise CheckpointError(
            "more than one checkpoint in this folder, and loaders disagree which to take",
            path=source, found=", ".join(candidates[:4]), hint="name one file, or remove the others",
        )  # fmt: skip
    if candidates[0] in indexes:
        return _open_sharded(source, folder, candidates[0], weights)
    file = resolve_inside(folder, candidates[0])
    return _single(source, _open_shard(candidates[0], file), folder)


def _single(source: str, shard: Shard, folder: Path | None = None) -> Checkpoint:
    checkpoint = Checkpoint(source, (shard,), folder)
    try:
        _refuse_quantised(checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _open_sharded(source: str, folder: Path, index_name: str, weights: list[str]) -> Checkpoint:
    index_path = folder / index_name
    index = read_json(resolve_inside(folder, index_name), "index")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", path=index_path)
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError("the index's metadata must be an object", path=index_path)
    for name, shard_name in weight_map.items():
        if not _is_plain_name(shard_name) or not shard_name.endswith(".safetensors"):
            raise CheckpointError(
                "the index must name safetensors files in its own folder", path=index_path,
                tensor=name, found=repr(shard_name)[:200],
            )  # fmt: skip
    shard_names = sorted(set(weight_map.values()))
    for shard_name in shard_names:
        if shard_name not in weights:
            raise CheckpointError("a shard that the index names is missing", path=folder / shard_name)
    stem = index_name.removesuffix(INDEX_SUFFIX)
    for name in weights:
        if name.startswith(f"{stem}-") and SHARD_NAME.search(name) and name not in shard_names:
            raise CheckpointError(
                "a shard that the index does not name", path=folder / name,
                hint="it belongs to another checkpoint, or the index is stale",
            )  # fmt: skip
    shards: list[Shard] = []
    try:
        for shard_name in shard_names:
            shards.append(
                _open_shard(shard_name, resolve_inside(folder, shard_name), str(folder / shard_name))
            )
        checkpoint = Checkpoint(source, tuple(shards), folder, index, index_name)
        for name, shard in checkpoint.shard_of.items():
            if weight_map.get(name) != shard.name:
                raise CheckpointError(
                    "index and shards disagree on where it is", path=index_path, tensor=name,
                    expected=shard.name, found=weight_map.get(name, "nothing"),
                )  # fmt: skip
        for name in weight_map:
            if name not in checkpoint.tensors:
                raise CheckpointError(
                    "the index names a tensor that its shard has not", path=index_path, tensor=name,
                    found=weight_map[name],
                )  # fmt: skip
        _refuse_quantised(checkpoint)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise
    return checkpoint


def _open_shard(name: str, path: Path, shown: str | None = None) -> Shard:
    file = InputFile(path, shown)
    try:
        return Shard(name, file, file.header())
    except BaseException:
        file.close()
        raise


def _is_plain_name(name: object) -> bool:
    """A file name and nothing more, on every system."""
    return (
        isinstance(name, str)
        and name not in {"", ".", ".."}
        and "\0" not in name
        and name == PureWindowsPath(name).name
    )


def resolve_inside(folder: Path, name: str) -> Path:
    """The real path of a file in `folder`; a link may lead to the folder itself or, from a
    snapshot in the Hub's cache, to that cache's blobs, and nowhere else. Raises CheckpointError."""
    root = folder.resolve()
    allowed = [root]
    for each in (root, *root.parents):
        if each.parent.name == "snapshots" and each.parent.parent.name.startswith("models--"):
            repository, cache = each.parents[1], each.parents[2]
            allowed += [each, repository / "blobs", cache / "blobs"]
            break
    try:
        resolved = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError("a link that leads nowhere", path=folder / name) from None
    if not any(resolved.is_relative_to(place) for place in allowed):
        raise CheckpointError("a link that leads out of the folder", path=folder / name)
    return resolved


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    for name in checkpoint.tensors:
        if QUANTISED.search(name):
            raise CheckpointError(
                "the checkpoint is quantised: differences between codes mean nothing",
                path=checkpoint.source, tensor=name, hint="use the unquantised checkpoint",
            )  # fmt: skip


def _refuse_quantisation_config(folder: Path, names: list[str]) -> None:
    if "config.json" not in names:
        return
    config = read_json(resolve_inside(folder, "config.json"), "config")
    if isinstance(config, dict) and config.get("quantization_config"):
        raise CheckpointError(
            "the checkpoint is quantised (config.json has quantization_config): differences between"
            " codes mean nothing", path=folder / "config.json", hint="use the unquantised checkpoint",
        )  # fmt: skip
