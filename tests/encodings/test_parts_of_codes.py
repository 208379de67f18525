"""Codes of four and eight bits in shapes that no model has, and parts of them that do not fit each other."""

import json
import subprocess
import sys

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from monosoup_cli.encodings.table import decoded
from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.read import read_float64
from tests.encoded import INT4, KINDS, compressed, in_one_row, make, mxfp4

WHOLE = {"group_size": None}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read(tensors, folder, config=None):
    """What is decoded of tensors, in float64, and the headers."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    stored = open_checkpoint(str(folder))
    with stored.files:
        source = decoded(stored)
        return {name: read_float64(source, name) for name in source.tensors}, source.tensors


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "shape", "options"),
    [
        ("pack-quantized", (5, 37), {"strategy": "channel", **WHOLE}),
        ("pack-quantized", (5, 37), {"strategy": "channel", **WHOLE, "symmetric": False}),
        ("pack-quantized", (5, 37), {"strategy": "tensor", **WHOLE}),
        ("pack-quantized", (5, 37), {"strategy": "channel", **WHOLE, "num_bits": 8}),
        ("pack-quantized", (6, 101), {"strategy": "channel", **WHOLE, "num_bits": 2}),
        ("pack-quantized", (33, 96), {"symmetric": False}),
        ("pack-quantized", (33, 96), {"symmetric": False, "num_bits": 8}),
        ("naive-quantized", (5, 37), {"strategy": "tensor", **WHOLE, "num_bits": 8}),
        ("naive-quantized", (5, 37), {"strategy": "channel", **WHOLE, "symmetric": False}),
        ("int-quantized", (33, 96), {"symmetric": False, "num_bits": 8}),
    ],
)
def test_integers_of_any_shape(tmp_path, form, shape, options, scale_dtype):
    """Rows that end within a word, zero points of rows that do, and scales of every dtype."""
    stored, exact, rounded = compressed(form, {**INT4, **options}, noise(*shape).to(scale_dtype), scale_dtype)
    values, headers = read({f"a.{name}": one for name, one in stored.items()}, tmp_path / "in")
    assert headers.keys() == {"a.weight"}
    assert torch.equal(values["a.weight"], exact.double())
    assert torch.equal(values["a.weight"].to(scale_dtype), rounded)


def test_words_that_fit_two_widths(tmp_path):
    """The configuration has the width."""
    stored, exact, _ = compressed(
        "pack-quantized", {**INT4, **WHOLE, "strategy": "channel", "num_bits": 8}, noise(4, 3)
    )
    config = {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}}
    values, _ = read({f"a.{name}": one for name, one in stored.items()}, tmp_path / "in", config)
    assert torch.equal(values["a.weight"], exact.double())


def test_scales_of_rows_without_a_second_dimension(tmp_path):
    codes = torch.arange(-128, 128, dtype=torch.int8).view(8, 32)
    values, _ = read({"a.weight": codes, "a.weight_scale": torch.arange(1.0, 9.0)}, tmp_path / "in")
    assert torch.equal(values["a.weight"], codes.double() * torch.arange(1.0, 9.0).double()[:, None])


@pytest.mark.parametrize("groups", [None, torch.arange(64) % 2, torch.full((64,), -1)])
def test_groups_of_columns_that_are_no_neighbours(tmp_path, groups):
    """As compressed-tensors once stored them, by the definition: `weight_g_idx` has a column's group."""
    stored, _, _ = compressed("pack-quantized", INT4, noise(8, 64), torch.float32)
    codes, _, _ = compressed("pack-quantized", INT4, noise(8, 64), torch.float32)
    codes = {**codes, "weight_scale": torch.ones(8, 2)}
    tensors = {f"a.{name}": one for name, one in stored.items()} | {
        f"b.{name}": one for name, one in codes.items()
    }
    if groups is not None:
        tensors["a.weight_g_idx"] = groups.int()
    values, _ = read(tensors, tmp_path / "in")
    of_columns = torch.arange(64) // 32 if groups is None or groups[0] < 0 else groups
    scales = stored["weight_scale"][:, of_columns]
    assert torch.equal(values["a.weight"].float(), values["b.weight"].float() * scales)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(5, 33), (7,), (3, 4, 10), (64, 96), (2, 3, 5, 7)])
