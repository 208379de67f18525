"""Read single-file LoRAs, which diffusers and kohya's trainers write for image models.

These files have no adapter_config.json. Shapes say what the rank is. Alpha is a tensor next to the factors,
or in the metadata that diffusers writes; without an alpha the scale is 1.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from monosoup_cli.adapters.lora import ADAPTER_CONFIG, Adapter, LoraPair
from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.dtypes import FLOATING, NUMBERS, number_in
from monosoup_cli.formats.header import TensorInfo, parse_json
from monosoup_cli.formats.lora_names import ENDS, end_of
from monosoup_cli.sources.alignment import Rename, align
from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = ["read_lora_file"]

PEFT = "base_model.model."

FLAT = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
"""kohya's prefixes of module names, in which underscores replace dots, mapped to parts of the pipeline."""
DOTTED = {
    "unet.": "unet",
    "diffusion_model.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
PARTS = {**FLAT, **DOTTED, "": ""}
DENOISER = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.")
ROOTS = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
        "text_encoder.",
    ),
    "text_encoder_2": ("text_encoders.clip_g.transformer.", "text_encoder_2."),
}
"""The prefixes of these parts in files of whole pipelines. All other parts are denoisers."""
TEXT_MODEL = re.compile(r"text_model[._]")
"""The prefix in names of CLIP's text encoder, which newer versions of transformers omit."""
PROCESSOR = re.compile(r"\.(?:processor\.)?to_(q|k|v|out)$")

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

METADATA = "lora_adapter_metadata"
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The initializations that leave the base unchanged."""
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
PLAIN = re.compile(r"\^?(\w|\\?\.|-){1,500}\$?")
"""Patterns that are fast to match with any name."""
MAX_PATTERNS = 4096


Find = Callable[[str], Sequence[str]]


def read_lora_file(
    own: Checkpoint, base: Mapping[str, TensorInfo], renames: Sequence[Rename] = ()
) -> Adapter:
    """Find what a single-file LoRA changes in its base.

    Args:
        own: The file.
        base: The tensors of the base, whose names the result has.
        renames: The renames that the user asked for, applied to the file's names.

    Raises:
        CheckpointError: The file is malformed, is not LoRA, or does not fit the base.
        MismatchError: A rename maps two names to one.
    """
    aligned = align(own.tensors, base, renames, own.path)
    modules = _modules(aligned.stored, own.path)
    finders = {prefix: _finder(base, prefix) for prefix, _ in modules}
    configs = {prefix: {} if prefix in FLAT else _noted_config(own, PARTS[prefix]) for prefix in finders}
    found = {(prefix, module): finders[prefix](module) for prefix, module in modules}
    at_hand = {prefix for (prefix, _), names in found.items() if names}
    pairs: dict[str, LoraPair] = {}
    for (prefix, module), parts in modules.items():
        tensor, names = next(iter(parts.values())), found[prefix, module]
        for factor in "AB":
            if factor not in parts:
                raise CheckpointError(
                    f"factor {factor} of the same module is missing", path=own.path, tensor=tensor
                )
        if not names:
            raise _not_in_base(own.path, tensor, PARTS[prefix], module, is_at_hand=prefix in at_hand)
        if len(names) > 1:
            raise CheckpointError(
                "may belong to more than one module of the base",
                path=own.path,
                tensor=tensor,
                found=" and ".join(crop(repr(name)) for name in names[:2]),
            )
        if names[0] in pairs:
            raise CheckpointError(
                f"changes the base's {crop(repr(names[0]))}, which another tensor changes, too",
                path=own.path,
                tensor=tensor,
                found=crop(repr(pairs[names[0]].a)),
            )
        pairs[names[0]] = _pair(own, parts, base[names[0]], configs[prefix], module)
    return Adapter(own, {}, pairs, read_as=aligned.notes, unused=aligned.unused)


def _modules(stored: Mapping[str, str], path: str) -> dict[tuple[str, str], dict[str, str]]:
    """Group the tensors by (prefix, module), and in each group by their kinds in ENDS."""
    modules: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, tensor in stored.items():
        if name.startswith(PEFT):
            raise CheckpointError(
                "a PEFT adapter, whose scale is in its configuration",
                path=path,
                tensor=tensor,
                hint=f"pass the folder that holds it and {ADAPTER_CONFIG}",
            )
        end = end_of(name)
        if end is None:
            raise CheckpointError("neither a LoRA factor nor an alpha", path=path, tensor=tensor)
        module = name.removesuffix(end)
        prefix = next(one for one in PARTS if module.startswith(one))
        module = module.removeprefix(prefix)
        if end.startswith("_"):
            module = PROCESSOR.sub(_text_projection if PARTS[prefix] in ROOTS else _projection, module)
        parts = modules[prefix, module]
        if ENDS[end] in parts:
            raise CheckpointError(
                "its module has two such tensors", path=path, tensor=tensor, found=repr(parts[ENDS[end]])
            )
        parts[ENDS[end]] = tensor
    return dict(modules)


def _projection(match: re.Match[str]) -> str:
    return ".to_out.0" if match[1] == "out" else f".to_{match[1]}"


def _text_projection(match: re.Match[str]) -> str:
    return f".{match[1]}_proj"


def _finder(base: Iterable[str], prefix: str) -> Find:
    """Make a function that finds the base's tensors for a module's name with this prefix.

    Equal names go before those that the UNet of Stable Diffusion has in another library.
    """
    part, separator = PARTS[prefix], "_" if prefix in FLAT else "."
    roots = ROOTS.get(part, DENOISER)
    modules = {}
    for name in base:
        if name.endswith(".weight"):
            root = next((root for root in roots if name.startswith(root)), "")
            module = name[len(root) :].removesuffix(".weight")
            modules[name] = TEXT_MODEL.sub("", module, count=1) if part in ROOTS else module
    layers = _layers_per_block(set(modules.values()))
    exact: dict[str, list[str]] = defaultdict(list)
    original: dict[str, list[str]] = defaultdict(list)
    for name, module in modules.items():
        exact[module.replace(".", separator)].append(name)
        if layers:
            original[_original(module, layers).replace(".", separator)].append(name)

    def find(module: str) -> Sequence[str]:
        if part in ROOTS:
            module = TEXT_MODEL.sub("", module, count=1)
        if module in exact or not layers:
            return exact.get(module, ())
        return original.get(_original(module, layers).replace(".", separator), ())

    return find


def _layers_per_block(modules: set[str]) -> int:
    """How many layers a block of Stable Diffusion's UNet has; 0 for other models."""
    if "down_blocks.0.resnets.0.conv1" in modules:
        return next(
            n for n in range(1, len(modules) + 1) if f"down_blocks.0.resnets.{n}.conv1" not in modules
        )
    return next((n - 1 for n in range(2, len(modules)) if f"input_blocks.{n}.0.op" in modules), 0)


