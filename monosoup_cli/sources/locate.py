"""Find and open the checkpoint that the user typed, on the disk or on the Hub.

Only names and headers are read; no byte of a tensor is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.formats.files import InputFile
from monosoup_cli.formats.header import BITS
from monosoup_cli.formats.lora_names import is_lora_file
from monosoup_cli.formats.shard import Shard
from monosoup_cli.formats.table import STEMS, WEIGHTS, open_shard
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.files import Files, Index, LoraFile, PeftAdapter, Place
from monosoup_cli.sources.folders import Folder, LocalFolder, is_plain_name, read_config

__all__ = ["open_checkpoint", "parts_of"]

INDEX_SUFFIX = ".index.json"
SHARD_NAME = re.compile(r"-\d{5,}-of-\d{5,}\.(safetensors|bin)$")
TRAINING_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)$")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PIPELINE = "model_index.json"
MODULES = "modules.json"
DENOISERS = ("transformer", "unet")
"""The parts of a diffusers pipeline that are usually fine-tuned."""
AT_ONCE = 8
"""How many headers of shards are read at once."""

QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|absmax|quant_map|quant_state(\..+)?|SCB|scale_weight|scaled_fp8"
    r"|weight_scale|weight_scale_inv|weight_packed|\w+_proj_(blocks|scales))$"
)
"""The ends of tensor names that GPTQ, AWQ, bitsandbytes, fp8, compressed-tensors and mxfp4 write."""
QUANTISED_ON_LOADING = ("bitsandbytes", "torchao", "quanto", "hqq", "eetq", "fbgemm_fp8", "higgs")
"""The methods whose config may stand beside plain weights: transformers quantises them when it loads them."""
PLAIN_WEIGHTS = (
    "config.json has quantization_config, but the weights are not quantised: remove it from the output's"
    " config.json to load them as they are"
)
UNQUANTISED = "edit the checkpoint that it was quantised from, and quantise the result"


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint, and read and validate all headers.

    Args:
        source: A file of weights, a folder with such a file or with an index and shards, or the id of a
            repository on the Hub.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be read, is malformed or is quantised.
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
        return _open_remote(source, path)
    if stat.S_ISDIR(mode):
        return _open_folder(LocalFolder(path, source), "")
    if path.name.endswith(INDEX_SUFFIX):
        raise CheckpointError("an index, not a checkpoint", path=source, hint="pass its folder")
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError("a broken link", path=source) from None
    return _new_checkpoint(
        Files(Place(source, file_name=path.name), (open_shard(path.name, InputFile(resolved, source)),))
    )


def _open_remote(source: str, path: Path) -> Checkpoint:
    """Open a repository on the Hub, or one of its folders or files."""
    from monosoup_cli.sources.hub import HubId, open_repository, suggested_id
    from monosoup_cli.sources.hub_errors import quiet_hub

    where, is_told = HubId.parse(source), source.startswith("hf://")
    is_typed_as_path = not is_told and source.endswith((*WEIGHTS, ".json"))
    if where is None or is_typed_as_path:
        meant = suggested_id(source)
        hint = None if meant is None else f"if it is on the Hub: {meant}"
        raise CheckpointError("no such file or folder", path=source, hint=hint)
    file = PurePosixPath(where.inner).name if where.inner.endswith(WEIGHTS) else ""
    if file:
        source = source.rstrip("/").removesuffix(file).rstrip("/")
    with quiet_hub():
        try:
            folder = open_repository(source, replace(where, inner=where.inner.removesuffix(file).rstrip("/")))
        except CheckpointError as error:
            if not is_told:
                error.problem = f"no such file or folder; as an id on the Hub: {error.problem}"
            raise
        if not file:
            return _open_folder(folder, "")
        if file not in folder.names() and _is_offline(folder):
            raise _not_cached(f"{source}/{file}")
        shard = open_shard(file, folder.open(file))
        return _new_checkpoint(Files(Place(f"{source}/{file}", origin=folder, file_name=file), (shard,)))


def _open_folder(folder: Folder, inner: str) -> Checkpoint:
    names = folder.names(inner.rstrip("/"))
    if ADAPTER_CONFIG in names:
        return _open_adapter(folder, inner, names)
    config = read_config(folder, f"{inner}config.json")
    config = config if isinstance(config, dict) else None
    _refuse_quantisation_config(config, folder.shown(f"{inner}config.json"))
    candidates = _candidates(names)
    if not candidates:
        part = "" if inner else _part_with_weights(folder, names)
        if part:
            return _open_folder(folder, f"{part}/")
        raise _without_weights(folder, inner, names)
    if len(candidates) > 1:
        raise CheckpointError(
            "more than one checkpoint in this folder, and loaders disagree on which to load",
            path=folder.source,
            found=", ".join(candidates[:4]),
            hint="pass one file, or remove the others",
        )
    if candidates[0] in ADAPTER_WEIGHTS:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} is missing next to {candidates[0]}",
            path=folder.source,
            hint="it holds the scale of the adapter",
        )
    if candidates[0].endswith(INDEX_SUFFIX):
        return _open_sharded(folder, inner, candidates[0], names, config)
    name = f"{inner}{candidates[0]}"
    place = Place(folder.source, folder, inner)
    return _new_checkpoint(Files(place, (open_shard(name, folder.open(name)),), config=config))


def _open_adapter(folder: Folder, inner: str, names: Sequence[str]) -> Checkpoint:
    """Open a PEFT adapter: its weights and its configuration. `read_adapter` says what it changes."""
    config = read_config(folder, f"{inner}{ADAPTER_CONFIG}")
    if not isinstance(config, dict) or not config:
        raise CheckpointError(
            "not the configuration of an adapter", path=folder.shown(f"{inner}{ADAPTER_CONFIG}")
        )
    name = next((f"{inner}{name}" for name in ADAPTER_WEIGHTS if name in names), None)
    if name is None:
        if _is_offline(folder):
            raise _not_cached(folder.source)
        raise CheckpointError(
            "an adapter without weights", path=folder.source, expected=" or ".join(ADAPTER_WEIGHTS)
        )
    place = Place(folder.source, folder, inner)
    return Checkpoint(Files(place, (open_shard(name, folder.open(name)),), kind=PeftAdapter(config)))


def _is_offline(folder: Folder) -> bool:
    """Return whether this folder is a snapshot in the Hub's cache, opened by its id."""
    return isinstance(folder, LocalFolder) and not os.path.lexists(folder.source)


