"""Find and open the checkpoint that the user typed, on the disk or on the Hub.

Only names and headers are read; no byte of a tensor is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.formats.files import InputFile
from monosoup_cli.formats.foreign import OTHER_SUFFIXES, recognise
from monosoup_cli.formats.header import AGAIN
from monosoup_cli.formats.other_adapters import refuse_other_settings
from monosoup_cli.formats.table import CHUNKS, METADATA, STEMS, WEIGHTS, is_standard, open_shard
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.files import Files, PeftAdapter, Place
from monosoup_cli.sources.folders import (
    CACHED,
    Folder,
    is_broken,
    is_offline,
    local_folder,
    not_cached,
    read_config,
    unresolved,
)
from monosoup_cli.sources.hub_ids import HubId, suggested_id
from monosoup_cli.sources.kinds import with_kind
from monosoup_cli.sources.library_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD_NAME,
    DENOISERS,
    MAX_CARD_BYTES,
    is_training_state,
)
from monosoup_cli.sources.runs import CHECKPOINT
from monosoup_cli.sources.shards import (
    file_of_index,
    index_of_file,
    numbered,
    open_indexed,
    open_numbered,
    refuse_rank_file,
    refuse_rank_files,
    several,
)

__all__ = ["open_checkpoint", "parts_of", "typed_id"]

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PIPELINE = "model_index.json"
MODULES = "modules.json"
MEGATRON = "common.pt"
"""What Megatron writes beside one, whose tensors have all layers of a kind in them."""
DIFFUSERS = "diffusion_pytorch_model"
"""How the names of the weights of diffusers begin."""
MADE_FROM = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?(\w[\w.-]*/\w[\w.-]*)[\"']?\s*$", re.MULTILINE)
"""The first base model in the metadata of a card."""


def open_checkpoint(
    source: str | os.PathLike[str], state_dict: str | None = None, parts: Sequence[str] = ()
) -> Checkpoint:
    """Open a checkpoint, and read and validate all headers.

    Args:
        source: A file of weights, a folder with such a file or with an index and shards, or the id of a
            repository on the Hub.
        state_dict: Which state dict of a file that has several; None for the usual one.
        parts: The part of a pipeline's folder to open; empty for its denoiser.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be read or is malformed.
        UsageError: `source` is empty.
    """
    source = os.fspath(source)
    if not source:
        raise UsageError("the path of a checkpoint is empty")
    path = Path(source)
    try:
        mode = path.stat().st_mode if path.exists() else 0
    except OSError as error:
        raise CheckpointError(f"cannot open: {error.strerror}", path=source) from None
    if source.startswith("hf://") or not os.path.lexists(path):
        return _open_remote(source, path, state_dict, parts)
    if stat.S_ISDIR(mode):
        folder = local_folder(path, source)
        return _open_folder(folder, _chosen_part(folder, parts), state_dict)
    if file_of_index(path.name) is not None:
        raise CheckpointError("an index, not a checkpoint", path=source, hint="pass its folder")
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise unresolved(error, source) from error
    refuse_rank_file(path.as_posix(), lambda folder: local_folder(Path(folder), folder).names())
    shard = open_shard(path.name, InputFile(resolved, source), state_dict)
    return _new_checkpoint(
        Files(Place(source, file_name=path.name), (shard,), notes=_note_of_part(path.name))
    )


def _note_of_part(name: str) -> tuple[str, ...]:
    """Say that a file is a shard, where its name does."""
    is_part = numbered([name]) is not None
    return ("one shard of several; its folder is the whole checkpoint",) if is_part else ()


def _open_remote(source: str, path: Path, state_dict: str | None, parts: Sequence[str]) -> Checkpoint:
    """Open a repository on the Hub, or one of its folders or files."""
    from monosoup_cli.sources.hub import open_typed
    from monosoup_cli.sources.hub_errors import quiet_hub

    where = typed_id(source)
    file = PurePosixPath(where.inner).name if where.inner.endswith(WEIGHTS) else ""
    if file:
        source = source.rstrip("/").removesuffix(file).rstrip("/")
    with quiet_hub():
        folder = open_typed(source, replace(where, inner=where.inner.removesuffix(file).rstrip("/")))
        if not file:
            return _open_folder(folder, _chosen_part(folder, parts), state_dict)
        if file not in folder.names() and is_offline(folder):
            raise not_cached(f"{source}/{file}")
        refuse_rank_file(file, folder.names)
        shard = open_shard(file, folder.open(file), state_dict)
        place = Place(f"{source}/{file}", origin=folder, file_name=file)
        return _new_checkpoint(Files(place, (shard,), notes=_note_of_part(file)))


def typed_id(source: str) -> HubId:
    """The id on the Hub that the user typed, where there is no such path.

    Raises:
        CheckpointError: It can only be a path.
    """
    where = HubId.parse(source)
    is_typed_as_path = not source.startswith("hf://") and source.endswith((*WEIGHTS, ".json"))
    if where is None or is_typed_as_path:
        meant = suggested_id(source)
        hint = None if meant is None else f"if it is on the Hub: {meant}"
        raise CheckpointError("no such file or folder", path=source, hint=hint)
    return where


def _open_folder(folder: Folder, inner: str, state_dict: str | None) -> Checkpoint:
    names = folder.names(inner.rstrip("/"))
    if ADAPTER_CONFIG in names and (not _candidates(names) or not set(names).isdisjoint(ADAPTER_WEIGHTS)):
        return _open_adapter(folder, inner, names)
    config = read_config(folder, f"{inner}config.json")
    config = config if isinstance(config, dict) else None
    candidates = _without_index(folder, inner, _of_library(_candidates(names), config))
    chunks = [name for name in names if name.endswith(CHUNKS)]
    if chunks and not any(map(is_standard, candidates)):
        if MEGATRON in names:
            refuse_rank_files(folder, inner, names, [])
        return _open_distributed(folder, inner, names, config, state_dict)
    refuse_rank_files(folder, inner, names, candidates)
    if not candidates:
        part = "" if inner else _part_with_weights(folder, names)
        if part:
            return _open_folder(folder, f"{part}/", state_dict)
        raise _without_weights(folder, inner, names)
    shards = open_numbered(folder, inner, candidates, config, state_dict)
    if shards is not None:
        return _new_checkpoint(shards)
    if len(candidates) > 1:
        raise CheckpointError(
            "more than one file of weights in this folder, and nothing says how they belong together",
            path=folder.source,
            found=several(candidates),
            hint=_one_of(folder, inner, candidates),
        )
    if candidates[0] in ADAPTER_WEIGHTS:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} is missing next to {candidates[0]}",
            path=folder.source,
            hint="it holds the scale of the adapter",
        )
    if file_of_index(candidates[0]) is not None:
        return _new_checkpoint(open_indexed(folder, inner, candidates[0], names, config, state_dict))
    name = f"{inner}{candidates[0]}"
    place = Place(folder.source, folder, inner)
    shard = open_shard(name, folder.open(name), state_dict)
    return _new_checkpoint(Files(place, (shard,), config=config))


def _open_distributed(
    folder: Folder, inner: str, names: Sequence[str], config: dict[str, Any] | None, state_dict: str | None
) -> Checkpoint:
    """Open a distributed checkpoint of torch."""
    if METADATA not in names:
        raise CheckpointError(
            f"a distributed checkpoint of torch (DCP) without {METADATA}, which says what is where",
            path=folder.source,
            hint=AGAIN,
        )
    from monosoup_cli.formats.distributed import open_distributed  # most checkpoints are none

    shard = open_distributed(f"{inner}{METADATA}", names, folder.open, state_dict)
    return _new_checkpoint(Files(Place(folder.source, folder, inner), (shard,), config=config))


def _without_index(folder: Folder, inner: str, candidates: list[str]) -> list[str]:
    """The files of weights, without an index that names only the file beside it, as mlx-lm writes one."""
    for index in candidates:
        file = file_of_index(index)
        if file is not None and sorted(candidates) == sorted((file, index)):
            with suppress(CheckpointError):
                content = read_config(folder, f"{inner}{index}")
                weight_map = content.get("weight_map") if isinstance(content, dict) else None
                if isinstance(weight_map, dict) and all(name == file for name in weight_map.values()):
                    return [file]
    return candidates


def _one_of(folder: Folder, inner: str, candidates: Sequence[str]) -> str | None:
    """Say what makes one checkpoint of a folder with several files. Of an index and a file, that is whole."""
    is_typed = os.path.lexists(folder.source)
    file = next((one for one in candidates if len(candidates) == 2 and file_of_index(one) is None), None)
    if file is None or all(file_of_index(one) is None for one in candidates):
        return "move those that do not belong to the model elsewhere" if is_typed else None
    if is_typed:
        return f"move one of the two elsewhere, or pass {folder.shown(f'{inner}{file}')}"
    return f"pass hf://{folder.source.removeprefix('hf://').rstrip('/')}/{inner}{file}"


def _open_adapter(folder: Folder, inner: str, names: Sequence[str]) -> Checkpoint:
    """Open a PEFT adapter: its weights and its configuration. `read_adapter` says what it changes."""
    config = read_config(folder, f"{inner}{ADAPTER_CONFIG}")
    if not isinstance(config, dict) or not config:
        raise CheckpointError(
            "not the configuration of an adapter", path=folder.shown(f"{inner}{ADAPTER_CONFIG}")
        )
    refuse_other_settings(config, folder.source)
    name = next((f"{inner}{name}" for name in ADAPTER_WEIGHTS if name in names), None)
    if name is None:
        if is_offline(folder):
            raise not_cached(folder.source)
        raise CheckpointError(
            "an adapter without weights", path=folder.source, expected=" or ".join(ADAPTER_WEIGHTS)
        )
    place = Place(folder.source, folder, inner)
    return Checkpoint(Files(place, (open_shard(name, folder.open(name)),), kind=PeftAdapter(config)))


def _without_weights(folder: Folder, inner: str, names: Sequence[str]) -> CheckpointError:
    if is_offline(folder):
        return not_cached(folder.source)
    whole = [name for name in names if not name.startswith(".") and not is_broken(folder, f"{inner}{name}")]
    parts = [name for name in whole if folder.is_folder(f"{inner}{name}")]
    parts = [
        name for name in parts if _candidates(held := folder.names(f"{inner}{name}")) or METADATA in held
    ]
    parts = parts or ([] if inner else _cached_with_weights(folder, whole))
    hint = None
    if parts:
        hint = f"pass one that has some: {', '.join(parts[:4])}{', …' if len(parts) > 4 else ''}"
    elif folder.repository is not None and not inner and any(name.endswith(".gguf") for name in names):
        return _of_gguf_alone(folder, names)
    elif (
        folder.repository is None
        and not CHECKPOINT.fullmatch(PurePosixPath(folder.source).name)
        and HUB_ID.fullmatch(folder.source)
        and not _is_beside_a_model(names, folder)
    ):
        hint = f"for the repository on the Hub: hf://{folder.source}"
    other = next((name for name in names if name.endswith(OTHER_SUFFIXES)), None)
    problem = f"no weights in this folder{f', only {other}' if other else ''}"
    if other is not None and hint is None:
        file = folder.open(f"{inner}{other}")
        recognised = recognise(file, other)
        file.close()
        if recognised is not None:
            recognised.problem, recognised.path = f"{problem}, {recognised.problem}", folder.source
            return recognised
    return CheckpointError(problem, path=folder.source, hint=hint)


def _cached_with_weights(folder: Folder, names: Sequence[str]) -> list[str]:
    """List the repositories with weights in the root of the Hub's cache."""
    found = []
    for name in names if folder.repository is None else ():
        with suppress(CheckpointError):
            path = folder.shown(name)
            held = local_folder(Path(path), path).names() if name.startswith(CACHED) else []
            if PIPELINE in held or _candidates(held):
                found.append(path)
    return found


