"""The names of the UNet of Stable Diffusion: those of diffusers, and the original ones."""

from __future__ import annotations

import re

__all__ = ["layers_per_block", "original"]

UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""diffusers' names in the UNet of Stable Diffusion, mapped to the original names."""
IN_BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:[._](\d{1,3}))?"
    r"[._](resnets|attentions|downsamplers|upsamplers)[._](\d{1,3})[._](.+)"
)
ENLARGING = re.compile(r"(output_blocks)[._](\d{1,3})[._]\d[._]conv")


def layers_per_block(modules: set[str]) -> int:
    """How many layers a block of Stable Diffusion's UNet has; 0 for other models."""
    if "down_blocks.0.resnets.0.conv1" in modules:
        return next(
            n for n in range(1, len(modules) + 1) if f"down_blocks.0.resnets.{n}.conv1" not in modules
        )
    return next((n - 1 for n in range(2, len(modules)) if f"input_blocks.{n}.0.op" in modules), 0)


def original(module: str, layers: int) -> str:
    """Return the original name of a module of the UNet, from diffusers' or the original name.

    Dots may be underscores. An upsampler is third in its block, or second in one without attention: here it
    is always called "up".
    """
    for name, original in UNET.items():
        if module in (name, name.replace(".", "_")):
            return original
    if enlarging := ENLARGING.fullmatch(module):
        return f"{enlarging[1]}.{enlarging[2]}.up.conv"
    match = IN_BLOCK.fullmatch(module)
    if match is None:
        return module
    side, level, kind, at, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = RESNET.get(rest, rest)
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.up.conv"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * at}.{rest}"
    inner = int(kind == "attentions")
    if side == "down_blocks":
        return f"input_blocks.{level * (layers + 1) + at + 1}.{inner}.{rest}"
    return f"output_blocks.{level * (layers + 1) + at}.{inner}.{rest}"
