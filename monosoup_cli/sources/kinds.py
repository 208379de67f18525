"""Tell by their names what the tensors in some files are: those of a model, of an adapter, or of both.

Trainers that save what the `state_dict()` of a model of peft returns leave files of both: the weights of a
base, and of an adapter that is not merged into them, under other names than either has alone. They are read
as the model that merging the two makes. Its scale is in no state dict, only in the adapter's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, some
from monosoup_cli.formats.lora_names import is_lora_file
from monosoup_cli.formats.other_adapters import MERGE_WITH_PEFT, refuse_other_adapter, refuse_other_settings
from monosoup_cli.formats.shard import Shard
from monosoup_cli.sources.alignment import INSERTED
from monosoup_cli.sources.files import Files, LoraFile, Model, PeftAdapter, Place
from monosoup_cli.sources.folders import Folder, local_folder, read_config
from monosoup_cli.sources.library_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

__all__ = ["lora_settings", "with_kind"]

PREFIX = "base_model.model."
OUTER = re.compile(r"(?:[\w-]+\.)*?base_model\.model\.")
"""peft's prefix, behind the names of the modules that a trainer has around the model."""
WRAPPERS = {*INSERTED, "_forward_module"}
NAMED = r"(?:\.(?P<adapter{0}>[\w-]+))??"
FACTOR = re.compile(
    rf"(?P<module>.+)\.(?:(?P<factor>lora_[AB]){NAMED.format(1)}(?P<end>\.weight|\.bias)|"
    rf"(?P<part>lora_embedding_[AB]|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)"
    rf"{NAMED.format(2)}(?:\.weight)?)",
    re.DOTALL,
)
"""What LoRA adds to a layer. In a model, each name ends in that of the adapter and perhaps `weight`."""
SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?:(?P<adapter>[\w-]+)\.)?(?P<rest>.+)", re.DOTALL)
"""The parameters of a module that is trained whole."""
WRAPPED = re.compile(r"\.(?:base_layer|original_module|token_adapter)(?=\.)")
"""What peft puts into the names of the base's own tensors."""
OF_PEFT = re.compile(r"\.(lora_|base_layer\.|modules_to_save\.|token_adapter\.)")
NESTED = re.compile(r"\.(modules_to_save|original_module|token_adapter\.base_layer)\.")
ORIGINAL = re.compile(r"(.+)\.original_module\..+", re.DOTALL)
INITIALISATION = {"init_lora_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config"}
"""The options of LoRA that say what factors and base were before the training. If that changed the base, the
changed one is in the state dict."""


