"""Tiny models whose weights libraries have encoded, with what these libraries decode."""

import json
import warnings
from typing import NamedTuple

import torch
import transformers
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.models import CAUSAL, build, step

LLAMA = ("LlamaForCausalLM", {**CAUSAL, "hidden_size": 64, "intermediate_size": 96})
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "pad_token_id": 1}
GPT_OSS = ("GptOssForCausalLM", {**CAUSAL, "hidden_size": 32, "intermediate_size": 64, **EXPERTS})
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
NVFP4 = {**FP4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
SCHEMES = {
    "pack-quantized, groups": ("pack-quantized", INT4),
    "pack-quantized, asymmetric": ("pack-quantized", {**INT4, "symmetric": False}),
    "pack-quantized, channels": (
        "pack-quantized",
        {**INT4, "num_bits": 8, "strategy": "channel", "group_size": None},
    ),
    "int-quantized": ("int-quantized", {**INT4, "num_bits": 8, "strategy": "channel", "group_size": None}),
    "naive-quantized": ("naive-quantized", {**INT4, "num_bits": 8, "symmetric": False}),
    "nvfp4-pack-quantized": ("nvfp4-pack-quantized", NVFP4),
    "mxfp4-pack-quantized": (
        "mxfp4-pack-quantized",
        {**FP4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
}
"""Formats of compressed-tensors, and how weights are quantised."""
BITSANDBYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4 in bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}
KINDS = ["mxfp4", "NVFP4 of ModelOpt", *SCHEMES, *BITSANDBYTES]


class Encoded(NamedTuple):
    """A folder, and the tensors that were decoded: in float32, and as the library rounds them."""

    folder: object
    exact: dict
    rounded: dict


def model_of(kind):
    return GPT_OSS if kind == "mxfp4" else LLAMA


def make(kind, folder, *, is_finetuned=False):
    """The folder of a tiny model, encoded."""
    model = build(*model_of(kind))
    model = (step(model) if is_finetuned else model).bfloat16()
    if kind in BITSANDBYTES:
        return _bitsandbytes(kind, model, folder)
    plain = dict(model.state_dict())
    tensors, exact, rounded = {}, {}, {}
    for name, weights in plain.items():
        is_encoded = ".experts." in name and "bias" not in name if kind == "mxfp4" else "_proj" in name
        if not is_encoded:
            tensors[name] = weights
            continue
        parts, exact[name], rounded[name] = _parts(kind, name, weights, seed=int(is_finetuned))
        tensors |= parts
    settings = {"mxfp4": {"quant_method": "mxfp4"}, "NVFP4 of ModelOpt": {"quant_method": "modelopt"}}.get(
        kind
    )
    write(folder, model, tensors, settings or _settings(kind))
    return Encoded(folder, exact, rounded)


def loaded(kind, folder):
    """The tensors of an encoded folder as transformers loads them; bitsandbytes keeps its codes."""
    known = transformers.Mxfp4Config if kind == "mxfp4" else transformers.CompressedTensorsConfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder has a configuration too, which this one changes
        model, said = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=known(dequantize=True), output_loading_info=True
        )
    assert not any(said.values()), said
    return model.state_dict()


def plain(kind, folder, *, is_finetuned=False):
    """The folder of the same model in bfloat16, and its tensors."""
    model = build(*model_of(kind))
    model = (step(model) if is_finetuned else model).bfloat16()
    model.save_pretrained(folder, save_original_format=False)
    return folder, load_file(folder / "model.safetensors")


def write(folder, model, tensors, settings):
    folder.mkdir(parents=True)
    save_file(
        {name: one.contiguous() for name, one in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = {
        **model.config.to_dict(),
        "architectures": [type(model).__name__],
        "quantization_config": settings,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _settings(kind):
    form, weights = SCHEMES[kind]
    scheme = {"targets": ["Linear"], "weights": weights, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


def _parts(kind, name, weights, seed):
    """What is stored of one tensor, what it stands for, and the same as the library rounds it."""
    if kind == "mxfp4":
        parts = mxfp4(weights.shape, seed)
        exact, rounded = (
            convert_moe_packed_tensors(*parts, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        return dict(zip((f"{name}_blocks", f"{name}_scales"), parts, strict=True)), exact, rounded
    stem = name.removesuffix("weight")
    if kind == "NVFP4 of ModelOpt":
        stored, exact, rounded = compressed(*SCHEMES["nvfp4-pack-quantized"], weights)
        stored = {
            "weight": stored["weight_packed"],
            "weight_scale": stored["weight_scale"],
            "weight_scale_2": (1 / stored["weight_global_scale"]).view(()),
            "input_scale": torch.tensor(0.5),
        }
        of_groups = stored["weight_scale"].float() * stored["weight_scale_2"]
        codes = exact / of_groups.repeat_interleave(16, 1)
        codes = torch.where(codes.isfinite(), (2 * codes).round() / 2, 0.0)
        exact = codes * of_groups.repeat_interleave(16, 1)
        rounded = exact.bfloat16()
    else:
        stored, exact, rounded = compressed(*SCHEMES[kind], weights)
    return {f"{stem}{part}": one for part, one in stored.items()}, exact, rounded


def mxfp4(shape, seed):
    """Random blocks and scales of experts (count, in, out)."""
    count, rows, columns = shape
    noise = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (count, columns, rows // 32, 16), dtype=torch.uint8, generator=noise)
    return blocks, torch.randint(115, 124, blocks.shape[:3], dtype=torch.uint8, generator=noise)


def compressed(form, options, weights, scale_dtype=torch.bfloat16):
    """The parts of a weight in compressed-tensors, what they stand for, and what it makes of them."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**options))
    args, whole = scheme.weights, None
    rows, columns = weights.shape
    groups = columns // args.group_size if args.group_size else 1
    grouped = (
        weights.float().view(1, -1) if args.strategy == "tensor" else weights.float().view(rows, groups, -1)
    )
    lowest, highest = grouped.amin(-1), grouped.amax(-1)
    if args.strategy == "tensor_group":
        whole = generate_gparam(weights.min(), weights.max())
    scale, zero = calculate_qparams(lowest, highest, args, whole)
    scale = scale if form.startswith(("nvfp4", "mxfp4")) else scale.to(scale_dtype)
    state = {"weight": weights, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    state |= {} if whole is None else {"weight_global_scale": whole}
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    rounded = compressor.decompress(stored, scheme)["weight"]
    if "4-pack" in form:
        exact = _fp4(stored, compressor, args)
    else:
        exact = compressor.decompress({**stored, "weight_scale": scale.float()}, scheme)["weight"]
    return stored, exact, rounded


def _fp4(stored, compressor, args):
    """What the library decodes, without the last cast."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    rows, columns = stored["weight_packed"].shape
    codes = unpack_fp4_from_uint8(stored["weight_packed"], rows, 2 * columns, torch.float32)
    scale = compressor._decompress_scale(stored["weight_scale"], torch.float32)
    return dequantize(
        codes, scale, args=args, dtype=torch.float32, global_scale=stored.get("weight_global_scale")
    )


def _bitsandbytes(kind, model, folder):
    """A model that transformers loads in codes, and saves."""
    plain = folder.with_name(f"{folder.name}-plain")
    model.save_pretrained(plain)
    settings = transformers.BitsAndBytesConfig(**BITSANDBYTES[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = type(model).from_pretrained(plain, quantization_config=settings, dtype=torch.bfloat16)
        encoded.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    exact, rounded = {}, {}
    for name, codes in tensors.items():
        if f"{name.removesuffix('weight')}SCB" in tensors:
            exact[name] = int8_vectorwise_dequant(codes, tensors[f"{name.removesuffix('weight')}SCB"])
            rounded[name] = exact[name].bfloat16()
        parts = {
            key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")
        }
        if parts:
            state = QuantState.from_dict(parts, "cpu")
            rounded[name] = in_one_row(codes, state)
            state.dtype = torch.float32
            exact[name] = in_one_row(codes, state)
    return Encoded(folder, exact, rounded)


def in_one_row(codes, state):
    """What bitsandbytes decodes of a tensor whose elements it takes for one row.

    Where rows are no multiple of blocks, its kernels for processors are wrong (0.50.2): by 2.0 where
    quantising costs 0.5.
    """
    shape, state.shape = state.shape, torch.Size([1, state.shape.numel()])
    decoded = dequantize_4bit(codes, state).view(shape)
    state.shape = shape
    return decoded