@pytest.mark.parametrize("block", [32, 64, 4096])
def test_bitsandbytes_of_any_shape(tmp_path, shape, kind, nested, block):
    codes, state = quantize_4bit(noise(*shape), blocksize=block, quant_type=kind, compress_statistics=nested)
    parts = {f"a.weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    values, _ = read({"a.weight": codes, **parts}, tmp_path / "in")
    state.shape = torch.Size(shape)
    if values["a.weight"].numel() % block:
        whole = torch.zeros(-(-values["a.weight"].numel() // block) * block // 2, 1, dtype=torch.uint8)
        whole[: len(codes)] = codes
        state.shape = torch.Size([1, 2 * len(whole)])
        theirs = in_one_row(whole, state).flatten()[: values["a.weight"].numel()].view(shape)
    else:
        theirs = in_one_row(codes, state)
    assert torch.equal(values["a.weight"], theirs.double())


def test_mxfp4_with_every_code_and_exponent(tmp_path):
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16).repeat(1, 15, 1, 1)
    scales = torch.arange(240, dtype=torch.uint8).view(1, 240, 1)
    values, _ = read({"e.up_blocks": blocks, "e.up_scales": scales}, tmp_path / "in")
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(values["e.up"], theirs.double())


def test_an_exponent_that_is_no_number(tmp_path, refuse):
    blocks, scales = (
        torch.full((1, 4, 1, 16), 17, dtype=torch.uint8),
        torch.full((1, 4, 1), 255, dtype=torch.uint8),
    )
    for name, one in (("base", blocks), ("ft", blocks + 1)):
        save_file({"up_blocks": one, "up_scales": scales}, tmp_path / f"{name}.safetensors")
    line = refuse(tmp_path / "base.safetensors", tmp_path / "ft.safetensors")
    assert "'up'" in line
    assert "NaN" in line


def without(name):
    return lambda tensors: tensors.pop(name)


def instead(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def beside(name, like):
    return lambda tensors: tensors.update({name: like})


def short(one):
    return one[:-1]


REFUSED = {
    "mxfp4": [
        (without("{}_scales"), "'{}_blocks'", "missing", "'{}_scales'"),
        (without("{}_blocks"), "'{}_scales'", "missing", "'{}_blocks'"),
        (instead("{}_scales", short), "'{}_scales'", "expected [4, 32, 2]", "found [3, 32, 2]"),
        (instead("{}_blocks", lambda one: one[..., :8]), "'{}_blocks'", "expected [4, 32, 2, 16]"),
        (beside("{}", torch.ones(3)), "'{}'", "stored twice"),
    ],
    "NVFP4 of ModelOpt": [
        (without("{}_scale_2"), "'{}'", "missing", "'{}_scale_2'"),
        (without("{}_scale"), "'{}_scale_2'", "missing", "'{}_scale'"),
        (without("{}"), "'{}_scale_2'", "missing", "'{}'"),
        (instead("{}_scale", lambda one: one[:, 1:]), "'{}_scale'", "expected [64, 6]", "found [64, 5]"),
        (instead("{}_scale_2", lambda one: one.repeat(2)), "'{}_scale_2'", "found [2]"),
        (instead("{}_scale", lambda one: one.bfloat16()), "'{}_scale'", "F8_E4M3", "BF16"),
        (beside("{-}.pre_quant_scale", torch.ones(96)), "'{-}.pre_quant_scale'", "belongs to codes"),
    ],
    "nvfp4-pack-quantized": [
        (without("{}_global_scale"), "'{}_packed'", "missing", "'{}_global_scale'"),
        (without("{}_scale"), "missing", "'{}_scale'"),
        (without("{}_packed"), "'{}_global_scale'", "missing", "'{}_packed'"),
        (instead("{}_scale", short), "'{}_scale'", "expected [64, 6]", "found [63, 6]"),
        (beside("{}_zero_point", torch.ones(3)), "'{}_zero_point'", "belongs to codes"),
    ],
    "mxfp4-pack-quantized": [
        (without("{}_scale"), "'{}_packed'", "missing", "'{}_scale'"),
        (instead("{}_scale", short), "'{}_scale'", "expected [64, 3]", "found [63, 3]"),
    ],
    "pack-quantized, asymmetric": [
        (without("{}_scale"), "missing", "'{}_scale'"),
        (without("{}_packed"), "'{}_shape'", "missing", "'{}_packed'"),
        (without("{}_shape"), "'{}_packed'", "missing", "'{}_shape'"),
        (instead("{}_scale", short), "'{}_scale'", "expected [64, 3]", "found [63, 3]"),
        (instead("{}_packed", lambda one: one[:, 1:]), "'{}_packed'", "expected [64, 12]", "found [64, 11]"),
        (instead("{}_zero_point", short), "'{}_zero_point'", "expected [8, 3]", "found [7, 3]"),
        (beside("{}_g_idx", torch.zeros(3).int()), "'{}_g_idx'", "expected [96]", "found [3]"),
        (beside("{}", torch.ones(64, 96)), "'{}'", "stored twice"),
    ],
    "pack-quantized, channels": [
        (instead("{}_shape", lambda one: one + 1), "'{}_packed'", "[65, 25] or [65, 13]", "found [64, 24]")
    ],
    "int-quantized": [
        (instead("{}_scale", short), "'{}_scale'", "expected [64, 1]", "found [63, 1]"),
        (beside("{}_zero_point", torch.zeros(3).char()), "'{}_zero_point'", "expected [64, 1]", "found [3]"),
    ],
    "nf4, nested": [
        (without("{}.absmax"), "missing", "'{}.absmax'"),
        (without("{}.quant_map"), "missing", "'{}.quant_map'"),
        (without("{}.nested_absmax"), "missing", "'{}.nested_absmax'"),
        (without("{}.nested_quant_map"), "missing", "'{}.nested_quant_map'"),
        (without("{}.quant_state.bitsandbytes__nf4"), "missing", "'{}.quant_state.bitsandbytes__nf4'"),
        (without("{}"), "missing", "'{}'"),
        (instead("{}.absmax", short), "'{}.absmax'", "expected [96]", "found [95]"),
        (instead("{}", short), "'{}'", "[64, 96]", "3,072 bytes", "3,071"),
        (instead("{}.quant_state.bitsandbytes__nf4", short), "not valid JSON"),
        (instead("{}.quant_state.bitsandbytes__nf4", lambda one: one[:2] * 0 + ord("1")), "has no shape"),
    ],
    "int8": [
        (without("{}"), "'{-}.SCB'", "missing", "'{}'"),
        (instead("{-}.SCB", short), "'{-}.SCB'", "expected [64]", "found [63]"),
        (instead("{}_format", lambda one: one + 2), "'{}_format'", "found 2"),
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = make(kind, tmp_path_factory.mktemp("codes") / "in").folder
        return made[kind]

    return folder


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, rows in REFUSED.items() for number in range(len(rows))]
)
def test_parts_that_do_not_fit_are_refused(folders, tmp_path, kind, number):
    change, *words = REFUSED[kind][number]
    module = f"model.layers.1.mlp.{'experts.down_proj' if kind == 'mxfp4' else 'down_proj'}"
    name = module if kind == "mxfp4" else f"{module}.weight"
    tensors = load_file(folders(kind) / "model.safetensors")

    def full(text):
        return text.replace("{}", name).replace("{-}", module)

    renamed = {key.replace(module, "{-}").replace("{-}.weight", "{}"): one for key, one in tensors.items()}
    if kind == "mxfp4":
        renamed = {key.replace("{-}", "{}"): one for key, one in renamed.items()}
    change(renamed)
    config = json.loads((folders(kind) / "config.json").read_text())
    with pytest.raises(CheckpointError) as error:
        read({full(key): one for key, one in renamed.items()}, tmp_path / "in", config)
    for word in words:
        assert full(word) in str(error.value)


def test_codes_that_are_transposed_are_refused(tmp_path):
    """bitsandbytes stores Conv1D's (in, out) as (out, in), which square weights would not show."""
    codes, state = quantize_4bit(noise(64, 64), quant_type="nf4")
    parts = {f"h.0.attn.c_proj.weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    with pytest.raises(CheckpointError, match="transposed"):
        read({"h.0.attn.c_proj.weight": codes, **parts}, tmp_path / "in", {"model_type": "gpt2"})


@pytest.mark.parametrize("word", ["float16", "float32", "int8", None])
def test_they_are_written_in_bfloat16_whatever_the_configuration_says(folders, tmp_path, word):
    tensors = load_file(folders("int8") / "model.safetensors")
    _, headers = read(tensors, tmp_path / "in", {"dtype": word})
    assert headers["model.layers.0.mlp.down_proj.weight"].dtype == "BF16"


def test_no_tensor_is_decoded_twice(folders, tmp_path):
    """All codecs in one file: a tensor of codes is read once, and nothing but codes is decoded."""
    tensors = {}
    for number, kind in enumerate(KINDS):
        stored = load_file(folders(kind) / "model.safetensors")
        tensors |= {f"{number}.{name}": one.clone() for name, one in stored.items()}
    path = tmp_path / "all.safetensors"
    save_file(tensors, path)
    stored = open_checkpoint(str(path))
    with stored.files:
        source = decoded(stored)
        encoded = [codes.tensor for codes in source.files.decoded.values()]
    assert len(encoded) == len(set(encoded)) == sum(14 if kind != "mxfp4" else 4 for kind in KINDS)
    assert {header.dtype for header in source.tensors.values()} == {"BF16"}


READ = """
import sys
import torch
from monosoup_cli.encodings.table import decoded
from monosoup_cli.sources.locate import open_checkpoint

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

stored = open_checkpoint(sys.argv[1])
with stored.files:
    source = decoded(stored)
    (info,) = source.tensors.values()
    buffer, reader = memoryview(bytearray(1 << 20)), source.reader(info.name)
    reader.read_into(buffer[:4096], 0)  # loads what torch computes with
    source.forget()
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = status("VmRSS")
    for offset in range(0, 4 * info.elements, len(buffer)):
        reader.read_into(buffer[: 4 * info.elements - offset], offset)
    print(source.held_bytes, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
@pytest.mark.parametrize("kind", ["mxfp4", "nf4", "int8"])
def test_reading_holds_no_more_than_it_says(tmp_path, kind):
    """The decoded tensor has 128 MB."""
    if kind == "mxfp4":
        tensors = dict(zip(("up_blocks", "up_scales"), mxfp4((4, 2048, 4096), 0), strict=True))
    elif kind == "nf4":
        codes, state = quantize_4bit(noise(8192, 4096), quant_type="nf4", compress_statistics=True)
        parts = {f"a.weight.{name}": one for name, one in state.as_dict(packed=True).items()}
        tensors = {"a.weight": codes, **parts}
    else:
        codes = torch.randint(-128, 128, (8192, 4096), dtype=torch.int8)
        tensors = {
            "a.weight": codes,
            "a.weight_scale": torch.ones(8192, 32),
            "a.weight_zero_point": codes[:, :32],
        }
    tensors = {name: one.contiguous().clone() for name, one in tensors.items()}
    save_file(tensors, tmp_path / "in.safetensors")
    command = [sys.executable, "-c", READ, str(tmp_path / "in.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    held, grown = map(int, run.stdout.split())
    assert grown <= held + (8 << 20)  # what the allocator keeps of freed blocks varies
    assert held <= 32 << 20


def test_floats_of_other_modules_are_no_scales_of_activations(tmp_path):
    """Those beside codes are left out."""
    tensors = {
        "a.q_proj.weight": torch.randn(16, 16).to(torch.float8_e4m3fn),
        "a.q_proj.weight_scale": torch.tensor(0.5),
        "a.q_proj.input_scale": torch.tensor(0.5),
        "a.k_scale": torch.tensor(1.0),
        "x.output_scale": torch.randn(64),
        "x.k_scale": torch.randn(64),
    }
    values, headers = read(tensors, tmp_path / "in", {})
    assert set(headers) == {"a.q_proj.weight", "x.output_scale", "x.k_scale"}
    assert torch.equal(values["x.k_scale"].float(), tensors["x.k_scale"])


@pytest.mark.parametrize(
    "tensors",
    [
        {
            "up_blocks": torch.zeros(0, 4, 2, 16, dtype=torch.uint8),
            "up_scales": torch.zeros(0, 4, 2, dtype=torch.uint8),
        },
        {
            "a.weight_packed": torch.tensor(1, dtype=torch.uint8),
            "a.weight_scale": torch.tensor(1, dtype=torch.uint8),
        },
        {
            "a.weight_packed": torch.zeros(4, 24, dtype=torch.uint8),
            "a.weight_scale": torch.zeros(4, 1, dtype=torch.uint8),
        },
        {
            "a.weight": torch.zeros(4, 12, dtype=torch.uint8),
            "a.weight_scale": torch.zeros(4, 1).to(torch.float8_e4m3fn),
            "a.weight_scale_2": torch.tensor(1.0),
        },
    ],
    ids=["no experts", "no matrix", "a group of mxfp4 cut off", "a group of NVFP4 cut off"],
)
def test_odd_shapes_are_read_or_refused(tmp_path, tensors):
    path = tmp_path / "in.safetensors"
    save_file(tensors, path)
    stored = open_checkpoint(str(path))
    with stored.files:
        if "up_blocks" in tensors:
            assert decoded(stored).tensors["up"].shape == (0, 64, 4)
            return
        with pytest.raises(CheckpointError, match=r"whole groups|weight_(packed|scale)"):
            decoded(stored)