@dataclass
class Names:
    """The names in a state dict of a model of peft, sorted.

    Attributes:
        base: The names that the base's tensors have without peft, mapped to the stored names.
        factors: The keys that peft's own files of adapters have, mapped to the stored names.
        layers: The layers that have factors of LoRA.
        wrapped: The modules that peft has wrapped.
        others: The stored names of what another kind of adapter adds to a layer.
        twice: Stored names that are the same without peft, each with the earlier one.
        adapters: The names of the adapters; "" where there is none.
    """

    base: dict[str, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    wrapped: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    twice: list[tuple[str, str]] = field(default_factory=list)
    adapters: set[str] = field(default_factory=set)

    def are_of_peft(self, files: Files) -> bool:
        """Whether these are not names of a plain model, or of an adapter in a file of its own."""
        if self.others:
            return True
        if "" in self.adapters and all(shard.name in ADAPTER_WEIGHTS for shard in files.shards):
            return False  # what peft saves of an adapter has no names of adapters
        if self.adapters - {""}:
            return True
        return 0 < len(self.layers) <= 2 * len(self.layers & self.wrapped)

    @property
    def has_base(self) -> bool:
        """Whether there are weights of the layers that the adapter changes."""
        before_0_6 = (f"{layer}.weight" in self.base for layer in self.layers)  # peft did not wrap layers
        return bool(self.wrapped) or any(before_0_6)


def with_kind(files: Files) -> Files:
    """Return files with the kind of what they have.

    A base that has an adapter in it gets its plain names, and the adapter is in its kind.

    Raises:
        CheckpointError: An adapter cannot be read, or its scale is not known.
    """
    files = _without_peft(files)
    is_lora = files.kind == Model() and len(files.shards) == 1 and is_lora_file(files.tensors)
    refuse_other_adapter(files.tensors, files.place.source, is_lora=is_lora)
    return replace(files, kind=LoraFile()) if is_lora else files


def _without_peft(files: Files) -> Files:
    """Return files of a model of peft as those of its base or, where they have no base, of its adapter."""
    path = files.place.source
    names = _sorted(files.tensors, path)
    if names is None or not names.are_of_peft(files):
        if files.place.folder is not None and _settings(files.place)[0] is not None:
            is_lora = len(files.shards) == 1 and is_lora_file(files.tensors)
            refuse_other_adapter(files.tensors, path, is_lora=is_lora)
            raise CheckpointError(
                "an adapter without weights", path=path, expected=" or ".join(ADAPTER_WEIGHTS)
            )
        return files
    for name, earlier in names.twice:
        raise CheckpointError(
            "is there twice without what peft puts into names", path=path, tensor=name, found=earlier
        )
    first = next(iter((*names.others, *names.factors.values())))
    settings, where = _settings(files.place)
    if settings is not None:
        refuse_other_settings(settings, where)
    if names.others:
        raise CheckpointError(
            "a model of peft with an adapter in it that is not LoRA",
            path=path,
            tensor=first,
            hint=MERGE_WITH_PEFT,
        )
    if len(names.adapters) > 1:
        raise CheckpointError(
            "a model of peft with several adapters in it, and which of them are used is in no state dict",
            path=path,
            tensor=first,
            found=", ".join(map(repr, sorted(names.adapters))),
            hint=MERGE_WITH_PEFT,
        )
    if settings is None:
        raise CheckpointError(
            "a model of peft with a LoRA adapter in it, whose scale (lora_alpha and r) is in no state dict",
            path=path,
            tensor=first,
            expected=f"{ADAPTER_CONFIG} beside it",
            hint="write that with save_pretrained(FOLDER) of the training's LoraConfig; or pass what the"
            " model's merge_and_unload() saves",
        )
    if not names.has_base:
        keys = names.factors | {PREFIX + name: stored for name, stored in names.base.items()}
        return replace(_renamed(files, keys), kind=PeftAdapter(settings))
    note = f"a model of peft with an adapter in it, read as merged: the scale is that of {ADAPTER_CONFIG}"
    return replace(
        _renamed(files, names.base),
        kind=Model(settings, _renamed(files, names.factors)),
        notes=(*files.notes, note),
    )


def lora_settings(files: Files) -> dict[str, Any]:
    """The configuration of the adapter in a model, without what only matters to another base."""
    settings = files.kind.settings or {}
    return {option: value for option, value in settings.items() if option not in INITIALISATION}


def _sorted(stored: Iterable[str], path: str) -> Names | None:
    """Sort the names of a state dict; None where none of them is one of peft.

    Raises:
        CheckpointError: It has several models of peft.
    """
    stored = list(stored)
    if not any(OF_PEFT.search(name) for name in stored):
        return None
    plain, outer = {}, set()
    for name in stored:
        inner = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        prefix = OUTER.match(inner)
        outer.update([] if prefix is None else [prefix[0]])
        plain[name] = inner if prefix is None else inner[prefix.end() :]
    if len(outer) > 1:
        raise CheckpointError(
            "several models of peft in one state dict", path=path, found=some([*map(repr, sorted(outer))], 3)
        )
    names = Names()
    saved = {match["module"] for inner in plain.values() if (match := SAVED.fullmatch(inner))}
    for inner in plain.values():
        layer = _layer(inner)
        if layer and not inner.endswith(".bias"):  # files of adapters have trained biases so
            names.wrapped.add(layer)
        elif (module := ORIGINAL.fullmatch(inner)) and module[1] in saved:
            names.wrapped.add(module[1])
    lengths = {len(module) for module in names.wrapped}
    for name, inner in plain.items():
        kind, key = names.base, WRAPPED.sub("", inner)
        if match := FACTOR.fullmatch(inner) or SAVED.fullmatch(inner):
            kind, key = names.factors, PREFIX + _key(match)
            names.adapters.add(_adapter(match))
            if match.re is FACTOR and match["factor"]:
                names.layers.add(WRAPPED.sub("", f"{match['module']}.")[:-1])
        if (kind is names.base and _is_added(inner, names.wrapped, lengths)) or NESTED.search(key):
            names.others.append(name)
        elif key in kind and (kind is names.base or len(names.adapters) == 1):
            names.twice.append((name, kind[key]))
        else:
            kind[key] = name
    return names


def _key(match: re.Match[str]) -> str:
    """The key that peft's own files of adapters have for something of an adapter in a model."""
    if match.re is SAVED:
        return f"{match['module']}.{match['rest']}"
    if match["factor"]:
        return f"{match['module']}.{match['factor']}{match['end']}"
    return f"{match['module']}.{match['part']}"


def _adapter(match: re.Match[str]) -> str:
    """The name of the adapter; "" if there is none."""
    found = match.groupdict()
    return next((found[group] for group in ("adapter", "adapter1", "adapter2") if found.get(group)), "")


def _is_added(name: str, wrapped: Collection[str], lengths: Collection[int]) -> bool:
    """Whether this is something in a module that peft has wrapped, beside what it has wrapped.

    Only dots behind as many letters as a wrapped module has are tried: a long name has too many for all.
    """
    dots = [match.start() for match in re.finditer(r"\.", name) if match.start() in lengths]
    inner = (name[dot:] for dot in dots if name[:dot] in wrapped)
    return any(WRAPPED.match(rest.removeprefix(".token_adapter")) is None for rest in inner)


def _layer(name: str) -> str:
    """The layer that peft has wrapped, from the name of a parameter of it; "" of another parameter."""
    parts = name.split(".")[:-1]
    module = list(parts)
    while module and module[-1] == "base_layer":
        module.pop()
    if len(module) == len(parts):
        return ""
    if len(module) > 1 and module[-1] == "token_adapter":
        module.pop()
    return ".".join(module)


def _settings(place: Place) -> tuple[Mapping[str, Any] | None, str]:
    """The adapter_config.json beside the weights, and its path; None if there is none."""
    folder: Folder | None = place.folder or place.origin
    if folder is None:
        beside = str(Path(place.source).parent)
        folder = local_folder(Path(beside), beside)
    where = folder.shown(f"{place.inner}{ADAPTER_CONFIG}")
    if ADAPTER_CONFIG not in folder.names(place.inner.rstrip("/")):
        return None, where
    settings = read_config(folder, f"{place.inner}{ADAPTER_CONFIG}")
    if not isinstance(settings, dict) or not settings:
        raise CheckpointError("not the configuration of an adapter", path=where)
    return settings, where


def _renamed(files: Files, names: Mapping[str, str]) -> Files:
    """The same files with other names of tensors, mapped to the stored ones; further tensors are left out."""
    read_as = {stored: name for name, stored in names.items()}
    return replace(files, shards=tuple(_renamed_shard(shard, read_as) for shard in files.shards))


def _renamed_shard(shard: Shard, read_as: Mapping[str, str]) -> Shard:
    tensors = shard.header.tensors
    return replace(
        shard,
        header=replace(
            shard.header,
            tensors={
                read_as[name]: replace(tensor, name=read_as[name])
                for name, tensor in tensors.items()
                if name in read_as
            },
        ),
        is_safetensors=False,  # its header cannot be copied
        strided={read_as[name]: strided for name, strided in shard.strided.items() if name in read_as},
        tied={
            read_as[name]: read_as[kept]
            for name, kept in shard.tied.items()
            if name in read_as and kept in read_as
        },
    )
