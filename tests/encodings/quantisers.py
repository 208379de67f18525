"""Small encoders of weights that monosoup does not decode, from the descriptions of their formats.

An encoder takes a matrix [out, in] and returns what stands in its place, by the ends of names. mlx itself
decoded what those of MLX make; names, dtypes and shapes of quanto, HQQ and torchao are as these write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

Encoded = dict[str, torch.Tensor]
GROUP = 32
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


class Quantiser(NamedTuple):
    """An encoder, and what it adds to config.json and to the header.

    Attributes:
        by: What the message calls it without config.json; None where names do not tell.
    """

    encode: Callable[[torch.Tensor], Encoded]
    config: Mapping[str, Any]
    metadata: Mapping[str, str] = {"format": "pt"}
    by: str | None = None


def affine(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of the weight's shape, and a scale and an offset for every group of a row."""
    groups = weight.float().unflatten(-1, (-1, group))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    codes = ((groups - low) / scale).round().clamp(0, 2**bits - 1)
    return codes.flatten(-2).long(), scale.squeeze(-1), low.squeeze(-1)


def packed(codes: torch.Tensor, bits: int, into: torch.dtype) -> torch.Tensor:
    """Write the codes of each row as a stream of bits, the lowest first."""
    stream = (codes.unsqueeze(-1) >> torch.arange(bits)) & 1
    width = 8 * into.itemsize
    words = stream.flatten(-2).unflatten(-1, (-1, width)) << torch.arange(width)
    return words.sum(-1).to(torch.int32).view(into) if width == 32 else words.sum(-1).to(into)


def mlx(weight: torch.Tensor, bits: int) -> Encoded:
    """As mlx.core.quantize does."""
    codes, scales, biases = affine(weight, bits, GROUP)
    return {
        "weight": packed(codes, bits, torch.uint32),
        "scales": scales.to(weight.dtype),
        "biases": biases.to(weight.dtype),
    }


def mlx_of_floats(weight: torch.Tensor, bits: int, group: int) -> Encoded:
    """Its modes mxfp4, mxfp8 and nvfp4: small floats, with a scale of 8 bits for every group of a row.

    The scales are exponents, as in the first two. nvfp4 has e4m3 in their place.
    """
    groups = weight.float().unflatten(-1, (-1, group))
    exponents = (groups.abs().amax(-1) / (6 if bits == 4 else 448)).log2().ceil()
    scaled = groups / exponents.exp2().unsqueeze(-1)
    nearest = (scaled.abs().unsqueeze(-1) - FP4).abs().argmin(-1) + 8 * (scaled < 0)
    codes = nearest if bits == 4 else scaled.to(torch.float8_e4m3fn).view(torch.uint8).long()
    return {"weight": packed(codes.flatten(-2), bits, torch.uint32), "scales": (exponents + 127).byte()}


def metal(weight: torch.Tensor) -> Encoded:
    """As transformers does for Apple's cards: MLX's codes under names of its own."""
    made = mlx(weight, 4)
    return {"weight": made["weight"], "scales": made["scales"], "qbiases": made["biases"]}


