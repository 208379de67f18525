"""The names of an adapter's tensors in single files, as diffusers and kohya's trainers write them.

Such a file has no configuration: a scale that it does not say is 1, and ranks follow from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from monosoup_cli.adapters.layout import PREFIX, AdapterLayout
from monosoup_cli.errors import UsageError
from monosoup_cli.names import FileForm

__all__ = ["as_file"]

ENDS = {"kohya": (".lora_down.weight", ".lora_up.weight"), "diffusers": (".lora_A.weight", ".lora_B.weight")}
KOHYA: Mapping[str, str] = {
    "unet": "lora_unet",
    "transformer": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
"""What kohya's trainers call the parts of a pipeline. Of two text encoders, the first one is lora_te1."""

UNNAMED = "add_embedding."
"""What kohya's trainers never change, so that readers do not know their name for it."""


def as_file(layout: AdapterLayout, part: str, has_two_encoders: bool, *, form: FileForm) -> AdapterLayout:
    """The same adapter under the names of a single file, which only holds factors.

    Args:
        layout: The adapter as peft names it.
        part: The folder of the pipeline that it changes.
        has_two_encoders: Whether the pipeline has a second text encoder.
        form: Whose names they are.

    Raises:
        UsageError: The form has no name for the part.
    """
    named = _kohya(part, has_two_encoders) if form == "kohya" else lambda module: f"{part}.{module}"
    a, b = ENDS[form]
    pairs, left = {}, [*layout.left, *layout.carried]
    for name, pair in layout.pairs.items():
        is_unnamed = form == "kohya" and name.startswith(UNNAMED)
        if is_unnamed or not pair.a.endswith(".lora_A.weight"):
            left.append(name)
            continue
        module = named(pair.a.removeprefix(PREFIX).removesuffix(".lora_A.weight"))
        pairs[name] = replace(pair, a=f"{module}{a}", b=f"{module}{b}")
    return replace(layout, pairs=pairs, carried={}, left=tuple(left))


def _kohya(part: str, has_two_encoders: bool) -> Callable[[str], str]:
    if part not in KOHYA:
        raise UsageError(f"kohya's files have no name for {part}", hint="--form diffusers has one")
    first = "lora_te1" if part == "text_encoder" and has_two_encoders else KOHYA[part]
    return lambda module: f"{first}_{module.replace('.', '_')}"
