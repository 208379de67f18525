"""Checkpoints in several files: by their index, or by the numbers in their names."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.header import AGAIN
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.table import METADATA, STEMS, WEIGHTS, open_shard
from monosoup_cli.sources.files import Files, Index, Place
from monosoup_cli.sources.folders import Folder, is_offline, is_plain_name, not_cached, read_config
from monosoup_cli.sources.library_files import SHARD

__all__ = [
    "file_of_index",
    "index_of_file",
    "numbered",
    "open_indexed",
    "open_numbered",
    "refuse_rank_file",
    "refuse_rank_files",
    "several",
    "variant_of",
]

INDEX = re.compile(r"(?P<stem>.*)\.(?P<suffix>\w+)\.index(?P<variant>\.[\w-]+)?\.json")
NUMBERED = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d{1,6})[-_]of[-_](?P<count>\d{1,6})(?P<suffix>\.\w+)")
AT_ONCE = 8
"""How many headers of shards are read at once."""
LONG = 1e-3
"""How many seconds of waiting for one shard make that worth it: threads share the interpreter."""

RANK_FILES = (
    (
        re.compile(r"(model|optim|extra_state)_world_size_\d+_rank_\d+\.pt"),
        "verl's files of an FSDP run, each with one rank's part of every tensor",
        "merge them: python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir NEW",
    ),
    (
        re.compile(r"consolidated\.\d\d\.pth"),
        "Meta's files for several cards, each with a part of every matrix",
        "use the same model in Hugging Face's format, or convert it with convert_llama_weights_to_hf.py of"
        " transformers' repository",
    ),
    (
        re.compile(r"(zero_pp_rank|bf16_zero_pp_rank)_\d+_mp_rank_\d\d_(model|optim)_states\.pt"),
        "DeepSpeed's files of a ZeRO run, each with one rank's part of the weights",
        "gather them, in the folder above: python zero_to_fp32.py . NEW",
    ),
    (
        re.compile(r"zero_to_fp32\.py"),
        "a checkpoint of DeepSpeed, whose weights are in the parts of its ranks",
        "gather them, in this folder: python zero_to_fp32.py . NEW",
    ),
    (
        re.compile(r"mp_rank_\d\d(_\d{3})*(_model_states\.pt)?|model(_optim)?_rng\.pt|iter_\d{7}|common\.pt"),
        "a checkpoint of Megatron, with parts of every matrix",
        "export it to Hugging Face's format, with Megatron Bridge (AutoBridge.export_ckpt) or the program"
        " that trained it",
    ),
    (
        re.compile(r".*\.distcp|\.metadata"),
        "a file of a distributed checkpoint of torch (DCP), with parts of every tensor",
        "pass its folder: {folder}",
    ),
    (
        re.compile(r"pytorch_model_fsdp_\d+"),
        "a checkpoint of accelerate's FSDP, with parts of every tensor",
        "pass that folder: {folder}/{first}",
    ),
    (
        re.compile(r"model-rank-\d+-part-\d+\.safetensors"),
        "vLLM's sharded state, with one card's part of every matrix in each file",
        "use the model that it was made from",
    ),
)
"""Sets of files that are no shards, by the names of their files: no file of them is a whole checkpoint, and
together they are none as they are. What they are, and what makes a checkpoint of them."""


def file_of_index(name: str) -> str | None:
    """The file that an index stands for, model.fp16.safetensors for model.safetensors.index.fp16.json.

    None if the name is not that of an index.
    """
    found = INDEX.fullmatch(name)
    return None if found is None else f"{found['stem']}{found['variant'] or ''}.{found['suffix']}"


def index_of_file(name: str) -> str:
    """The name under which transformers and diffusers look for the index: a variant stands behind."""
    variant = variant_of(name)
    if not variant:
        return f"{name}.index.json"
    stem, _, suffix = name.rpartition(".")
    return f"{stem.removesuffix(f'.{variant}')}.{suffix}.index.{variant}.json"


def variant_of(name: str) -> str:
    """The variant in a name that libraries look for, "fp16" in model.fp16.safetensors; "" without one."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    known, _, variant = stem.partition(".")
    return variant if known in STEMS.get(dot + suffix, ()) else ""