def _not_cached(source: str) -> CheckpointError:
    return CheckpointError(
        "offline, and its weights are not in the cache",
        path=source,
        hint="run it once without HF_HUB_OFFLINE",
    )


def _without_weights(folder: Folder, inner: str, names: Sequence[str]) -> CheckpointError:
    if _is_offline(folder):
        return _not_cached(folder.source)
    other = next((name for name in names if name.endswith((".gguf", ".h5", ".msgpack", ".onnx"))), None)
    parts = [name for name in names if not name.startswith(".") and folder.is_folder(f"{inner}{name}")]
    parts = [name for name in parts if _candidates(folder.names(f"{inner}{name}"))]
    hint = None
    if parts:
        hint = f"pass one that has some: {', '.join(parts[:4])}{', …' if len(parts) > 4 else ''}"
    elif HUB_ID.fullmatch(folder.source):
        hint = f"for the repository on the Hub: hf://{folder.source}"
    found = f", only {other}" if other else ""
    return CheckpointError(f"no weights in this folder{found}", path=folder.source, hint=hint)


def _candidates(names: Sequence[str]) -> list[str]:
    """List the files that the model may be loaded from.

    Safetensors files go before pickles, and the names that libraries look for go before others.
    """
    for suffix in WEIGHTS:
        weights = [name for name in names if name.endswith(suffix) and not TRAINING_STATE.fullmatch(name)]
        indexes = [name for name in names if name.endswith(f"{suffix}{INDEX_SUFFIX}")]
        stems = STEMS.get(suffix, ())
        standard = [name for stem in stems if (name := f"{stem}{suffix}{INDEX_SUFFIX}") in indexes]
        standard += [name for stem in stems if (name := f"{stem}{suffix}") in weights]
        if candidates := standard or indexes or weights:
            return candidates
    return []


def parts_of(folder: Folder) -> list[str]:
    """List the subfolders of a diffusers or sentence-transformers pipeline, in its order.

    Returns:
        The names; "" for the folder itself. Empty if the folder is not a pipeline.
    """
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


def _part_with_weights(folder: Folder, names: Sequence[str]) -> str:
    """Choose the part of a pipeline that is edited; "" if the folder is not a pipeline."""
    parts = parts_of(folder)
    if PIPELINE in names:
        parts = [part for part in DENOISERS if part in parts]
        if not parts:
            raise CheckpointError(
                "a pipeline without a part called transformer or unet",
                path=folder.source,
                hint="pass the folder of the part that was fine-tuned",
            )
    return parts[0] if parts else ""


