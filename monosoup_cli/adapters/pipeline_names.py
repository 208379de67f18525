"""The parts of a pipeline for images, by the names of tensors in single-file LoRAs and in bases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from monosoup_cli.adapters.fused_names import Spot, other_names
from monosoup_cli.adapters.unet_names import layers_per_block, original
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.library_files import DENOISERS

__all__ = ["FLAT", "PARTS", "ROOTS", "Find", "Wanted", "finder", "is_same_part"]

FLAT = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
"""kohya's prefixes of module names, in which underscores replace dots, mapped to parts of the pipeline."""
DOTTED = {
    "unet.": "unet",
    "diffusion_model.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
PARTS = {**FLAT, **DOTTED, "": ""}
DENOISER = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.")
ROOTS = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
        "text_encoder.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_g.transformer.",
        "text_encoders.t5xxl.transformer.",
        "text_encoder_2.",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.", "text_encoder_3."),
}
"""The prefixes of these parts in files of whole pipelines: SD 1 and 2, SDXL and its refiner, SD 3 and Flux.
All other parts are denoisers."""
TEXT_MODEL = re.compile(r"text_model[._]")
"""The prefix in names of CLIP's text encoder, which newer versions of transformers omit."""

Find = Callable[[str], Sequence[tuple[Spot, ...]]]


class Wanted(NamedTuple):
    """Which parts of a pipeline are edited.

    Attributes:
        parts: The parts that the user chose; empty for all.
        folder: The part that the base is, where it is a part of a pipeline's folder, otherwise "".
        others: The pipeline's other parts.
    """

    parts: Sequence[str] = ()
    folder: str = ""
    others: Sequence[str] = ()


def is_same_part(part: str, other: str) -> bool:
    """Return whether two names mean the same part. kohya calls every denoiser the UNet."""
    return part == other or {part, other} <= set(DENOISERS)


def finder(base: Mapping[str, TensorInfo], prefix: str) -> Find:
    """Make a function that finds where in the base the update of a module with this prefix goes.

    It returns all places that the name may mean. Equal names go before those that another library has.
    """
    part, separator = PARTS[prefix], "_" if prefix in FLAT else "."
    roots = ROOTS.get(part, DENOISER)
    stored: dict[str, str] = {}
    exact: dict[str, list[tuple[Spot, ...]]] = defaultdict(list)
    for name in base:
        root = next((root for root in roots if name.startswith(root)), "")
        inner = name[len(root) :]
        if part in ROOTS:
            inner = TEXT_MODEL.sub("", inner, count=1)
        if root or inner not in stored:
            stored[inner] = name
        if name.endswith(".weight"):
            exact[inner.removesuffix(".weight").replace(".", separator)].append((Spot(name),))
    others: dict[str, list[tuple[Spot, ...]]] = defaultdict(list)
    for module, spots in other_names({inner: base[name].shape for inner, name in stored.items()}):
        placed = tuple(spot._replace(tensor=stored[spot.tensor]) for spot in spots)
        others[module.replace(".", separator)].append(placed)
    modules = [inner.removesuffix(".weight") for inner in stored if inner.endswith(".weight")]
    layers = layers_per_block(set(modules))
    for module in modules if layers else ():
        others[original(module, layers).replace(".", separator)].append((Spot(stored[f"{module}.weight"]),))

    def find(module: str) -> Sequence[tuple[Spot, ...]]:
        if part in ROOTS:
            module = TEXT_MODEL.sub("", module, count=1)
        if module in exact:
            return exact[module]
        return others.get(original(module, layers).replace(".", separator) if layers else module, ())

    return find