def refuse_rank_files(folder: Folder, inner: str, names: Sequence[str], weights: Sequence[str]) -> None:
    """Raise CheckpointError if the files of a folder are the parts of ranks of a run.

    Args:
        folder: The folder.
        inner: The part of it.
        names: What is in it.
        weights: The files that a model may be loaded from.
    """
    for pattern, what, hint in RANK_FILES:
        found = [name for name in names if pattern.fullmatch(name) and name != METADATA]
        if found and (not weights or (len(weights) > 1 and set(weights) <= set(found))):
            place = shlex.quote(folder.shown(inner.rstrip("/")) if inner else folder.source)
            raise CheckpointError(
                what, path=folder.source, found=several(found), hint=hint.format(folder=place, first=found[0])
            )


def refuse_rank_file(path: str, beside: Callable[[str], Sequence[str]]) -> None:
    """Raise CheckpointError if a file alone is one rank's part of a run.

    It is where files of other ranks stand beside it, and where its name tells of others. The only file, of
    the first rank, may be a whole checkpoint if it is of a format that is read.

    Args:
        path: The path of the file, for messages too.
        beside: The names in a folder.
    """
    folder, _, name = path.rpartition("/")
    may_be_whole = name.endswith(WEIGHTS)
    above, _, inside = folder.rpartition("/")
    for pattern, what, hint in RANK_FILES:
        if not pattern.fullmatch(name):
            continue
        if pattern.fullmatch(inside):  # Megatron has one file in the folder of every rank
            name, folder = inside, above
        found = [one for one in beside(folder) if pattern.fullmatch(one)]
        if not may_be_whole or len(found) > 1 or re.search("[1-9]", name.replace("world_size_1_", "")):
            place = shlex.quote(folder or ".")
            raise CheckpointError(what, path=path, hint=hint.format(folder=place, first=name))


