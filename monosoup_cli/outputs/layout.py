"""The place of every byte of the output, known before the first one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from monosoup_cli.formats.header import BITS, FLOATING, Header, TensorInfo, build_header
from monosoup_cli.formats.shard import Shard
from monosoup_cli.outputs.hashes import has_hashes, with_unknown_hashes
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.shards import file_of_index, index_of_file, variant_of

__all__ = ["OutputFile", "OutputLayout", "Sealed", "plan_layout", "written_dtype"]

OF_CHUNKS = 5_000_000_000
"""How large shards are of a checkpoint that was in chunks, and so has no shards of its own."""
STEM = re.compile(r"^(open_clip_)?pytorch_model(?=[.-]|$)")
"""The stem of state dicts in transformers and open_clip; diffusers uses the same stem for both formats."""
OF_CODES = "_quantization_metadata"
"""The key of `__metadata__` under which ComfyUI says which tensors are codes."""


class Sealed(NamedTuple):
    """For each folder, the name, the size in bytes and the SHA-256 of weights, and of other files."""

    weights: dict[str, list[dict[str, Any]]]
    others: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class OutputFile:
    """A safetensors file that will be written: its name inside OUT and its header."""

    name: str
    header: Header

    @property
    def nbytes(self) -> int:
        return len(self.header.raw) + self.header.data_bytes


@dataclass(frozen=True)
class OutputIndex:
    """Which shard has which tensor, as libraries look for it."""

    name: str
    content: Mapping[str, Any]

    @property
    def text(self) -> bytes:
        """The JSON, indented as transformers writes it."""
        return (json.dumps(self.content, indent=2, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class OutputLayout:
    """The files of the output, and its index if it is in shards.

    Attributes:
        files: The files, in the order of the shards.
        index: The index; None without shards.
        is_single_file: Whether OUT itself is the file.
    """

    files: tuple[OutputFile, ...]
    index: OutputIndex | None
    is_single_file: bool

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def names(self) -> set[str]:
        """The names of the files and the index."""
        index = set() if self.index is None else {self.index.name}
        return {file.name for file in self.files} | index

    def places(self) -> dict[str, tuple[OutputFile, TensorInfo]]:
        """For each tensor, its file and its place in that file."""
        return {tensor.name: (file, tensor) for file in self.files for tensor in file.header.tensors.values()}


def plan_layout(
    model: Files,
    dtypes: Mapping[str, str],
    output_name: str,
    max_shard_bytes: int | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> OutputLayout:
    """Lay out the output.

    An OUT that ends in .safetensors is one file. A folder has the same shards as the model. A header is
    copied byte for byte if neither its tensors nor their dtypes change.

    Args:
        model: The files whose tensors, names and metadata the output has.
        dtypes: For each tensor, the dtype in which it is stored, as safetensors names it. Other tensors of
            the model, such as the scales of tensors that are decoded, are left out.
        output_name: The last component of OUT.
        max_shard_bytes: Pack the tensors into new shards of at most this size; None keeps the shards.
        shapes: The shapes of tensors where they are not those of the model's, and of tensors that it does not
            have. These are in the last shard, or in the one that has their codes.
    """
    model = _with_shapes(model, shapes or {}, dtypes)
    if output_name.endswith(".safetensors"):
        return OutputLayout((_one_file(model, dtypes, output_name),), None, True)
    stem = _stem(model)
    if max_shard_bytes is None and model.index is None:
        max_shard_bytes = OF_CHUNKS if model.shards[0].chunks else None
    if max_shard_bytes is not None:
        groups = _groups(model, dtypes, max_shard_bytes)
        names = [f"{stem}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
        if len(groups) > 1:
            metadata = model.shards[0].header.metadata
            files = tuple(
                OutputFile(name, _header(_aligned(group), metadata))
                for name, group in zip(names, groups, strict=True)
            )
            return OutputLayout(files, _index(model, stem, files), False)
    if model.index is None or max_shard_bytes is not None:
        return OutputLayout((_one_file(model, dtypes, f"{stem}.safetensors"),), None, False)
    files = tuple(_copy_of(_as_safetensors(shard.name), shard, dtypes) for shard in model.shards)
    return OutputLayout(files, _index(model, stem, files), False)


def written_dtype(model: Files, layout: OutputLayout) -> str | None:
    """The dtype, in torch's words, of the tensors in a layout that are decoded; None if none are."""
    if not model.decoded:
        return None
    dtypes = {tensor.dtype for name, (_, tensor) in layout.places().items() if name in model.decoded}
    return next((name for dtype, name in FLOATING.items() if dtype in dtypes), None)


