"""Adapters that are not LoRA, or not in a form that is read: what they are called, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from monosoup_cli.errors import CheckpointError, crop

__all__ = [
    "MERGE",
    "MERGE_WITH_PEFT",
    "factors_in",
    "is_of_other_adapter",
    "refuse_other_adapter",
    "refuse_other_settings",
]


class OtherAdapter(NamedTuple):
    """An adapter that cannot be edited as it is.

    Attributes:
        kind: What it is, to follow "this is".
        way_out: What the user can do with it.
    """

    kind: str
    way_out: str


MERGE = "merge it with the program that made it, and pass the merged model"
MERGE_WITH_PEFT = "merge it with peft (merge_and_unload, then save_pretrained), and pass the merged model"
FUSE = "pass what `mlx_lm.fuse --model BASE --adapter-path ADAPTER --save-path OUT` writes"
NO_WEIGHTS = "it changes no weights of the model, so load it beside the edited model as it is"

OF_MLX = OtherAdapter("an adapter of mlx", FUSE)
ENDS = {
    r"hada_\w+": OtherAdapter("LoHa, which is not LoRA", MERGE),
    r"lokr_\w+": OtherAdapter("LoKr, which is not LoRA", MERGE),
    r"[ab][12]\.weight|bm[12]\.weight": OtherAdapter("GLoRA, which is not LoRA", MERGE),
    r"oft_(blocks|diag|r|R)(\.\w+)?": OtherAdapter("OFT or BOFT, which is not LoRA", MERGE),
    r"boft_[Rs](\.\w+)?": OtherAdapter("BOFT, which is not LoRA", MERGE),
    r"on_input|ia3_l(\.\w+)?": OtherAdapter("IA³, which is not LoRA", MERGE),
    r"vera_lambda_[bd](\.\w+)?": OtherAdapter("VeRA, which is not LoRA", MERGE),
    r"[wb]_norm": OtherAdapter("LyCORIS with the differences of norms, which are not LoRA", MERGE),
    r"diff(_b)?": OtherAdapter("the difference of a whole tensor, which is not LoRA", MERGE),
    r"lora_mid(\.\w+)?": OtherAdapter("LoRA with a third factor (Tucker's form)", MERGE),
    "dora_scale": OtherAdapter("DoRA, whose norms differ from trainer to trainer", MERGE),
    r"lora_magnitude_vector(\.\w+)?": OtherAdapter("DoRA, which is read from peft's folders alone", MERGE),
    "lora_[ab]": OF_MLX,
}
"""The ends of tensor names."""
NAMES = {
    "lora_controlnet": OtherAdapter(
        "a Control-LoRA, which turns a UNet into a ControlNet", "pass the whole ControlNet it was made from"
    ),
    r"emb_params|clip_[lg]|(string_to_param|string_to_token)(\..*)?|<[\w-]+>": OtherAdapter(
        "a textual inversion, which adds words to a text encoder", NO_WEIGHTS
    ),
    r"prompt_embeddings|(.+\.)?prompt_encoder\.([\w-]+\.)?(embedding|transform|(mlp|lstm)_head)\..*": (
        OtherAdapter(
            "a prompt or prefix that was tuned", NO_WEIGHTS
        )  # SAM's prompt_encoder has none of these
    ),
}
"""Whole names, one of which says what a file is."""
OF_PEFT = "base_model.model."
WITHOUT_WEIGHTS = {
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
}
"""The kinds of peft that cannot be merged, because they change what goes in or add to it."""
END = re.compile(rf"(?:^|\.)(?:{'|'.join(ENDS)})$")
FACTOR = re.compile(
    r"(?:^|\.)(lora_|hada_|lokr_|oft_(?=blocks|diag|[rR](?:\.|$))|boft_|ia3_l|vera_lambda_|dora_scale"
    r"|(?:\w+_)?lora\.(?=up|down))"
)
"""How the names of factors begin that are found in models, too."""
IN_FACTORS = ("lora", "hada_", "lokr_", "oft_", "ia3_l", "vera_lambda_", "dora_scale")
"""What is in every such name, one or the other."""
MLX_SETTINGS = {"lora_parameters", "fine_tune_type", "lora_layers"}


def is_of_other_adapter(name: str) -> bool:
    """Return whether a tensor's name is one of an adapter that is not plain LoRA."""
    return END.search(name) is not None


def factors_in(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors that have the name of a factor in them, and how that begins."""
    names = list(names)
    together = "\n".join(names)  # looking once is faster than looking into every name
    for name in names if any(one in together for one in IN_FACTORS) else ():
        if found := FACTOR.search(name):
            yield name, found[1]


def refuse_other_adapter(names: Iterable[str], path: str, *, is_lora: bool) -> None:
    """Raise CheckpointError where the names of a file show it to be another kind of adapter.

    Names as in peft's own files tell nothing here: their adapter_config.json does.

    Args:
        names: The names of the tensors.
        path: The file.
        is_lora: Whether most of them are those of factors, so that the end of one tells.
    """
    kinds = ENDS if is_lora else NAMES
    begin = r"(?:^|\.)" if is_lora else "^"
    any_kind = re.compile(rf"{begin}(?:{'|'.join(kinds)})$")
    for name in names:
        if name.startswith(OF_PEFT) or not any_kind.search(name):
            continue
        for pattern, other in kinds.items():
            if re.search(rf"{begin}(?:{pattern})$", name):
                raise CheckpointError(f"this is {other.kind}", path=path, tensor=name, hint=other.way_out)


def refuse_other_settings(config: Mapping[str, Any], path: str) -> None:
    """Raise CheckpointError where an adapter_config.json describes another kind of adapter than LoRA."""
    kind = config.get("peft_type")
    if kind is None and not MLX_SETTINGS.isdisjoint(config):
        raise CheckpointError(f"this is {OF_MLX.kind}", path=path, hint=OF_MLX.way_out)
    if isinstance(kind, str) and kind != "LORA":
        raise CheckpointError(
            f"this is an adapter of peft's kind {crop(repr(kind))}, and only LORA can be read",
            path=path,
            hint=NO_WEIGHTS if kind in WITHOUT_WEIGHTS else MERGE_WITH_PEFT,
        )
