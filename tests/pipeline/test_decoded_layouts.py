"""What is decoded is read in another layout as its decoded copy is: codes one by one, packed or fused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.encoded import GPT_OSS
from tests.encoded import make as encode
from tests.layouts.experts import FAMILIES, gpt_oss_apart
from tests.layouts.forms import save_like, tensors_in
from tests.layouts.test_dense import FAMILIES as DENSE
from tests.models import build
from tests.pipeline.test_decoded import ENCODINGS, write


def near(tensors):
    """The tensors after a step of 5 %."""
    noise = torch.Generator().manual_seed(5)
    return {
        name: W + 0.05 * W.std() * torch.randn(W.shape, generator=noise) if W.ndim > 1 else W
        for name, W in tensors.items()
    }


def in_blocks(tensors):
    """The tensors with projections as fp8 with block scales, and what these stand for."""
    stored, decoded = {}, {}
    for name, weights in tensors.items():
        made = ENCODINGS["blocks"].encode(name, weights) if "_proj" in name and weights.ndim > 1 else {}
        has_codes = f"{name}_scale_inv" in made  # sides that are no multiple of a block have none
        stored |= made if has_codes else {name: weights}
        decoded[name] = ENCODINGS["blocks"].decode(name, made) if has_codes else weights
    return stored, decoded


def of_experts(family, folder):
    """A model of experts one by one, as transformers stores it and fp8 checkpoints have it."""
    model = build(*FAMILIES[family])
    model.save_pretrained(folder / "made")
    config = json.loads((folder / "made" / "config.json").read_text())
    stored, decoded = in_blocks(tensors_in(folder / "made"))
    write(folder / "codes", stored, {**config, "quantization_config": ENCODINGS["blocks"].settings})

    def packed(tensors, to):
        plain = save_like(folder / "made", tensors, folder / f"{to.name} one by one")
        type(model).from_pretrained(plain).save_pretrained(to, save_original_format=False)

    return decoded, packed


def of_phi(folder):
    """A model with q, k, v and gate, up fused, and both apart."""
    kind, options, apart = DENSE["Phi-3"]
    build(kind, options).save_pretrained(folder / "made")
    config = json.loads((folder / "made" / "config.json").read_text())
    stored, decoded = in_blocks(tensors_in(folder / "made"))
    write(folder / "codes", stored, {**config, "quantization_config": ENCODINGS["blocks"].settings})
    return decoded, lambda tensors, to: save_like(folder / "made", apart(tensors), to)


def of_gpt_oss(folder):
    """gpt-oss in mxfp4, and its experts one by one."""
    made = encode("mxfp4", folder / "codes")
    build(*GPT_OSS).save_pretrained(folder / "made")
    decoded = tensors_in(folder / "made") | {name: W.float() for name, W in made.exact.items()}
    plain = load_file(folder / "codes" / "model.safetensors")
    decoded |= {name: W.float() for name, W in plain.items() if name in decoded}
    return decoded, lambda tensors, to: save_like(folder / "made", gpt_oss_apart(tensors), to)


MODELS = {
    "DeepSeek": lambda folder: of_experts("deepseek-v3", folder),
    "Qwen3-MoE": lambda folder: of_experts("qwen3-moe", folder),
    "Phi-3": of_phi,
    "gpt-oss": of_gpt_oss,
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """A checkpoint `codes`, its decoded copy `copy`, and a fine-tune of it, in this form and in `… other`."""
    folder = tmp_path_factory.mktemp("codes")
    decoded, other = MODELS[request.param](folder)
    for name, tensors in (("copy", decoded), ("ft", near(decoded))):
        save_like(folder / "made", tensors, folder / name)
        other(tensors, folder / f"{name} other")
    return folder


def written(run, out, *words):
    result = run(*words, "-o", out)
    assert result.code == 0, result.err
    return (out / "model.safetensors").read_bytes(), result.err


@pytest.mark.parametrize("options", [(), ("--split-fused",)], ids=["whole", "split"])
def test_a_base_of_codes_in_another_form(run, tmp_path, folder, options):
    same, _ = written(run, tmp_path / "same", "edit", folder / "copy other", folder / "ft other", *options)
    found, said = written(run, tmp_path / "out", "edit", folder / "codes", folder / "ft other", *options)
    assert found == same
    assert "names are read with" in said
    assert "decoded from" in said


@pytest.mark.parametrize("command", [("edit",), ("wise", "--alpha", "0.3")], ids=lambda words: words[0])
def test_a_fine_tune_of_codes_over_another_form(run, tmp_path, folder, command):
    verb, *options = command
    options += ["--dtype", "bfloat16"]
    same, _ = written(run, tmp_path / "same", verb, folder / "ft", folder / "codes", *options)
    found, _ = written(run, tmp_path / "out", verb, folder / "ft other", folder / "codes", *options)
    assert found == same
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_a_mean_with_codes_in_another_form(run, tmp_path, folder):
    same, _ = written(run, tmp_path / "same", "soup", folder / "ft other", folder / "copy other")
    found, _ = written(run, tmp_path / "out", "soup", folder / "ft other", folder / "codes")
    assert found == same
