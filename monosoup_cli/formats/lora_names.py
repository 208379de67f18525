"""The tensor names in single-file LoRAs from diffusers, kohya's trainers and others."""

from __future__ import annotations

from collections.abc import Iterable

from monosoup_cli.formats.other_adapters import is_of_other_adapter

__all__ = ["ENDS", "end_of", "is_lora_file"]

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


def is_lora_file(names: Iterable[str]) -> bool:
    """Return whether these names are those of an adapter: most are factors, of LoRA or something similar."""
    listed = list(names)
    alphas = sum(name.endswith(".alpha") for name in listed)
    factors = sum(end_of(name) is not None or is_of_other_adapter(name) for name in listed) - alphas
    return factors > 0 and 2 * (factors + alphas) >= len(listed)


def end_of(name: str) -> str | None:
    """Return the ending in ENDS that a name has, or None."""
    if not name.endswith(ANY_END):  # most names, and much faster than one by one
        return None
    return next(end for end in ENDS if name.endswith(end))
