"""The public checkpoints of the paper, as names and shapes of any size.

CLIP as the model soups of Wortsman et al. (2022) store it: the visual tower, the embeddings of the text
tower, and the head. ConvNeXt as timm names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]

VIT_B_32: dict[str, Any] = {"width": 768, "layers": 12, "patch": 32, "positions": 50, "output": 512}
VIT_L_14: dict[str, Any] = {"width": 1024, "layers": 24, "patch": 14, "positions": 257, "output": 768}
CONVNEXT_SMALL: dict[str, Any] = {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)}


def clip_shapes(
    *,
    width: int,
    layers: int,
    patch: int,
    positions: int,
    output: int,
    words: int = 49408,
    classes: int = 1000,
) -> Shapes:
    """The state dict of `ModelWrapper` in the repository of the model soups."""

    def norm(name: str, size: int) -> Shapes:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    shapes: Shapes = {
        "model.positional_embedding": (77, output),
        "model.text_projection": (output, output),
        "model.logit_scale": (),
        "model.visual.class_embedding": (width,),
        "model.visual.positional_embedding": (positions, width),
        "model.visual.proj": (width, output),
        "model.visual.conv1.weight": (width, 3, patch, patch),
        **norm("model.visual.ln_pre", width),
    }
    for layer in range(layers):
        block = f"model.visual.transformer.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            **norm(f"{block}.ln_1", width),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
            **norm(f"{block}.ln_2", width),
        }
    return {
        **shapes,
        **norm("model.visual.ln_post", width),
        "model.token_embedding.weight": (words, output),
        **norm("model.ln_final", output),
        "classification_head.weight": (classes, output),
        "classification_head.bias": (classes,),
    }


def convnext_shapes(*, depths: tuple[int, ...], widths: tuple[int, ...], classes: int) -> Shapes:
    """The state dict of timm's ConvNeXt."""

    def both(name: str, *shape: int) -> Shapes:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {**both("stem.0", widths[0], 3, 4, 4), **both("stem.1", widths[0])}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            before = widths[stage - 1]
            shapes |= both(f"stages.{stage}.downsample.0", before)
            shapes |= both(f"stages.{stage}.downsample.1", width, before, 2, 2)
        for number in range(depth):
            block = f"stages.{stage}.blocks.{number}"
            shapes |= {
                f"{block}.gamma": (width,),
                **both(f"{block}.conv_dw", width, 1, 7, 7),
                **both(f"{block}.norm", width),
                **both(f"{block}.mlp.fc1", 4 * width, width),
                **both(f"{block}.mlp.fc2", width, 4 * width),
            }
    return {**shapes, **both("head.norm", widths[-1]), **both("head.fc", classes, widths[-1])}


def weights(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of these shapes."""
    normal = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=normal) for name, shape in shapes.items()}


def finetuned(
    base: Mapping[str, torch.Tensor], seed: int, frozen: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The weights after an update that is partly the same for all seeds; frozen are those that start so."""
    same, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    return {
        name: tensor.clone()
        if name.startswith(frozen)
        else tensor
        + 0.01 * (torch.randn(tensor.shape, generator=same) + torch.randn(tensor.shape, generator=own))
        for name, tensor in base.items()
    }