def _open_sharded(
    folder: Folder, inner: str, index_name: str, names: Sequence[str], config: Mapping[str, Any] | None
) -> Checkpoint:
    index_path = folder.shown(f"{inner}{index_name}")
    index = read_config(folder, f"{inner}{index_name}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", path=index_path)
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError("the index's metadata must be an object", path=index_path)
    file_name = index_name.removesuffix(INDEX_SUFFIX)
    suffix = f".{file_name.rpartition('.')[2]}" if file_name.endswith(WEIGHTS) else ".safetensors"
    for name, shard_name in weight_map.items():
        if not is_plain_name(shard_name) or not shard_name.endswith(suffix):
            raise CheckpointError(
                f"the index must name {suffix[1:]} files in its own folder",
                path=index_path,
                tensor=name,
                found=repr(shard_name)[:200],
            )
    shard_names = sorted(set(weight_map.values()))
    for shard_name in shard_names:
        if shard_name not in names and _is_offline(folder):
            raise _not_cached(folder.source)
        if shard_name not in names:
            raise CheckpointError(
                "a shard that the index names is missing", path=folder.shown(f"{inner}{shard_name}")
            )
    stem = file_name.removesuffix(suffix)
    for name in names:
        is_shard = name.startswith(f"{stem}-") and name.endswith(suffix) and SHARD_NAME.search(name)
        if is_shard and name not in shard_names:
            raise CheckpointError(
                "a shard that the index does not name",
                path=folder.shown(f"{inner}{name}"),
                hint="it belongs to another checkpoint, or the index is stale",
            )
    shards = _open_shards(folder, [f"{inner}{name}" for name in shard_names])
    try:
        place = Place(folder.source, folder, inner)
        files = Files(place, shards, Index(f"{inner}{index_name}", index), config)
        for name, holder in [(name, shard) for shard in shards for name in shard.header.tensors]:
            if weight_map.get(name) != holder.name.removeprefix(inner):
                raise CheckpointError(
                    "index and shards disagree on where it is",
                    path=index_path,
                    tensor=name,
                    expected=holder.name,
                    found=weight_map.get(name, "nothing"),
                )
        for name in weight_map:
            if name not in files.tensors:
                raise CheckpointError(
                    "the index names a tensor that its shard does not have",
                    path=index_path,
                    tensor=name,
                    found=weight_map[name],
                )
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise
    return _new_checkpoint(files)


def _open_shards(folder: Folder, names: Sequence[str]) -> tuple[Shard, ...]:
    """Open all shards or none; several at once, because they may be remote."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(lambda name: open_shard(name, folder.open(name)), name) for name in names]
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    if failures:
        for future in futures:
            if future.exception() is None:
                future.result().file.close()
        raise failures[0]
    return tuple(future.result() for future in futures)


def _new_checkpoint(files: Files) -> Checkpoint:
    """Make a checkpoint of these files, refuse a quantised one, and mark a LoRA in a single file as such."""
    if len(files.shards) == 1 and is_lora_file(files.tensors):
        return Checkpoint(replace(files, kind=LoraFile()))
    for name in files.tensors:
        if QUANTISED.search(name):
            files.close()
            raise CheckpointError(
                "the checkpoint is quantised: differences between codes mean nothing",
                path=files.place.source,
                tensor=name,
                hint=UNQUANTISED,
            )
    if (files.config or {}).get("quantization_config"):  # of a method in QUANTISED_ON_LOADING
        codes = next((one for one in files.tensors.values() if BITS[one.dtype] <= 8), None)
        if codes is not None:
            files.close()
            raise CheckpointError(
                "the checkpoint is quantised: differences between codes mean nothing",
                path=files.place.source,
                tensor=codes.name,
                hint=UNQUANTISED,
            )
        files = replace(files, notes=(*files.notes, PLAIN_WEIGHTS))
    return Checkpoint(files)


def _refuse_quantisation_config(config: Mapping[str, Any] | None, path: str) -> None:
    quantisation = None if config is None else config.get("quantization_config")
    if not quantisation:
        return
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if method in QUANTISED_ON_LOADING:
        return  # the tensors say whether it is
    raise CheckpointError(
        f"the checkpoint is quantised{f' by {method}' if isinstance(method, str) else ''} (config.json has"
        " quantization_config): differences between codes mean nothing",
        path=path,
        hint=UNQUANTISED,
    )
