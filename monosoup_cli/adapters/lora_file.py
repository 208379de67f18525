"""A LoRA in a single safetensors file, as diffusers and kohya's trainers write them for image models.

There is no configuration beside it. The rank is that of the shapes; alpha is a tensor beside the
factors, or stands in what diffusers notes in the file's metadata; where it is nowhere, the scale is 1.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from monosoup_cli.adapters.lora import ADAPTER_CONFIG, Adapter, LoraPair
from monosoup_cli.errors import CheckpointError, cropped
from monosoup_cli.formats.dtypes import FLOATING, NUMBERS, number_in
from monosoup_cli.formats.header import TensorInfo, parse_json
from monosoup_cli.formats.lora_names import ENDS, OTHER_KIND, OTHER_KINDS, end_of
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
"""What kohya has before a module's name, in which underscores stand for dots → the part of the pipeline."""
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
"""Where files of whole pipelines have the part; all others are denoisers."""
TEXT_MODEL = re.compile(r"text_model[._]")
"""Before the names of CLIP's text encoder in all but newer versions of transformers."""
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
"""Diffusers' names of the UNet of Stable Diffusion → the original's."""
IN_BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:[._](\d{1,3}))?"
    r"[._](resnets|attentions|downsamplers|upsamplers)[._](\d{1,3})[._](.+)"
)
ENLARGING = re.compile(r"(output_blocks)[._](\d{1,3})[._]\d[._]conv")

METADATA = "lora_adapter_metadata"
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Those that leave the base as it is."""
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
"""Patterns that are soon matched, whatever with."""
MAX_PATTERNS = 4096


Find = Callable[[str], Sequence[str]]


def read_lora_file(
    own: Checkpoint, base: Mapping[str, TensorInfo], renames: Sequence[Rename] = ()
) -> Adapter:
    """What the adapter in the file `own` changes of the tensors `base`, whose names they get. The renames
    are of the file's names. Raises CheckpointError for what is malformed, is not LoRA, or does not fit
    the base, and MismatchError where a rename makes one name of two."""
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
                raise CheckpointError(f"factor {factor} is missing beside it", path=own.path, tensor=tensor)
        if not names:
            raise _not_in_base(own.path, tensor, PARTS[prefix], module, is_at_hand=prefix in at_hand)
        if len(names) > 1:
            raise CheckpointError(
                "may belong to more than one module of the base",
                path=own.path,
                tensor=tensor,
                found=" and ".join(cropped(repr(name)) for name in names[:2]),
            )
        if names[0] in pairs:
            raise CheckpointError(
                f"changes the base's {cropped(repr(names[0]))}, as another does",
                path=own.path,
                tensor=tensor,
                found=cropped(repr(pairs[names[0]].a)),
            )
        pairs[names[0]] = _pair(own, parts, base[names[0]], configs[prefix], module)
    return Adapter(own, {}, pairs, read_as=aligned.said, unused=aligned.unused)


def _modules(stored: Mapping[str, str], path: str) -> dict[tuple[str, str], dict[str, str]]:
    """(prefix, module) → what the file has for it, by ENDS → the tensor."""
    modules: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, tensor in stored.items():
        if kind := OTHER_KIND.search(name):
            raise CheckpointError(
                f"this is {OTHER_KINDS[kind[1]]}",
                path=path,
                tensor=tensor,
                hint="merge it with the program that made it",
            )
        if name.startswith(PEFT):
            raise CheckpointError(
                "an adapter of peft, whose scale its configuration tells",
                path=path,
                tensor=tensor,
                hint=f"name the folder that holds it and {ADAPTER_CONFIG}",
            )
        end = end_of(name)
        if end is None:
            raise CheckpointError("neither a factor of a LoRA nor an alpha", path=path, tensor=tensor)
        module = name.removesuffix(end)
        prefix = next(each for each in PARTS if module.startswith(each))
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
    """Finds the base's tensors that may be meant by a module's name after this prefix.

    Names in which the two agree go before those that the UNet of Stable Diffusion has elsewhere.
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
    """Of a UNet as Stable Diffusion's, by diffusers' names or the original's; 0 where it is none."""
    if "down_blocks.0.resnets.0.conv1" in modules:
        return next(
            n for n in range(1, len(modules) + 1) if f"down_blocks.0.resnets.{n}.conv1" not in modules
        )
    return next((n - 1 for n in range(2, len(modules)) if f"input_blocks.{n}.0.op" in modules), 0)


