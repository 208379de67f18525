"""The tensor names in single-file LoRAs from diffusers, kohya's trainers and others."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["ENDS", "OTHER_KIND", "OTHER_KINDS", "end_of", "is_lora_file"]

ENDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",  # peft, and diffusers since it builds on that
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",  # kohya
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",  # of an attention processor
    ".alpha": "alpha",
}
"""The endings of tensor names, mapped to what the tensors are."""
ANY_END = tuple(ENDS)
OTHER_KINDS = {
    "hada": "LoHa, which is not LoRA",
    "lokr": "LoKr, which is not LoRA",
    "oft": "OFT, which is not LoRA",
    "lora_mid": "LoRA with a third factor (Tucker's form)",
    "dora_scale": "DoRA, whose norms differ from trainer to trainer",
    "lora_magnitude_vector": "DoRA, which is read from peft's folders alone",
    "diff": "the difference of a whole tensor, which is not LoRA",
}
OTHER_KIND = re.compile(rf"\.({'|'.join(OTHER_KINDS)})(_\w+)?(\.weight)?$")


def is_lora_file(names: Iterable[str]) -> bool:
    """Return whether these names are those of an adapter: most are factors, of LoRA or something similar."""
    listed = list(names)
    alphas = sum(name.endswith(".alpha") for name in listed)
    factors = sum(end_of(name) is not None or OTHER_KIND.search(name) is not None for name in listed) - alphas
    return factors > 0 and 2 * (factors + alphas) >= len(listed)


def end_of(name: str) -> str | None:
    """Return the ending in ENDS that a name has, or None."""
    if not name.endswith(ANY_END):  # most names, and much faster than one by one
        return None
    return next(end for end in ENDS if name.endswith(end))