def numbered(names: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """Recognise shards that are numbered.

    Returns:
        Their stem and suffix, and the names that are missing; None for any other set of files, and for the
        only file of a checkpoint.
    """
    found = [match for name in names if (match := NUMBERED.fullmatch(name))]
    sets = {(match["stem"], match["count"], match["suffix"]) for match in found}
    if len(found) != len(names) or len(sets) != 1 or int(found[0]["count"]) < 2:
        return None
    [(stem, count, suffix)] = sets
    present = {int(match["number"]): match["number"] for match in found}
    first = 0 if 0 in present else 1
    missing = [number for number in range(first, first + int(count)) if number not in present]
    start, width = found[0].start("number"), len(found[0]["number"])
    name = found[0].string
    return (stem, suffix, [f"{name[:start]}{number:0{width}}{name[start + width :]}" for number in missing])


def open_numbered(
    folder: Folder, inner: str, names: Sequence[str], config: Mapping[str, Any] | None, state_dict: str | None
) -> Files | None:
    """Open numbered shards without an index, as if they had one. Return None if the files are none.

    Raises:
        CheckpointError: A shard is missing.
    """
    recognised = numbered(names)
    if recognised is None:
        return None
    stem, suffix, missing = recognised
    if missing:
        raise CheckpointError(
            f"shards are missing: {several(missing)}",
            path=folder.source,
            found=several(sorted(names)),
            hint="download or copy the checkpoint again",
        )
    shards = open_shards(folder, [f"{inner}{name}" for name in sorted(names)], state_dict)
    weight_map = {name: shard.name.removeprefix(inner) for shard in shards for name in shard.header.tensors}
    index = Index(index_of_file(f"{inner}{stem}{suffix}"), {"weight_map": weight_map})
    note = f"{len(names)} numbered shards without an index are read together"
    return _closed_on_error(Place(folder.source, folder, inner), shards, index, config, (note,))


def open_indexed(
    folder: Folder,
    inner: str,
    index_name: str,
    names: Collection[str],
    config: Mapping[str, Any] | None,
    state_dict: str | None,
) -> Files:
    """Open the shards that an index names, all of whose tensors are read, as transformers reads them.

    Raises:
        CheckpointError: The index is malformed, or a shard that it names is missing.
    """
    index_path = folder.shown(f"{inner}{index_name}")
    folder.nbytes(f"{inner}{index_name}")  # another copy is of no help to whom it is closed
    try:
        index = read_config(folder, f"{inner}{index_name}")
    except CheckpointError as error:
        error.hint = error.hint or AGAIN
        raise
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", path=index_path, hint=AGAIN)
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError("the index's metadata must be an object", path=index_path)
    stem, dot, suffix = (file_of_index(index_name) or "").rpartition(".")
    suffix = dot + suffix
    named = {one for one in weight_map.values() if isinstance(one, str)}
    plain = {one for one in named if is_plain_name(one) and one.endswith(suffix)}
    if named != plain or not all(isinstance(one, str) for one in weight_map.values()):
        name = next(name for name, one in weight_map.items() if not isinstance(one, str) or one not in plain)
        raise CheckpointError(
            f"the index must name {suffix[1:]} files in its own folder",
            path=index_path,
            tensor=name,
            found=repr(weight_map[name])[:200],
        )
    shard_names = sorted(plain)
    missing = [name for name in shard_names if name not in names]
    if missing and is_offline(folder):
        raise not_cached(folder.source)
    if missing:
        raise CheckpointError(
            "a shard that the index names is missing",
            path=folder.shown(f"{inner}{missing[0]}"),
            hint="download or copy the missing shard" if os.path.lexists(folder.source) else None,
        )
    unnamed = [
        name
        for name in sorted(names)
        if name.startswith(f"{stem}-")
        and name.endswith(suffix)
        and SHARD.search(name)
        and name not in shard_names
    ]
    shards = open_shards(folder, [f"{inner}{name}" for name in shard_names], state_dict)
    stored: dict[str, str] = {}
    for shard in shards:
        stored |= dict.fromkeys(shard.header.tensors, shard.name.removeprefix(inner))
    differences = _differences(weight_map, stored)
    if unnamed:
        differences = {"files that the index does not name are not read": unnamed, **differences}
    notes = tuple(f"{what}: {several(found)}" for what, found in differences.items())
    place = Place(folder.source, folder, inner)
    return _closed_on_error(place, shards, Index(f"{inner}{index_name}", index), config, notes)


def _differences(said: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, list[str]]:
    """The tensors of which an index says something else than its shards: what it is, and their names."""
    if said == stored:
        return {}
    found = {
        "the index names tensors that are in none of its shards": [
            name for name in said if name not in stored
        ],
        "tensors of the shards that the index leaves out are read all the same": [
            name for name in stored if name not in said
        ],
        "tensors are in another shard than the index says, and are read there": [
            name for name, shard in stored.items() if said.get(name, shard) != shard
        ],
    }
    return {what: names for what, names in found.items() if names}


def _closed_on_error(
    place: Place,
    shards: tuple[Shard, ...],
    index: Index,
    config: Mapping[str, Any] | None,
    notes: tuple[str, ...],
) -> Files:
    """Make the files of a checkpoint, or close them if they cannot be one."""
    try:
        return Files(place, shards, index, config, notes=notes)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise


def open_shards(folder: Folder, names: Sequence[str], state_dict: str | None) -> tuple[Shard, ...]:
    """Open all shards or none; several at once where opening is mostly waiting for a disk or the Hub."""

    def opened(name: str) -> Shard | BaseException:
        try:
            return open_shard(name, folder.open(name), state_dict)
        except BaseException as error:
            return error

    before = time.perf_counter() - time.thread_time()
    found = [opened(names[0])]
    waited = time.perf_counter() - time.thread_time() - before
    with ThreadPoolExecutor(AT_ONCE if waited > LONG else 1) as pool:
        found += pool.map(opened, names[1:])
    shards = [one for one in found if isinstance(one, Shard)]
    failure = next((one for one in found if isinstance(one, BaseException)), None)
    if failure is not None:
        for shard in shards:
            shard.file.close()
        raise failure
    return tuple(shards)


def several(names: Sequence[str]) -> str:
    """A few of these names, for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(crop(name) for name in names[:4]) + more