def _original(module: str, layers: int) -> str:
    """What the original calls a module of the UNet, by diffusers' name or its own; dots may be underscores.
    What enlarges stands third in its block, or second without attention: here always as "up"."""
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
            f"the base has no module {cropped(repr(module))}",
            path=path,
            tensor=tensor,
            hint="is it an adapter of another model?",
        )
    what = part.replace("_", " ")
    return CheckpointError(
        f"is for the {what}'s {cropped(repr(module))}, and the base has nothing of the {what}",
        path=path,
        tensor=tensor,
        hint="take a base that holds all parts, as the model's single file",
    )


def _pair(
    own: Checkpoint, parts: Mapping[str, str], target: TensorInfo, config: Mapping[str, Any], module: str
) -> LoraPair:
    a, b = own.tensors[parts["A"]], own.tensors[parts["B"]]
    for factor in (a, b):
        if factor.dtype not in FLOATING or len(factor.shape) < 2:
            raise CheckpointError(
                "no factor of a LoRA",
                path=own.path,
                tensor=factor.name,
                expected=f"a matrix or a kernel of {', '.join(FLOATING)}",
                found=f"{list(factor.shape)} of {factor.dtype}",
            )
    rank = a.shape[0]
    if b.shape[1] != rank or rank == 0:
        raise CheckpointError(
            "the factors have no rank in common",
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
            expected=f"{list(target.shape)} of {cropped(repr(target.name))}",
            found=f"{list(b.shape)} × {list(a.shape)}",
        )
    if target.dtype not in FLOATING:
        raise CheckpointError(
            f"the base's {cropped(repr(target.name))} cannot be changed",
            path=own.path,
            tensor=b.name,
            expected=", ".join(FLOATING),
            found=target.dtype,
        )
    return LoraPair(target.name, target.shape, a.name, b.name, rank, _scale(own, parts, config, module, rank))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a linear layer for the convolution that is one."""
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
        # also what is no number, and an integer beyond them
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise CheckpointError(
                "alpha is no finite number",
                path=own.path,
                tensor=parts.get("alpha", parts["A"]),
                found=cropped(repr(alpha)),
            )
    if len(set(alphas.values())) > 1:
        raise CheckpointError(
            f"alpha is another in the file's {METADATA}",
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
            "alpha is no number",
            path=own.path,
            tensor=name,
            expected="one number",
            found=f"{list(tensor.shape)} of {tensor.dtype}",
        )
    data = bytearray(tensor.nbytes)
    own.reader(name).read_into(memoryview(data), 0)
    return number_in(data, tensor.dtype)


def _noted_config(own: Checkpoint, part: str) -> dict[str, Any]:
    """Of one part of the pipeline, from the file's metadata, with its alpha_pattern compiled; empty where
    there is none. Raises CheckpointError for one that is not LoRA alone."""
    text = own.files.metadata.get(METADATA)
    if text is None:
        return {}
    noted = parse_json(text.encode(), own.path, METADATA)
    if not isinstance(noted, dict):
        raise CheckpointError(f"{METADATA} is no JSON object", path=own.path)
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
            f"{METADATA} tells of more than LoRA",
            path=own.path,
            found=cropped(f"{variants[0]} {config[variants[0]]!r}"),
            hint="merge it with the program that made it",
        )
    return {**config, "alpha_pattern": _compiled(config.get("alpha_pattern") or {}, own.path)}


def _compiled(patterns: Any, path: str) -> dict[re.Pattern[str], Any]:
    """As peft matches them: with the ends of modules' names."""
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise CheckpointError(
            f"alpha_pattern in {METADATA} is no JSON object of at most {MAX_PATTERNS:,} entries", path=path
        )
    for pattern in patterns:
        if not PLAIN.fullmatch(pattern):
            raise CheckpointError(
                f"alpha_pattern in {METADATA} is not plain",
                path=path,
                expected="names of modules",
                found=cropped(repr(pattern)),
            )
    return {re.compile(rf"(.*\.)?({pattern})$"): alpha for pattern, alpha in patterns.items()}
