"""Other libraries' names for the layers of a model, which may fuse several of its layers into one tensor.

OpenCLIP has one matrix for the queries, keys and values of transformers' CLIP. The original Flux has one for
those of diffusers, and in single blocks one for them and the first layer of the MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from monosoup_cli.adapters.lora import LINEAR, TRANSPOSED, FactorLayout

__all__ = ["Spot", "other_names"]

Rows = tuple[int, int]
Shapes = Mapping[str, tuple[int, ...]]


class Spot(NamedTuple):
    """Where the update of a layer goes.

    Attributes:
        tensor: The tensor of the base, as the shapes name it.
        rows: Its rows that are changed, start:stop; None for all.
        own_rows: The rows of the update that go there; None for all.
        layout: How the update lies in the tensor.
    """

    tensor: str
    rows: Rows | None = None
    own_rows: Rows | None = None
    layout: FactorLayout = LINEAR


OPEN_CLIP = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
IN_RESBLOCK = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
FUSED_IN_RESBLOCK = "attn.in_proj_weight"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""OpenCLIP's tensors of a layer, mapped to the modules of transformers' CLIP."""

FLUX: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
HALVES_SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")
"""The one layer whose halves, shift and scale, are in the other order."""
FLUX_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
FLUX_SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
"""The original names of Flux, mapped to those of diffusers: of the whole model, and in each kind of block."""
FLUX_BLOCKS = {
    ("double_blocks", "transformer_blocks"): FLUX_DOUBLE,
    ("single_blocks", "single_transformer_blocks"): FLUX_SINGLE,
}


def other_names(shapes: Shapes) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    """Yield the names that other libraries have for layers of a model, and where the update of each goes.

    Args:
        shapes: The shapes of the model's tensors, by their names.
    """
    yield from _of_open_clip(shapes)
    yield from _of_flux(shapes)


def _of_open_clip(shapes: Shapes) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    for name, shape in shapes.items():
        match = OPEN_CLIP.fullmatch(name)
        if match is None:
            continue
        layer, rest = f"encoder.layers.{match[1]}", match[2]
        if rest in IN_RESBLOCK:
            yield f"{layer}.{IN_RESBLOCK[rest]}", (Spot(name),)
        elif rest == FUSED_IN_RESBLOCK:
            parts = _cut([shape[0] // 3] * 3)
            for projection, rows in zip(PROJECTIONS, parts, strict=True):
                yield f"{layer}.self_attn.{projection}", (Spot(name, rows),)
    if "text_projection" in shapes:
        yield "text_projection", (Spot("text_projection", layout=TRANSPOSED),)


def _of_flux(shapes: Shapes) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    if "context_embedder.weight" not in shapes and "txt_in.weight" not in shapes:
        return
    table = dict(FLUX)
    for (old, new), layers in FLUX_BLOCKS.items():
        blocks = {name.split(".")[1] for name in shapes if name.startswith((f"{old}.", f"{new}."))}
        for block in sorted(blocks):
            table |= {
                f"{old}.{block}.{one}": tuple(f"{new}.{block}.{part}" for part in parts)
                for one, parts in layers.items()
            }
    for whole, parts in table.items():
        yield from _fused(shapes, f"{whole}.weight", [f"{part}.weight" for part in parts])
    for one, other in (HALVES_SWAPPED, HALVES_SWAPPED[::-1]):
        if f"{one}.weight" in shapes:
            rows = shapes[f"{one}.weight"][0]
            first, last = (0, rows // 2), (rows // 2, rows)
            yield other, (Spot(f"{one}.weight", first, last), Spot(f"{one}.weight", last, first))


def _fused(shapes: Shapes, whole: str, parts: Sequence[str]) -> Iterator[tuple[str, tuple[Spot, ...]]]:
    """Yield the other name of a layer, where the model has it whole or in parts."""
    is_one = len(parts) == 1
    if whole in shapes:
        rows, columns = shapes[whole][:2]
        sizes = [columns] * 3 + [rows - 3 * columns] * (len(parts) - 3)
        cuts = [None] if is_one else _cut(sizes)
        for part, cut in zip(parts, cuts, strict=True):
            yield part.removesuffix(".weight"), (Spot(whole, cut),)
    elif all(part in shapes for part in parts):
        cuts = [None] if is_one else _cut([shapes[part][0] for part in parts])
        spots = (Spot(part, own_rows=cut) for part, cut in zip(parts, cuts, strict=True))
        yield whole.removesuffix(".weight"), tuple(spots)


def _cut(sizes: Sequence[int]) -> list[Rows | None]:
    return list(pairwise(accumulate(sizes, initial=0)))