def _original(module: str, layers: int) -> str:
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


def _not_in_base(path: str, tensor: str, part: str, module: str, *, is_at_hand: bool) -> CheckpointError:
    if is_at_hand or not part:
        return CheckpointError(
            f"the base has no module {crop(repr(module))}",
            path=path,
            tensor=tensor,
            hint="is it an adapter of another model?",
        )
    what = part.replace("_", " ")
    return CheckpointError(
        f"changes the {what}'s {crop(repr(module))}, but the base has no {what}",
        path=path,
        tensor=tensor,
        hint="use a base that holds all parts, such as the model's single file",
    )


def _pair(
    own: Checkpoint, parts: Mapping[str, str], target: TensorInfo, config: Mapping[str, Any], module: str
) -> LoraPair:
    a, b = own.tensors[parts["A"]], own.tensors[parts["B"]]
    for factor in (a, b):
        if factor.dtype not in FLOATING or len(factor.shape) < 2:
            raise CheckpointError(
                "not a LoRA factor",
                path=own.path,
                tensor=factor.name,
                expected=f"a matrix or a kernel of {', '.join(FLOATING)}",
                found=f"{list(factor.shape)} of {factor.dtype}",
            )
    rank = a.shape[0]
    if b.shape[1] != rank or rank == 0:
        raise CheckpointError(
            "the factors differ in rank",
            path=own.path,
            tensor=b.name,
            found=f"{list(b.shape)} × {list(a.shape)}",
        )
    shape = (b.shape[0], *a.shape[1:])
    if _without_ones(shape) != _without_ones(target.shape) or math.prod(b.shape[2:]) != 1:
        raise CheckpointError(
            "the factors do not fit the base",
            path=own.path,
            tensor=b.name,
            expected=f"{list(target.shape)} of {crop(repr(target.name))}",
            found=f"{list(b.shape)} × {list(a.shape)}",
        )
    if target.dtype not in FLOATING:
        raise CheckpointError(
            f"the base's {crop(repr(target.name))} cannot be changed",
            path=own.path,
            tensor=b.name,
            expected=", ".join(FLOATING),
            found=target.dtype,
        )
    return LoraPair(target.name, target.shape, a.name, b.name, rank, _scale(own, parts, config, module, rank))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing ones, because a 1×1 convolution is a linear layer."""
    return shape[:2] if set(shape[2:]) == {1} else shape


def _scale(
    own: Checkpoint, parts: Mapping[str, str], config: Mapping[str, Any], module: str, rank: int
) -> float:
    alphas: dict[str, Any] = {}
    if "alpha" in parts:
        alphas[parts["alpha"]] = _number(own, parts["alpha"])
    if config:
        fitting = (alpha for pattern, alpha in config["alpha_pattern"].items() if pattern.match(module))
        alphas[METADATA] = next(fitting, config.get("lora_alpha"))
    for alpha in alphas.values():
        # also refuses other types, and integers beyond float64
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise CheckpointError(
                "alpha is not a finite number",
                path=own.path,
                tensor=parts.get("alpha", parts["A"]),
                found=crop(repr(alpha)),
            )
    if len(set(alphas.values())) > 1:
        raise CheckpointError(
            f"alpha differs from the file's {METADATA}",
            path=own.path,
            tensor=parts["alpha"],
            expected=alphas[METADATA],
            found=alphas[parts["alpha"]],
        )
    alpha = next(iter(alphas.values()), rank)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") and METADATA in alphas else rank)


def _number(own: Checkpoint, name: str) -> float:
    tensor = own.tensors[name]
    if tensor.elements != 1 or tensor.dtype not in NUMBERS:
        raise CheckpointError(
            "alpha is not a number",
            path=own.path,
            tensor=name,
            expected="one number",
            found=f"{list(tensor.shape)} of {tensor.dtype}",
        )
    data = bytearray(tensor.nbytes)
    own.reader(name).read_into(memoryview(data), 0)
    return number_in(data, tensor.dtype)


def _noted_config(own: Checkpoint, part: str) -> dict[str, Any]:
    """Read the configuration of a part of the pipeline from the file's metadata.

    Returns:
        The configuration, with its alpha_pattern compiled; empty if there is none.

    Raises:
        CheckpointError: The configuration is malformed, or describes more than LoRA.
    """
    text = own.files.metadata.get(METADATA)
    if text is None:
        return {}
    noted = parse_json(text.encode(), own.path, METADATA, is_strict=False)
    if not isinstance(noted, dict):
        raise CheckpointError(f"{METADATA} is not a JSON object", path=own.path)
    prefix = f"{part}." if part else ""
    config = {name.removeprefix(prefix): value for name, value in noted.items() if name.startswith(prefix)}
    if not config:
        return {}
    variants = [name for name in VARIANTS if config.get(name)]
    if config.get("peft_type", "LORA") != "LORA":
        variants.append("peft_type")
    if config.get("init_lora_weights") not in INITIALISATIONS:
        variants.append("init_lora_weights")
    if variants:
        raise CheckpointError(
            f"{METADATA} describes more than LoRA",
            path=own.path,
            found=crop(f"{variants[0]} {config[variants[0]]!r}"),
            hint="merge it with the program that made it",
        )
    return {**config, "alpha_pattern": _compile(config.get("alpha_pattern") or {}, own.path)}


def _compile(patterns: Any, path: str) -> dict[re.Pattern[str], Any]:
    """Compile patterns as peft does, which matches them with the ends of module names."""
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise CheckpointError(
            f"alpha_pattern in {METADATA} is not a JSON object of at most {MAX_PATTERNS:,} entries", path=path
        )
    for pattern in patterns:
        if not PLAIN.fullmatch(pattern):
            raise CheckpointError(
                f"alpha_pattern in {METADATA} has a pattern that is not supported",
                path=path,
                expected="names of modules",
                found=crop(repr(pattern)),
            )
    return {re.compile(rf"(.*\.)?({pattern})$"): alpha for pattern, alpha in patterns.items()}