def _is_beside_a_model(names: Sequence[str], folder: Folder) -> bool:
    """Whether this folder has something in it and stands beside the files of a model, as `wandb` does."""
    beside = [path.name for path in Path(folder.source).parent.glob("*")] if names else []
    return bool(_candidates(beside)) or not {"config.json", ADAPTER_CONFIG, PIPELINE}.isdisjoint(beside)


def _of_gguf_alone(folder: Folder, names: Sequence[str]) -> CheckpointError:
    """Say what a repository of GGUF files was made from, where its card does."""
    card = (
        folder.open(CARD_NAME) if CARD_NAME in names and folder.nbytes(CARD_NAME) <= MAX_CARD_BYTES else None
    )
    text = "" if card is None else card.read(card.nbytes).decode(errors="replace")
    if card is not None:
        card.close()
    found = MADE_FROM.search(text)
    made_from = "the checkpoint that they were made from" if found is None else found[1]
    return CheckpointError(
        "a repository of GGUF files, which have no weights to edit",
        path=folder.source,
        hint=f"edit {made_from}, and convert the result with llama.cpp's convert_hf_to_gguf.py",
    )


def _candidates(names: Sequence[str]) -> list[str]:
    """List the files that the model may be loaded from.

    Safetensors files go before pickles, and the names that libraries look for go before others.
    """
    for suffix in WEIGHTS:
        weights = [name for name in names if name.endswith(suffix) and not is_training_state(name)]
        indexes = [name for name in names if (file_of_index(name) or "").endswith(suffix)]
        stems = STEMS.get(suffix, ())
        standard = [name for stem in stems if (name := index_of_file(f"{stem}{suffix}")) in indexes]
        standard += [name for stem in stems if (name := f"{stem}{suffix}") in weights]
        # Mistral's own libraries read these, and transformers the files beside them
        usual = [name for name in (*indexes, *weights) if not name.startswith("consolidated")]
        indexes, weights = ([one for one in of if one in usual] if usual else of for of in (indexes, weights))
        if candidates := standard or indexes or weights:
            return candidates
    return []