def _with_shapes(model: Files, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> Files:
    """The files as they would be with tensors of these shapes, which are no longer to be read."""
    holders = {name: codes.tensor for name, codes in model.decoded.items()}
    homes = {name: number for number, shard in enumerate(model.shards) for name in shard.header.tensors}
    last, shards = len(model.shards) - 1, []
    added: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if name not in homes:
            home = homes.get(holders.get(name, ""), last)
            added.setdefault(home, []).append((name, dtypes[name], shape))
    for number, shard in enumerate(model.shards):
        tensors = sorted(shard.header.tensors.values(), key=lambda tensor: tensor.start)
        old = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
        new = [(name, dtype, shapes.get(name, shape)) for name, dtype, shape in old if name in dtypes]
        new += added.get(number, ())
        if old and not new:  # it has nothing but scales
            continue
        metadata = shard.header.metadata
        if metadata and model.decoded:
            metadata = {name: text for name, text in metadata.items() if name != OF_CODES}
        is_same = new == old and metadata == shard.header.metadata
        header = shard.header if is_same else _header(_aligned(new), metadata)
        shards.append(replace(shard, header=header))
    return replace(model, shards=tuple(shards))


def _stem(model: Files) -> str:
    """The stem that the folder's loader looks for, after the part of the folder that it is in.

    A single file may have any name; it becomes "model".
    """
    if model.index is not None:
        file = file_of_index(model.index.name) or model.index.name
        return _as_safetensors(file).removesuffix(".safetensors")
    if model.place.folder is None:
        return "model"
    shard = model.shards[0]
    stem = _as_safetensors(shard.name).removesuffix(".safetensors")
    is_known = shard.is_safetensors or stem.endswith("model") or variant_of(shard.name)
    return stem if is_known else f"{model.place.inner}model"


def _as_safetensors(name: str) -> str:
    """The name under which libraries look for a file of weights in the safetensors format."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.rpartition(".")
    if suffix == "safetensors":
        return name
    stem = STEM.sub(r"\1model", stem)
    return f"{folder}{slash}{stem}.safetensors"


def _one_file(model: Files, dtypes: Mapping[str, str], name: str) -> OutputFile:
    if len(model.shards) == 1:
        return _copy_of(name, model.shards[0], dtypes)
    tensors = [(tensor.name, dtypes[tensor.name], tensor.shape) for tensor in model.tensors.values()]
    return OutputFile(name, _header(_aligned(tensors), model.shards[0].header.metadata))


def _copy_of(name: str, shard: Shard, dtypes: Mapping[str, str]) -> OutputFile:
    tensors = sorted(shard.header.tensors.values(), key=lambda tensor: tensor.start)
    metadata = shard.header.metadata
    entries = [(tensor.name, dtypes[tensor.name], tensor.shape) for tensor in tensors]
    if shard.is_safetensors and all(tensor.dtype == dtypes[tensor.name] for tensor in tensors):
        return OutputFile(name, _header(entries, metadata) if has_hashes(metadata) else shard.header)
    return OutputFile(name, _header(_aligned(entries), metadata))


Entries = Sequence[tuple[str, str, tuple[int, ...]]]


def _header(entries: Entries, metadata: Mapping[str, str] | None) -> Header:
    """A new header with the metadata of an old one. Libraries refuse a file without a format."""
    return build_header(entries, {"format": "pt"} | with_unknown_hashes(metadata))


def _aligned(tensors: Entries) -> Entries:
    """Sort wide elements first, so that every tensor starts at a multiple of its element size."""
    return sorted(tensors, key=lambda tensor: -BITS[tensor[1]])


def _groups(
    model: Files, dtypes: Mapping[str, str], max_shard_bytes: int
) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    """Pack tensors, in order, into shards of at most that many bytes; a larger tensor has its own."""
    groups: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for tensor in model.tensors.values():
        nbytes = tensor.elements * BITS[dtypes[tensor.name]] // 8
        if groups[-1] and filled + nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((tensor.name, dtypes[tensor.name], tensor.shape))
        filled += nbytes
    return groups


def _index(model: Files, stem: str, files: Sequence[OutputFile]) -> OutputIndex:
    old: Mapping[str, Any] = {} if model.index is None else model.index.content
    weight_map = {
        tensor: file.name.removeprefix(model.place.inner) for file in files for tensor in file.header.tensors
    }
    if old.get("weight_map") == weight_map:
        weight_map = old["weight_map"]  # keeps its order
    total_bytes = sum(file.header.data_bytes for file in files)
    metadata = {**old.get("metadata", {}), "total_size": total_bytes}
    content = {**old, "metadata": metadata, "weight_map": weight_map}
    return OutputIndex(index_of_file(f"{stem}.safetensors"), content)
