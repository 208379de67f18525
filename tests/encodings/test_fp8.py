"""fp8 as libraries store it: what is decoded is, to the last bit, what they decode themselves."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize, _dequantize_fp8_weight

from monosoup_cli.encodings.table import decoded
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.dtypes import bytes_of
from monosoup_cli.sources.files import encodings_of
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.read import read_float64

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def codes_of(*shape, dtype=E4M3, seed=0):
    """Every kind of finite code: normal and subnormal ones, zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).view(dtype)
    return torch.where(values.float().isfinite(), values.float(), 0.0).to(dtype)


def scales_of(*shape, dtype=torch.float32, seed=1):
    return (0.001 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def saved(folder, tensors, settings=None, key="quantization_config"):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama"} | ({} if settings is None else {key: settings})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder):
    """Every tensor, in the dtype in which it is read."""
    stored = open_checkpoint(str(folder))
    with stored.files:
        source = decoded(stored)
        return {name: read_float64(source, name) for name in source.tensors}, source


def refused(folder):
    stored = open_checkpoint(str(folder))
    with stored.files, pytest.raises(CheckpointError) as error:
        decoded(stored)
    return str(error.value)


def transformers_of(codes, scales, block=(128, 128)):
    """What the library's backward pass takes for the weights: it knows blocks that are not whole."""
    return _dequantize_fp8_weight(codes, scales.float(), block and list(block), torch.float32)


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (1, 129), (130, 7), (3, 200, 300), (2, 128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_blocks(tmp_path, shape, dtype):
    codes = codes_of(*shape)
    scales = scales_of(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128), dtype=dtype)
    name = "experts.gate_up_proj" if len(shape) == 3 else "up_proj.weight"
    tensors = {name: codes, f"{name}_scale_inv": scales, "norm.weight": torch.ones(3).bfloat16()}
    values, source = read(saved(tmp_path / "in", tensors, BLOCKS))
    assert source.tensors.keys() == {name, "norm.weight"}
    assert source.tensors[name].dtype == "BF16"
    assert torch.equal(values[name], transformers_of(codes, scales).double())


def test_blocks_as_transformers_loads_them(tmp_path):
    """Where blocks are whole, a matrix is that of its loader, which casts to bfloat16."""
    settings = SimpleNamespace(
        quantization_config=SimpleNamespace(weight_block_size=[128, 128], scale_fmt="")
    )
    weights = torch.randn(2, 256, 384, generator=torch.Generator().manual_seed(0))
    tensors = Fp8Quantize(settings).convert({"experts.down_proj": weights, "o.weight": weights[0]})
    assert sorted(tensors) == [
        "experts.down_proj",
        "experts.down_proj_scale_inv",
        "o.weight",
        "o.weight_scale_inv",
    ]
    values, _ = read(saved(tmp_path / "in", tensors, BLOCKS))
    assert sorted(values) == ["experts.down_proj", "o.weight"]
    for name, found in values.items():
        theirs = Fp8Dequantize(settings)._dequantize_one(
            tensors[name], tensors[f"{name}_scale_inv"], torch.bfloat16
        )
        assert torch.equal(found.bfloat16(), theirs)


def test_blocks_of_another_size(tmp_path):
    codes, scales = codes_of(100, 70), scales_of(4, 2)
    settings = {**BLOCKS, "weight_block_size": [32, 64]}
    values, _ = read(saved(tmp_path / "in", {"a.weight": codes, "a.weight_scale_inv": scales}, settings))
    assert torch.equal(values["a.weight"], transformers_of(codes, scales, (32, 64)).double())


def test_the_blocks_of_gate_and_up_are_their_own(tmp_path):
    """Packed experts whose halves end in the middle of a block: gate and up were scaled apart."""
    gate, up, scales = codes_of(2, 192, 128), codes_of(2, 192, 128, seed=2), scales_of(2, 4, 1)
    tensors = {
        "gate_up_proj": torch.cat([gate.float(), up.float()], 1).to(E4M3),
        "gate_up_proj_scale_inv": scales,
    }
    values, _ = read(saved(tmp_path / "in", tensors, BLOCKS))
    halves = [transformers_of(gate, scales[:, :2]), transformers_of(up, scales[:, 2:])]
    assert torch.equal(values["gate_up_proj"], torch.cat(halves, 1).double())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_scale_for_a_tensor(tmp_path, shape, dtype):
    """As Mistral has it, with the scale of activations beside; and the same of all experts of a stack."""
    codes, scale = codes_of(20, 30, dtype=dtype), torch.full(shape, 0.37)
    stack = codes_of(3, 4, 5, dtype=dtype)
    tensors = {
        "q.weight": codes,
        "q.weight_scale_inv": scale,
        "q.activation_scale": torch.tensor(2.0),
        "experts.down_proj": stack,
        "experts.down_proj_scale_inv": torch.tensor(0.37),
        "experts.down_proj_activation_scale": torch.ones(3),
    }
    values, _ = read(saved(tmp_path / "in", tensors, {"quant_method": "fp8", "weight_block_size": None}))
    assert sorted(values) == ["experts.down_proj", "q.weight"]
    for name, stored in (("q.weight", codes), ("experts.down_proj", stack)):
        assert torch.equal(values[name], transformers_of(stored, torch.tensor(0.37), None).double())


def scheme(strategy, block=None):
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    return QuantizationScheme(
        targets=["Linear"], weights=weights | ({"block_structure": block} if block else {})
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("strategy", "block", "shape"),
    [
        ("tensor", None, (1,)),
        ("channel", None, (200, 1)),
        ("block", [128, 128], (2, 3)),
        ("block", [16, 64], (13, 5)),
    ],
)
def test_compressed_tensors(tmp_path, dtype, strategy, block, shape):
    """The library multiplies in the dtype of the scales. Those of 16 bits round in between: bfloat16 as the
    output does anyway, float16 more, so that it is compared with the product in float64."""
    codes, scales, of = codes_of(200, 300), scales_of(*shape, dtype=dtype), scheme(strategy, block)
    tensors = {"q.weight": codes, "q.weight_scale": scales, "q.input_scale": torch.ones(1)}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    settings["config_groups"] = {"group_0": json.loads(of.model_dump_json())}
    kinds = {"tensor": "a scale per tensor", "channel": "a scale per channel", "block": "block scales"}
    compressor = BaseCompressor.get_value_from_registry(CompressionFormat.float_quantized.value)
    for key in ("quantization_config", "compression_config"):
        values, source = read(saved(tmp_path / "in", tensors, settings, key))
        assert list(values) == ["q.weight"]
        theirs = compressor.decompress({"weight": codes, "weight_scale": scales}, of)["weight"]
        if dtype == torch.float16:
            theirs = compressor.decompress({"weight": codes, "weight_scale": scales.double()}, of)["weight"]
        elif dtype == torch.float32:
            assert torch.equal(values["q.weight"], theirs.double())
        assert torch.equal(values["q.weight"].bfloat16(), theirs.bfloat16())
        assert encodings_of(source.files) == {f"fp8 with {kinds[strategy]}": 1}


def product(codes, scales):
    """The product of a code and a scale, once rounded to float32."""
    return (codes.double() * scales.double()).float().double()


def test_fbgemm(tmp_path):
    """A scale for each row; of Llama 4's experts, which are transposed, one for each column of `gate_up_proj`
    and one for each row of `down_proj`."""
    parts = {
        "q.weight": (codes_of(20, 30), scales_of(20, 1)),
        "experts.gate_up_proj": (codes_of(2, 20, 48), scales_of(2, 1, 48)),
        "experts.down_proj": (codes_of(2, 24, 20), scales_of(2, 24, 1)),
    }
    tensors = {name: codes for name, (codes, _) in parts.items()}
    tensors |= {f"{name}_scale": scales for name, (_, scales) in parts.items()}
    tensors["q.input_scale_ub"] = torch.tensor([1200.0])
    values, _ = read(saved(tmp_path / "in", tensors, {"quant_method": "fbgemm_fp8"}))
    assert values.keys() == parts.keys()
    for name, (codes, scales) in parts.items():
        assert torch.equal(values[name], product(codes, scales))


def test_modelopt(tmp_path):
    """A scale for the tensor, and scales of activations and of the cache, which are left out; some layers in
    bfloat16. Experts in a stack have one scale each."""
    tensors = {
        "0.k_proj.weight": codes_of(20, 30),
        "0.k_proj.weight_scale": torch.tensor(0.37),
        "0.k_proj.input_scale": torch.tensor(0.01),
        "0.k_proj.k_scale": torch.tensor(1.0),
        "0.v_scale": torch.tensor(1.0),
        "experts.up_proj": codes_of(3, 4, 5),
        "experts.up_proj_scale": scales_of(3),
        "1.k_proj.weight": torch.randn(20, 30).bfloat16(),
    }
    values, _ = read(saved(tmp_path / "in", tensors, {"quant_method": "modelopt", "quant_algo": "FP8"}))
    assert sorted(values) == ["0.k_proj.weight", "1.k_proj.weight", "experts.up_proj"]
    assert torch.equal(values["0.k_proj.weight"], product(tensors["0.k_proj.weight"], torch.tensor(0.37)))
    assert torch.equal(values["1.k_proj.weight"], tensors["1.k_proj.weight"].double())
    scales = tensors["experts.up_proj_scale"][:, None, None]
    assert torch.equal(values["experts.up_proj"], product(tensors["experts.up_proj"], scales))


@pytest.mark.parametrize(
    ("weight", "scale", "beside"),
    [
        (
            "x.weight",
            "x.scale_weight",
            {"scaled_fp8": torch.empty(0, dtype=E4M3), "x.scale_input": torch.ones(1)},
        ),
        ("x.weight", "x.weight_scale", {"x.comfy_quant": torch.zeros(30, dtype=torch.uint8)}),
        ("x.weight", "x.qscale_weight", {"x.qscale_act": torch.ones(())}),
        ("x.weight", "x.scale", {}),
    ],
    ids=["ComfyUI, old", "ComfyUI, new", "Mistral", "DeepSeek"],
)
def test_other_names_of_scales(tmp_path, weight, scale, beside):
    """A model in ComfyUI has layers of other dtypes, and a norm that is called scale."""
    kept = {"norm.scale": torch.ones(4).bfloat16(), "y.weight": torch.randn(4, 4).half()}
    tensors = {weight: codes_of(20, 30), scale: torch.full((), 0.37), **beside, **kept}
    values, _ = read(saved(tmp_path / "in", tensors))
    assert values.keys() == {weight, *kept}
    assert torch.equal(values[weight], product(tensors[weight], torch.tensor(0.37)))


@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_casts_without_scales_are_floats(tmp_path, dtype):
    """As ComfyUI has them: all tensors, norms called scale among them, or some of them."""
    tensors = {
        "x.weight": codes_of(20, 30, dtype=dtype),
        "x.bias": codes_of(20, dtype=dtype),
        "query_norm.scale": codes_of(20, dtype=dtype),
        "number": codes_of(dtype=dtype),
        "k_scale": torch.ones(()).bfloat16(),
        "y.weight": torch.randn(4, 4).half(),
    }
    values, source = read(saved(tmp_path / "in", tensors))
    assert values.keys() == tensors.keys()
    for name, stored in tensors.items():
        assert torch.equal(values[name], stored.double())
    assert encodings_of(source.files) == {"fp8 without scales": 4}
    assert {source.tensors[name].dtype for name in source.files.decoded} == {"BF16"}


GOOD = {
    "a.weight": codes_of(200, 300),
    "a.weight_scale_inv": scales_of(2, 3),
    "b.weight": codes_of(8, 8),
    "b.weight_scale_inv": scales_of(1, 1),
}


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (
            {"b.weight_scale_inv": None},
            BLOCKS,
            "'b.weight'.*without their scales: expected 'b.weight_scale_inv' or 'b.weight_scale'; if",
        ),
        (
            {"b.weight_scale_inv": None, "a.weight_scale_inv": None},
            BLOCKS,
            "'a.weight'.*without their scales",
        ),
        ({"b.weight_scale_inv": None}, None, "'b.weight'.*without their scales"),
        (
            {"b.weight": None},
            BLOCKS,
            "'b.weight_scale_inv'.*no fp8 codes have these scales: expected codes in 'b.weight'; if",
        ),
        ({"b.weight": torch.ones(8, 8)}, BLOCKS, "'b.weight_scale_inv'.*no fp8 codes have these scales"),
        ({"c.weight_scale": torch.ones(1)}, BLOCKS, "'c.weight_scale'.*no fp8 codes have these scales"),
        ({"b.weight_scale": torch.ones(1)}, BLOCKS, "'b.weight_scale'.*no fp8 codes have these scales$"),
        ({"b.weight_zero_point": torch.ones(1)}, BLOCKS, "'b.weight_zero_point'.*no fp8 codes"),
        ({"a.weight_scale_inv": scales_of(3, 2)}, BLOCKS, r"'a.weight_scale_inv'.*\[2, 3\], found \[3, 2\]"),
        ({"a.weight_scale_inv": scales_of(2, 4)}, BLOCKS, r"'a.weight_scale_inv'.*\[2, 3\], found \[2, 4\]"),
        ({"a.weight_scale_inv": scales_of(6)}, BLOCKS, r"'a.weight_scale_inv'.*\[2, 3\], found \[6\]"),
        ({"a.weight_scale_inv": scales_of(1, 2, 3)}, BLOCKS, r"'a.weight_scale_inv'.*\[2, 3\], found"),
        ({"a.weight_scale_inv": scales_of(0, 3)}, BLOCKS, r"'a.weight_scale_inv'.*\[2, 3\], found"),
        ({}, {**BLOCKS, "weight_block_size": [64, 64]}, r"'a.weight_scale_inv'.*\[4, 5\], found \[2, 3\]"),
        ({"a.weight_scale_inv": scales_of(2, 3).to(torch.uint8)}, BLOCKS, "'a.weight_scale_inv'.*U8"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(tmp_path, change, settings, said):
    read(saved(tmp_path / "good", GOOD, BLOCKS))
    tensors = {name: tensor for name, tensor in (GOOD | change).items() if tensor is not None}
    message = refused(saved(tmp_path / "bad", tensors, settings))
    assert re.search(said, message), message
    assert str(tmp_path / "bad") in message


def test_any_stretch_of_bytes_is_the_same(tmp_path):
    """Rows, parts of rows, and what spans both, in the orders in which methods and copies read."""
    tensors = {"a.weight": codes_of(200, 300), "a.weight_scale_inv": scales_of(2, 3)}
    folder = saved(tmp_path / "in", tensors, BLOCKS)
    whole = transformers_of(tensors["a.weight"], tensors["a.weight_scale_inv"]).flatten()
    stretches = [
        (0, 60_000),
        (5, 7),
        (0, 300),
        (299, 301),
        (128, 256),
        (428, 556),
        (700, 5000),
        (59_999, 60_000),
    ]
    stretches += [(row * 300 + 100, row * 300 + 260) for row in range(200)]
    stored = open_checkpoint(str(folder))
    with stored.files:
        reader = decoded(stored).reader("a.weight")
        assert reader.dtype == "F32"
        for start, stop in stretches:
            found = torch.empty(stop - start)
            reader.read_into(bytes_of(found), 4 * start)
            assert torch.equal(found, whole[start:stop])