def _of_library(candidates: list[str], config: Mapping[str, Any] | None) -> list[str]:
    """Of the files of two libraries, those of the library whose configuration stands beside them."""
    of_diffusers = [name for name in candidates if name.startswith(DIFFUSERS)]
    is_diffusers = config is not None and "_class_name" in config
    is_transformers = config is not None and ("model_type" in config or "architectures" in config)
    if is_diffusers == is_transformers or not of_diffusers:
        return candidates
    return (
        of_diffusers
        if is_diffusers
        else [name for name in candidates if name not in of_diffusers] or candidates
    )


def parts_of(folder: Folder) -> list[str]:
    """List the subfolders of a diffusers or sentence-transformers pipeline, in its order.

    Returns:
        The names; "" for the folder itself. Empty if the folder is not a pipeline, also where it has weights
        beside a list of parts that cannot be read: no library needs that list to load them.

    Raises:
        CheckpointError: The list of parts cannot be read, and there is nothing else.
    """
    try:
        return _listed_parts(folder)
    except CheckpointError:
        if not _candidates(folder.names()):
            raise
        return []


def _listed_parts(folder: Folder) -> list[str]:
    names = folder.names()
    parts: list[str] = []
    if PIPELINE in names:
        pipeline = read_config(folder, PIPELINE)
        if isinstance(pipeline, dict):
            parts = [name for name, what in pipeline.items() if isinstance(what, list)]
    elif MODULES in names:
        modules = read_config(folder, MODULES)
        if isinstance(modules, list):
            paths = [module.get("path") for module in modules if isinstance(module, dict)]
            parts = [path for path in paths if isinstance(path, str)]
    return [part for part in parts if part == "" or (part in names and folder.is_folder(part))]