def symmetric(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().char(), scale


def quanto_int8(weight: torch.Tensor) -> Encoded:
    codes, scale = symmetric(weight)
    one = torch.ones(())
    return {
        "weight._data": codes,
        "weight._scale": scale.to(weight.dtype),
        "input_scale": one,
        "output_scale": one.clone(),
    }


def quanto_int4(weight: torch.Tensor) -> Encoded:
    codes, scale, low = affine(weight.reshape(-1, GROUP), 4, GROUP)
    one, other = codes.chunk(2)
    return {
        "weight._data._data": (one | other << 4).byte(),
        "weight._scale": scale.to(weight.dtype),
        "weight._shift": -low.to(weight.dtype),
    }


def quanto_fp8(weight: torch.Tensor) -> Encoded:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return {"weight._data": (weight / scale).to(torch.float8_e4m3fn), "weight._scale": scale}


def gptq(weight: torch.Tensor) -> Encoded:
    codes, scales, low = affine(weight, 4, GROUP)
    zeros = (-low / scales).round().clamp(1, 15).long()
    return {
        "qweight": packed(codes, 4, torch.int32).T.contiguous(),
        "qzeros": packed(zeros.T - 1, 4, torch.int32),
        "scales": scales.T.half().contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def awq(weight: torch.Tensor) -> Encoded:
    codes, scales, low = affine(weight, 4, GROUP)
    zeros = (-low / scales).round().clamp(0, 15).long()
    return {
        "qweight": packed(codes.T, 4, torch.int32),
        "qzeros": packed(zeros.T, 4, torch.int32),
        "scales": scales.T.half().contiguous(),
    }


def marlin(weight: torch.Tensor) -> Encoded:
    codes, scales, _ = affine(weight, 4, GROUP)
    rows = codes.T.reshape(weight.shape[1] // 16, -1)
    return {"B": packed(rows, 4, torch.int32), "s": scales.T.half().contiguous()}


def hqq(weight: torch.Tensor, bits: int, *, as_floats: bool = False) -> Encoded:
    codes, scale, low = affine(weight.reshape(-1, GROUP), bits, GROUP)
    if bits == 3:
        rows = torch.zeros(-(-len(codes) // 10) * 10, GROUP, dtype=torch.long)
        rows[: len(codes)] = codes
        stored = sum(part << 3 * (9 - n) for n, part in enumerate(rows.chunk(10))).int()
    else:
        parts = codes.chunk(8 // bits)
        stored = sum(part << 8 - bits * (n + 1) for n, part in enumerate(parts)).byte()
    return {
        "W_q": stored.view(torch.bfloat16) if as_floats else stored,
        "scale": scale.bfloat16(),
        "zero": (-low / scale).bfloat16(),
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "group_size": torch.tensor(GROUP, dtype=torch.int32),
        "shape": torch.tensor(weight.shape),
        "packing": torch.tensor(list(b"4bit_u8"), dtype=torch.uint8),
    }


def torchao(weight: torch.Tensor, dtype: torch.dtype) -> Encoded:
    """Its tensors as they are flattened for safetensors."""
    codes, scale = symmetric(weight)
    zeros = torch.zeros(scale.shape, dtype=torch.int8)
    if dtype is torch.int8:
        return {"_weight_qdata": codes, "_weight_scale": scale, "_weight_zero_point": zeros}
    return {"_weight_qdata": (weight / scale).to(dtype), "_weight_scale": scale}


def aqlm(weight: torch.Tensor) -> Encoded:
    """One codebook of 16 bits for groups of eight."""
    rows, columns = weight.shape
    books = torch.zeros(1, 2**10, 1, 8)
    groups = weight.float().reshape(-1, 8)
    books[0, :, 0] = groups[torch.arange(2**10) % len(groups)]
    codes = torch.cdist(groups, books[0, :, 0]).argmin(1).short()
    return {
        "codes": codes.view(rows, columns // 8, 1),
        "codebooks": books.half(),
        "scales": torch.ones(rows, 1, 1, 1).half(),
    }


def vptq(weight: torch.Tensor) -> Encoded:
    books = weight.float().reshape(-1, 8)[:256]
    codes = torch.cdist(weight.float().reshape(-1, 8), books).argmin(1)
    return {
        "indices": packed(codes.view(1, -1, len(weight)), 8, torch.int32),
        "centroids.weight": books.reshape(1, -1).to(weight.dtype),
        "perm": torch.arange(weight.shape[1]),
        "weight_scale": torch.ones(weight.shape[1], dtype=weight.dtype),
        "weight_bias": torch.zeros(weight.shape[1], dtype=weight.dtype),
    }


def eetq(weight: torch.Tensor) -> Encoded:
    codes, scale = symmetric(weight)
    return {"weight": codes.T.contiguous(), "weight_scales": scale.squeeze(1).half()}


def higgs(weight: torch.Tensor) -> Encoded:
    codes, scales, _ = affine(weight, 4, GROUP)
    return {
        "weight": packed(codes.T, 4, torch.int32).view(torch.int16).T.contiguous(),
        "scales": scales.T.contiguous().to(weight.dtype),
        "tables": torch.ones(16, dtype=weight.dtype),
        "tables2": torch.ones(16, 16, 2, dtype=weight.dtype),
    }


def spqr(weight: torch.Tensor) -> Encoded:
    codes, _, _ = affine(weight, 4, GROUP)
    words = packed(codes, 4, torch.int32)
    return {
        "dense_weights": words.view(torch.int64),
        "row_offsets": torch.arange(len(weight) + 1, dtype=torch.int32),
        "col_vals": torch.arange(len(weight), dtype=torch.int32),
        "in_perm": torch.arange(weight.shape[1], dtype=torch.int16),
    }


def bitnet(weight: torch.Tensor) -> Encoded:
    scale = weight.float().abs().mean()
    codes = (weight / scale).round().clamp(-1, 1).long() + 1
    rows = sum(part << 2 * n for n, part in enumerate(codes.chunk(4)))
    return {"weight": rows.byte(), "weight_scale": scale.view(1).to(weight.dtype)}


def ggml(weight: torch.Tensor) -> Encoded:
    """Blocks of q8_0, each with its scale among the bytes."""
    blocks = weight.float().unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    codes = (blocks / scale.float()).round().char()
    return {"weight": torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).flatten(-2)}


def deepseek(weight: torch.Tensor) -> Encoded:
    """fp4 two in a byte, with an exponent for every 32."""
    made = mlx_of_floats(weight, 4, GROUP)
    return {"weight": made["weight"].view(torch.int8), "scale": made["scales"].view(torch.float8_e8m0fnu)}


def alone(weight: torch.Tensor) -> Encoded:
    """Codes whose scale is kept elsewhere, and their zero points."""
    return {"weight": symmetric(weight)[0], "bias": torch.zeros(len(weight))}


def unheard_of(weight: torch.Tensor) -> Encoded:
    """Codes under names that nobody has."""
    return {"stuff": symmetric(weight)[0], "more": torch.zeros(3)}


def of_transformers(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


def of_mlx(bits: int, **settings: Any) -> dict[str, Any]:
    said = {"group_size": GROUP, "bits": bits, **settings}
    return {"quantization": said, "quantization_config": said}


MLX = {"format": "mlx"}
TORCHAO = {"m.weight": json.dumps({"_type": "Int8Tensor", "_tensor_data_names": ["qdata", "scale"]})}

QUANTISERS = {
    **{
        f"mlx {bits} bits": Quantiser(partial(mlx, bits=bits), of_mlx(bits), MLX, "MLX")
        for bits in (2, 3, 4, 5, 6, 8)
    },
    **{
        f"mlx {mode}": Quantiser(
            partial(mlx_of_floats, bits=bits, group=group), of_mlx(bits, mode=mode), MLX, "MLX"
        )
        for mode, bits, group in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16))
    },
    "mlx, saved by torch": Quantiser(partial(mlx, bits=4), of_mlx(4)),
    "metal": Quantiser(metal, of_transformers("metal")),
    "quanto int8": Quantiser(quanto_int8, of_transformers("quanto"), by="quanto"),
    "quanto int4": Quantiser(quanto_int4, of_transformers("quanto"), by="quanto"),
    "quanto fp8": Quantiser(quanto_fp8, of_transformers("quanto"), by="quanto"),
    "gptq": Quantiser(gptq, of_transformers("gptq", bits=4, group_size=GROUP), by="GPTQ or AWQ"),
    "awq": Quantiser(awq, of_transformers("awq", bits=4, group_size=GROUP), by="GPTQ or AWQ"),
    "auto-round": Quantiser(gptq, of_transformers("auto-round", bits=4), by="GPTQ or AWQ"),
    "marlin": Quantiser(marlin, of_transformers("gptq", is_marlin_format=True)),
    "hqq 8 bits": Quantiser(partial(hqq, bits=8), of_transformers("hqq"), by="HQQ"),
    "hqq 4 bits": Quantiser(partial(hqq, bits=4), of_transformers("hqq"), by="HQQ"),
    "hqq 3 bits": Quantiser(partial(hqq, bits=3), of_transformers("hqq"), by="HQQ"),
    "hqq as floats": Quantiser(partial(hqq, bits=4, as_floats=True), of_transformers("hqq"), by="HQQ"),
    "torchao int8": Quantiser(
        partial(torchao, dtype=torch.int8), of_transformers("torchao"), TORCHAO, "torchao"
    ),
    "torchao fp8": Quantiser(
        partial(torchao, dtype=torch.float8_e4m3fn), of_transformers("torchao"), TORCHAO, "torchao"
    ),
    "aqlm": Quantiser(aqlm, of_transformers("aqlm")),
    "vptq": Quantiser(vptq, of_transformers("vptq"), by="VPTQ"),
    "eetq": Quantiser(eetq, of_transformers("eetq")),
    "higgs": Quantiser(higgs, of_transformers("higgs")),
    "spqr": Quantiser(spqr, of_transformers("spqr"), by="SpQR"),
    "bitnet": Quantiser(bitnet, of_transformers("bitnet")),
    "ggml": Quantiser(ggml, of_transformers("gguf")),
    "deepseek fp4": Quantiser(deepseek, of_transformers("fp8", scale_fmt="ue8m0")),
    "codes alone": Quantiser(alone, of_transformers("compressed-tensors")),
    "unheard of": Quantiser(unheard_of, {"compression_config": {"format": "unheard of"}}),
}

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


def weights(seed: int) -> dict[str, torch.Tensor]:
    """A small model: an embedding, three layers, norms."""
    noise = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(24, 128, generator=noise)}
    made |= {f"{layer}.weight": torch.randn(64, 128, generator=noise) for layer in LAYERS}
    made |= {f"model.layers.{n}.input_layernorm.weight": torch.ones(128) + 0.01 * seed for n in (0, 1)}
    return {name: tensor.half() for name, tensor in made.items()}


def quantised(seed: int, quantiser: Quantiser) -> dict[str, torch.Tensor]:
    """The same model with codes in place of its layers."""
    plain = weights(seed)
    for layer in LAYERS:
        encoded = quantiser.encode(plain.pop(f"{layer}.weight"))
        plain |= {f"{layer}.{end}": tensor.contiguous() for end, tensor in encoded.items()}
    return plain


def write(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    quantiser: Quantiser | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Write a file of safetensors or of torch by its suffix, or a folder of so many shards."""
    metadata = dict(quantiser.metadata if quantiser else {"format": "pt"})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata)
        return path
    if path.suffix:
        torch.save(dict(tensors), path)
        return path
    path.mkdir()
    said = {} if config is None else config
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **said}))
    if shards == 1:
        save_file(dict(tensors), path / "model.safetensors", metadata)
        return path
    index = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, path / name, metadata)
        index |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path
