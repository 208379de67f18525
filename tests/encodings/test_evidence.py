"""Codes that no codec decodes are refused wherever they stand, and nothing that only looks like codes is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import monosoup_cli
from monosoup_cli.errors import CheckpointError
from monosoup_cli.pipeline.inputs import open_inputs
from tests.conftest import everything_in
from tests.encodings.quantisers import LAYERS, QUANTISERS, Quantiser, quantised, weights, write
from tests.models import MODELS, PIPELINES, STACK, build, step

SEVERAL = [QUANTISERS[name] for name in ("mlx 4 bits", "quanto int8", "gptq", "hqq as floats", "ggml")]

REFUSALS = ("the checkpoint is quantised", "codes without their scales", "of an encoded tensor")
"""What is said of codes that no codec decodes, and what codecs say of those that are nearly theirs."""


def refused(run, *argv: object) -> str:
    """The line of a command that refuses its inputs and writes nothing."""
    folder = Path(str(argv[argv.index("-o") + 1])).parent if "-o" in argv else None
    before = folder and everything_in(folder)
    result = run(*argv)
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.code, result.out, len(lines)) == (1, "", 1), result
    assert any(words in lines[0] for words in REFUSALS)
    assert (folder and everything_in(folder)) == before
    return lines[0]


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_no_pair_of_quantised_checkpoints_is_merged(run, tmp_path, name, form):
    """A single file, which has no config.json, and a folder, which has one."""
    quantiser = QUANTISERS[name]
    plain, coded = [], []
    for seed in (0, 1):
        end = ".safetensors" if form == "file" else ""
        plain.append(write(weights(seed), tmp_path / f"plain{seed}{end}"))
        path, made = tmp_path / f"coded{seed}{end}", quantised(seed, quantiser)
        coded.append(write(made, path, quantiser, config=quantiser.config))
    out = ("-o", tmp_path / "out")
    lines = [
        refused(run, "soup", *coded, *out),
        refused(run, "edit", *coded, *out),
        refused(run, "edit", coded[0], plain[1], *out),
        refused(run, "edit", plain[0], coded[1], *out),
        refused(run, "soup", plain[0], plain[1], coded[1], *out),
        refused(run, "stock", plain[0], *coded, *out),
        refused(run, "sfgs", plain[0], *coded, "--threshold", "0.1", *out),
        refused(run, "wise", *coded, "--alpha", "0.5", *out),
        refused(run, "lines", *coded, "--alpha", "0.5", "--beta", "0.5", *out),
    ]
    of_config = next(iter(quantiser.config.values())).get("quant_method")
    by = of_config or ("MLX" if "quantization" in quantiser.config else None) if form == "folder" else None
    for line in lines:
        assert any(f"'{layer}." in line for layer in LAYERS), line
        if "the checkpoint is quantised" in line:
            assert f" by {by or quantiser.by}" in line if by or quantiser.by else "quantised by" not in line
            assert ("config.json has" in line) is (form == "folder")


COMMANDS = {
    "edit": ("edit", "BASE", "ONE"),
    "edit several": ("edit", "BASE", "ONE", "TWO"),
    "edit as adapter": ("edit", "BASE", "ONE", "--as-adapter", "--adapter-rank", "4"),
    "stock": ("stock", "BASE", "ONE", "TWO"),
    "soup": ("soup", "ONE", "TWO"),
    "soup to one file": ("soup", "ONE", "TWO", "--max-shard-size", "1MB"),
    "sfgs": ("sfgs", "BASE", "ONE", "TWO", "--threshold", "0.1"),
    "wise": ("wise", "BASE", "ONE", "--alpha", "0.5"),
    "lines": ("lines", "BASE", "ONE", "--alpha", "0.5", "--beta", "0.5"),
    "inspect-spectrum": ("inspect-spectrum", "BASE", "ONE"),
    "dry run": ("edit", "BASE", "ONE", "--dry-run"),
}
FORMS = {
    "file": (".safetensors", 1),
    "folder": ("", 1),
    "shards": ("", 3),
    ".bin": (".bin", 1),
    ".pt": (".pt", 1),
}


def check_every_role(run, folder: Path, words: Sequence[str], quantiser: Quantiser, form: str) -> None:
    """Have a command refuse codes in the place of each of its inputs, and of all."""
    end, shards = FORMS[form]
    plain, coded = {}, {}
    for seed, role in enumerate(("BASE", "ONE", "TWO")):
        plain[role] = write(weights(seed), folder / f"{role}{end}", shards=shards)
        path = folder / "coded" / f"{role}{end}"
        coded[role] = write(quantised(seed, quantiser), path, quantiser, shards=shards)
    own = () if words[0] == "inspect-spectrum" else ("-o", folder / "out")
    for role in plain:
        if role in words:
            inputs = plain | {role: coded[role]}
            refused(run, *(inputs.get(word, word) for word in words), *own)
    refused(run, *(coded.get(word, word) for word in words), *own)


@pytest.mark.parametrize("number", range(len(SEVERAL)))
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_codes_in_every_role(run, tmp_path, command, number):
    check_every_role(run, tmp_path, COMMANDS[command], SEVERAL[number], "file")


@pytest.mark.parametrize("number", range(len(SEVERAL)))
@pytest.mark.parametrize("form", FORMS)
def test_codes_are_refused_in_every_form_of_a_checkpoint(run, tmp_path, form, number):
    check_every_role(run, tmp_path, COMMANDS["stock"], SEVERAL[number], form)


@pytest.mark.parametrize("quantiser", SEVERAL)
@pytest.mark.parametrize("command", ["edit", "stock", "soup", "wise", "lines", "inspect-spectrum"])
def test_a_lora_over_codes_is_refused(run, tmp_path, quantiser, command):
    """A plain adapter, with a plain fine-tune beside it where there can be one."""
    base = write(quantised(0, quantiser), tmp_path / "base.safetensors", quantiser)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    stem = f"base_model.model.{LAYERS[0]}"
    factors = {f"{stem}.lora_A.weight": torch.ones(2, 128), f"{stem}.lora_B.weight": torch.ones(64, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    plain = write(weights(1), tmp_path / "plain.safetensors")
    inputs = {"soup": ["--base", base, adapter, plain], "stock": [base, adapter, plain]}
    options = {"wise": ["--alpha", "0.5"], "lines": ["--alpha", "0.5", "--beta", "0.5"]}
    own = [] if command == "inspect-spectrum" else ["-o", tmp_path / "out"]
    refused(run, command, *inputs.get(command, [base, adapter]), *options.get(command, []), *own)


@pytest.mark.parametrize("quantiser", SEVERAL)
def test_the_python_functions_refuse_codes(tmp_path, quantiser):
    coded = write(quantised(1, quantiser), tmp_path / "coded.safetensors", quantiser)
    base = write(weights(0), tmp_path / "base.safetensors")
    calls = [
        lambda: monosoup_cli.edit(base, coded, tmp_path / "out"),
        lambda: monosoup_cli.soup([base, coded], tmp_path / "out"),
        lambda: monosoup_cli.wise(base, coded, tmp_path / "out", alpha=0.5),
        lambda: monosoup_cli.inspect_spectrum(base, coded),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match="the checkpoint is quantised") as caught:
            call()
        assert caught.value.path == str(coded)
        assert caught.value.tensor is not None


def test_mixed_bits_of_mlx_are_refused(run, tmp_path):
    """Three and six bits, and an entry of config.json for each layer."""
    plain = weights(1)
    said = {"group_size": 32, "bits": 3}
    for layer, bits in zip(LAYERS, (3, 6, 4), strict=True):
        encoded = QUANTISERS[f"mlx {bits} bits"].encode(plain.pop(f"{layer}.weight"))
        plain |= {f"{layer}.{end}": tensor for end, tensor in encoded.items()}
        said[layer] = {"group_size": 32, "bits": bits}
    folder = write(plain, tmp_path / "coded", QUANTISERS["mlx 4 bits"], config={"quantization": said})
    base = write(weights(0), tmp_path / "base", config={})
    line = refused(run, "edit", base, folder, "-o", tmp_path / "out")
    assert "is quantised by MLX (config.json has quantization)" in line
    assert line.endswith("mlx_lm.convert --hf-path OLD --mlx-path NEW --dequantize")


@pytest.mark.parametrize("part", ["text_config", "language_config"])
def test_settings_in_a_part_of_the_configuration_are_found(run, tmp_path, part):
    quantiser = QUANTISERS["ggml"]
    config = {part: {"quantization_config": {"quant_method": "aqlm"}}}
    folder = write(quantised(1, quantiser), tmp_path / "coded", quantiser, config=config)
    base = write(weights(0), tmp_path / "base", config={})
    line = refused(run, "edit", base, folder, "-o", tmp_path / "out")
    assert f"by aqlm (config.json has {part}.quantization_config)" in line


@pytest.mark.parametrize(
    "scale", ["weight_scales", "scales", "weights_scaling_factor", "scale", "zeros", "s"]
)
@pytest.mark.parametrize("shape", [(64,), (64, 1), (64, 4), (4, 128), ()])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.uint32, torch.int16])
def test_integers_with_scales_are_codes_whatever_they_are_called(tmp_path, scale, shape, dtype):
    codes = torch.ones(64, 128, dtype=dtype)
    name = "w_scale" if shape == () else scale  # the shape of one number says nothing
    tensors = {**weights(0), "m.w": codes, f"m.{name}": torch.ones(shape)}
    path = write(tensors, tmp_path / "coded.safetensors")
    with pytest.raises(CheckpointError, match="with scales in 'm") as caught:
        open_inputs(None, [str(path)], [])
    assert caught.value.tensor == "m.w"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
@pytest.mark.parametrize("form", FORMS)
def test_nothing_stays_open(tmp_path, form):
    end, shards = FORMS[form]
    plain = write(weights(0), tmp_path / f"plain{end}", shards=shards)
    coded = write(quantised(1, SEVERAL[0]), tmp_path / f"coded{end}", SEVERAL[0], shards=shards)
    before = len(os.listdir("/proc/self/fd"))
    for base, finetuned in ((coded, plain), (plain, coded)):
        with pytest.raises(CheckpointError, match="the checkpoint is quantised"):
            open_inputs(str(base), [str(finetuned)], [])
        assert len(os.listdir("/proc/self/fd")) == before


# -- what is read ---------------------------------------------------------------------------------


def opens(path: Path) -> tuple[str, ...]:
    """Open a checkpoint and return its notes."""
    with open_inputs(None, [str(path)], []) as inputs:
        return inputs.finetuned[0].files.notes


VIT = {**STACK, "image_size": 32, "patch_size": 8}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32}
LM = {"vocab_size": 99, "hidden_size": 32}
OTHERS = {
    "swin": ("SwinForImageClassification", WINDOWS),
    "swin 2": ("Swinv2ForImageClassification", {**WINDOWS, "window_size": 4}),
    "beit": ("BeitForImageClassification", {**VIT, "use_relative_position_bias": True}),
    "levit": (
        "LevitForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "depths": [1] * 3, "num_attention_heads": [2, 3, 4]},
    ),
    "dinov2": ("Dinov2ForImageClassification", VIT),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "siglip": ("SiglipModel", {"text_config": {**STACK, "vocab_size": 99}, "vision_config": VIT}),
    "bloom": ("BloomForCausalLM", {**LM, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", {**LM, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}),
    "gpt neo": (
        "GPTNeoForCausalLM",
        {**LM, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    ),
    "mamba": ("MambaForCausalLM", {**LM, "num_hidden_layers": 2}),
    "deberta": ("DebertaV2ForMaskedLM", {**STACK, "vocab_size": 99}),
    "encodec": ("EncodecModel", {"num_filters": 4, "hidden_size": 16, "codebook_size": 32}),
    "dac": ("DacModel", {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "n_codebooks": 3}),
    "wav2vec2": (
        "Wav2Vec2ForPreTraining",
        {**STACK, "conv_dim": [16], "conv_kernel": [3], "conv_stride": [2], "num_feat_extract_layers": 1},
    ),
    "vits": ("VitsModel", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16}),
}
"""Models whose buffers are integers, or whose names sound like quantisation."""


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_ordinary_models_are_read(tmp_path, name, dtype):
    """Also as a plain cast to fp8, which leaves vectors and buffers as they are."""
    kind, options = (MODELS | OTHERS)[name]
    model = build(kind, options)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensors[key] = tensor.to(dtype)
    for path in (tmp_path / "model.safetensors", tmp_path / "model.bin"):
        assert opens(write(tensors, path)) == ()


@pytest.mark.parametrize("name", PIPELINES)
def test_ordinary_denoisers_are_read(tmp_path, name):
    tensors = getattr(PIPELINES[name](), name).state_dict()
    assert opens(write(tensors, tmp_path / "model.safetensors")) == ()


WITH_BUFFERS = {
    "masks as bytes, larger than the model": {
        "h.0.attn.bias": torch.ones(1, 1, 512, 512, dtype=torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.0.attn.c_attn.weight": torch.ones(8, 24),
    },
    "masks as booleans": {"attn.mask": torch.ones(64, 64) > 0, "attn.scale": torch.ones(64, 1)},
    "positions": {
        "embeddings.position_ids": torch.arange(514).view(1, -1),
        "embeddings.token_type_ids": torch.zeros(1, 514, dtype=torch.int32),
        "embeddings.class_embedding": torch.ones(8),
    },
    "counters": {
        "bn.num_batches_tracked": torch.tensor(7),
        "bn.running_mean": torch.zeros(8),
        "bn.scale": torch.ones(8),
    },
    "tables of indices": {
        "attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "attn.relative_position_bias_table": torch.zeros(169, 3),
        "attn.logit_scale": torch.ones(3, 1, 1),
    },
    "tables of indices, as 32 bits": {
        "attn.relative_position_index": torch.zeros(64, 64, dtype=torch.int32),
        "attn.relative_position_bias_table": torch.zeros(225, 4),
        "attn.logit_scale": torch.ones(4, 1, 1),
        "attn.qkv.weight": torch.ones(96, 64),
    },
    "tables of tokens": {
        "gate.tid2eid": torch.zeros(99, 2, dtype=torch.int64),
        "gate.weight": torch.ones(8, 16),
        "gate.e_score_correction_bias": torch.ones(8),
        "d2t": torch.arange(50),
        "t2d": torch.ones(99) > 0,
    },
    "a quantiser of audio": {
        "quantizer.layers.0.codebook.embed": torch.ones(32, 16),
        "quantizer.layers.0.codebook.cluster_size": torch.ones(32),
        "quantizer.layers.0.codebook.inited": torch.ones(1),
        "quantizer.codevectors": torch.ones(1, 64, 8),
        "quantizer.quantizers.0.codebook.weight": torch.ones(32, 8),
        "quantizer.codebooks": torch.ones(4, 32, 8),
        "quantizer.scales": torch.ones(4, 8),
    },
    "factors on vectors": {
        "layer_scale1.lambda1": torch.ones(8),
        "layer.scale": torch.ones(8),
        "layer.weight": torch.ones(8, 8),
        "layer.scales": torch.ones(8, 1),
        "layer.biases": torch.ones(8),
        "alibi.slopes": torch.ones(4),
        "logit_scale": torch.tensor(1.0),
        "conv.weight_g": torch.ones(8, 1, 1),
        "conv.weight_v": torch.ones(8, 4, 3),
    },
    "a plain cast to fp8": {
        "logit_scale": torch.tensor(1.0),
        "text_projection": torch.ones(8, 8).to(torch.float8_e4m3fn),
        "pos_embed": torch.ones(1, 16, 8).to(torch.float8_e4m3fn),
        "blocks.0.scale_shift_table": torch.ones(6, 8),
        "blocks.0.attn.in_proj_weight": torch.ones(24, 8).to(torch.float8_e5m2),
        "blocks.0.attn.in_proj_bias": torch.ones(24),
        "mixer.A_log": torch.ones(16, 4).to(torch.float8_e4m3fn),
        "mixer.D": torch.ones(16),
        "conv.weight_v": torch.ones(8, 4, 3).to(torch.float8_e4m3fn),
        "conv.weight_g": torch.ones(8, 1, 1),
    },
    "matrices with the names of codes": {
        "attn.W_q": torch.ones(8, 8),
        "attn.W_k": torch.ones(8, 8),
        "attn.scale": torch.ones(1),
        "experts.dense_weights": torch.ones(4, 8),
    },
    "a single matrix of integers": {"votes": torch.ones(4, 6, dtype=torch.uint8), "w": torch.ones(30, 6)},
}


@pytest.mark.parametrize("name", WITH_BUFFERS)
def test_what_ordinary_models_hold_beside_weights_is_read(tmp_path, name):
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pt"):
        assert opens(write(WITH_BUFFERS[name], path)) == ()


# -- configurations of models that are not quantised any more --------------------------------------

LEFT = {
    **{method: {"quantization_config": {"quant_method": method}} for method in AUTO_QUANTIZER_MAPPING},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
    "both keys of mlx": {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}},
    "sparseml": {"compression_config": {"format": "pack-quantized"}},
}


@pytest.mark.parametrize("method", LEFT)
def test_a_configuration_beside_plain_weights_is_left_over(run, tmp_path, method):
    """Of any method: the tensors decide. Without it, the output's config.json loads them as they are."""
    kind, options = MODELS["llama"]
    model = build(kind, options)
    model.save_pretrained(tmp_path / "base")
    step(model).save_pretrained(tmp_path / "ft")
    path = tmp_path / "ft" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | LEFT[method]))
    argv = ("wise", tmp_path / "base", tmp_path / "ft", "--alpha", "1", "-o", tmp_path / "out")
    result = run(*argv)
    assert result.code == 0, result.err
    keys = " and ".join(LEFT[method])
    assert (
        f"ft: config.json has {keys}, but the weights are not quantised; remove {keys} from the output's"
        in result.err
    )
    written = tmp_path / "out" / "config.json"
    held = json.loads(written.read_text())
    assert {key: held.pop(key) for key in LEFT[method]} == LEFT[method]
    written.write_text(json.dumps(held))
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    for name, tensor in load_file(tmp_path / "ft" / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_configuration_that_is_left_over_in_the_base(run, tmp_path):
    base = write(weights(0), tmp_path / "base", config=LEFT["gptq"])
    finetuned = write(weights(1), tmp_path / "ft", config={})
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "base: config.json has quantization_config, but the weights are not quantised" in result.err
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("settings", [None, {}, [], False, ""])
def test_empty_settings_say_nothing(tmp_path, settings):
    config = dict.fromkeys(("quantization", "quantization_config"), settings)
    assert opens(write(weights(0), tmp_path / "model", config=config)) == ()


def test_a_plain_model_of_mlx_is_read(run, tmp_path):
    """As mlx_lm.convert writes it without -q, or with --dequantize."""
    quantiser = Quantiser(lambda _: {}, {}, {"format": "mlx"})
    paths = [write(weights(seed), tmp_path / f"{seed}", quantiser) for seed in (0, 1)]
    result = run("edit", *paths, "-o", tmp_path / "out")
    assert (result.code, "quantised" in result.err) == (0, False), result.err


@pytest.mark.parametrize(
    ("codes", "beside"),
    [("indices", "centroids.weight"), ("compressed", "bitmask"), ("Qidxs", "SU"), ("trellis", "suh")],
)
def test_parts_of_one_layer_are_codes_whatever_else_there_is(run, tmp_path, codes, beside):
    """The embedding is most of the file, and no configuration says anything."""
    paths = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "embed.weight": torch.randn(300, 16, generator=generator),
            f"layers.0.q.{codes}": torch.ones(16, 8, dtype=torch.int64 if codes == "Qidxs" else torch.int16),
            f"layers.0.q.{beside}": torch.randn(8, 8, generator=generator),
        }
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(tensors, paths[-1])
    line = refused(run, "edit", *paths, "-o", tmp_path / "out")
    assert f"({codes} beside {beside})" in line