def _chosen_part(folder: Folder, chosen: Sequence[str]) -> str:
    """Return the part of a pipeline that the user chose, such as "unet/"; "" if the folder is no pipeline.

    Raises:
        UsageError: The pipeline has no such part, or several are chosen.
    """
    if not chosen or PIPELINE not in folder.names():
        return ""
    held = _with_weights(folder, parts_of(folder))
    if not held:
        return ""
    parts = [part for part in chosen if part in held]
    if not parts:
        raise UsageError(
            "the pipeline has no such part",
            path=folder.source,
            expected=f"--parts {' or '.join(held)}",
            found=", ".join(chosen),
        )
    if len(parts) > 1:
        raise UsageError(
            "a run edits one part of a pipeline's folder",
            path=folder.source,
            found=" and ".join(f"--parts {part}" for part in parts),
            hint=f"run it with --parts {parts[0]}, then, over that output, with --parts {parts[1]}",
        )
    return f"{parts[0]}/"


def _with_weights(folder: Folder, parts: Sequence[str]) -> list[str]:
    return [part for part in parts if _candidates(folder.names(part))]


def _part_with_weights(folder: Folder, names: Sequence[str]) -> str:
    """Choose the part of a pipeline that is edited; "" if the folder is not a pipeline."""
    held = parts = parts_of(folder)
    if PIPELINE in names:
        parts = [part for part in DENOISERS if part in held]
        choices = " or ".join(_with_weights(folder, held))
        if choices and not parts:
            raise CheckpointError(
                "a pipeline without a part called transformer or unet",
                path=folder.source,
                hint=f"choose the one that was fine-tuned: --parts {choices}",
            )
    return parts[0] if parts else ""


def _new_checkpoint(files: Files) -> Checkpoint:
    """Make a checkpoint of these files, which knows what they are."""
    try:
        files = with_kind(files)
        if not files.tensors:
            raise CheckpointError("holds no tensors", path=files.place.source)
    except CheckpointError:
        files.close()
        raise
    return Checkpoint(files)
