"""Adapters that are not LoRA are called what they are, and the way out that is named leads to a model."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from monosoup_cli.formats.lora_names import is_lora_file
from tests.models import MODELS, build, step, unet_pipeline

MODULES = {"target_modules": ["q_proj", "v_proj"]}
MERGEABLE = {
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOHA": peft.LoHaConfig(r=2, **MODULES),
    "LOKR": peft.LoKrConfig(r=2, **MODULES),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, **MODULES),
    "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj", "o_proj"]),
    "VERA": peft.VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}
BESIDE = {
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
}
MERGE = "merge it with the program that made it, and pass the merged model"
BESIDE_THE_MODEL = "it changes no weights of the model, so load it beside the edited model as it is"
FUSE = "pass what `mlx_lm.fuse --model BASE --adapter-path ADAPTER --save-path OUT` writes"


@pytest.fixture
def base(tmp_path):
    build(*MODELS["llama"]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base, folder, config):
    """An adapter of this kind in a folder, with weights that are not those of the start; and the model."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
        for weights in model.parameters():
            if weights.requires_grad:
                weights.data += 0.05 * torch.randn(weights.shape)
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MERGEABLE)
def test_kinds_that_peft_merges_go_through_peft(run, tmp_path, base, kind):
    model = adapted(base, tmp_path / "adapter", MERGEABLE[kind])
    refused = run("edit", base, tmp_path / "adapter", "-o", tmp_path / "x")
    assert refused.code == 1
    assert (
        f"this is an adapter of peft's kind '{kind}', and only LORA can be read; merge it with peft"
        " (merge_and_unload, then save_pretrained), and pass the merged model"
    ) in refused.err
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert run("edit", base, tmp_path / "merged", "-o", tmp_path / "out").code == 0
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    changed = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert any(not torch.equal(changed[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", BESIDE)
def test_kinds_that_change_no_weights_are_loaded_beside_an_edited_model(run, tmp_path, base, kind):
    adapted(base, tmp_path / "adapter", BESIDE[kind])
    refused = run("edit", base, tmp_path / "adapter", "-o", tmp_path / "x")
    assert refused.code == 1
    assert f"of peft's kind '{kind}', and only LORA can be read; {BESIDE_THE_MODEL}" in refused.err
    step(build(*MODELS["llama"])).save_pretrained(tmp_path / "ft")
    assert run("edit", base, tmp_path / "ft", "-o", tmp_path / "out").code == 0
    edited = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks for
        peft.PeftModel.from_pretrained(edited, tmp_path / "adapter")


def test_an_adapter_of_mlx(run, tmp_path, base):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 20.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    layer = "model.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_a": torch.ones(32, 2), f"{layer}.lora_b": torch.ones(2, 32)}
    save_file(tensors, folder / "adapters.safetensors")
    for path in (folder, folder / "adapters.safetensors"):
        refused = run("edit", base, path, "-o", tmp_path / "x")
        assert refused.code == 1
        assert "this is an adapter of mlx; " + FUSE in refused.err


ENDS = {
    "LoHa": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"],
    "LoKr": ["lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"],
    "GLoRA": ["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"],
    "OFT or BOFT": ["oft_blocks", "alpha"],
    "IA³": ["weight", "on_input"],
    "VeRA": ["vera_lambda_b", "vera_lambda_d"],
    "LyCORIS with the differences of norms": ["w_norm", "b_norm"],
    "the difference of a whole tensor": ["diff", "diff_b"],
}


@pytest.mark.parametrize("kind", ENDS)
def test_kinds_of_single_files(run, tmp_path, base, kind):
    tensors = {f"lora_unet_mid_block_m.{end}": torch.ones(4, 4) for end in ENDS[kind]}
    assert is_lora_file(tensors)
    save_file(tensors, tmp_path / "lora.safetensors")
    refused = run("edit", base, tmp_path / "lora.safetensors", "-o", tmp_path / "x")
    assert refused.code == 1
    assert f": this is {kind}" in refused.err
    assert refused.err.rstrip().endswith(MERGE)


def test_a_control_lora(run, tmp_path, base):
    tensors = {"lora_controlnet": torch.ones(1), "input_blocks.0.0.bias": torch.ones(4)}
    save_file(tensors, tmp_path / "control.safetensors")
    refused = run("edit", base, tmp_path / "control.safetensors", "-o", tmp_path / "x")
    assert refused.code == 1
    assert (
        "this is a Control-LoRA, which turns a UNet into a ControlNet; pass the whole ControlNet"
        in refused.err
    )


TEXTUAL = {
    "of diffusers": {"<cat>": torch.ones(32)},
    "of webui": {"emb_params": torch.ones(1, 32)},
    "of SDXL": {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 32)},
}


@pytest.mark.parametrize("form", TEXTUAL)
@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_a_textual_inversion(run, tmp_path, base, form, end):
    path = tmp_path / f"cat.{end}"
    (save_file if end == "safetensors" else torch.save)(TEXTUAL[form], path)
    refused = run("edit", base, path, "-o", tmp_path / "x")
    assert refused.code == 1
    assert (
        "this is a textual inversion, which adds words to a text encoder; " + BESIDE_THE_MODEL in refused.err
    )


def test_a_textual_inversion_is_loaded_beside_an_edited_pipeline(run, tmp_path):
    pipeline = unet_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    step(pipeline.unet)
    pipeline.save_pretrained(tmp_path / "ft")
    save_file(TEXTUAL["of diffusers"], tmp_path / "cat.safetensors")
    assert run("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out").code == 0
    edited = type(pipeline).from_pretrained(tmp_path / "out")
    edited.load_textual_inversion(tmp_path / "cat.safetensors")
    assert "<cat>" in edited.tokenizer.get_vocab()
