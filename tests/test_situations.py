"""Situations from issue threads of other projects; docs/contributing.md lists them with their sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from tests import peft_adapters
from tests.models import MODELS, VISION, build, step, unet_pipeline

WAV2VEC = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "conv_dim": [16, 16],
    "conv_kernel": [3, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(name, **options):
    """Save a model as "base" and a step of it as "ft", and return the model after the step."""
    kind, known = MODELS[name]
    model = build(kind, {**known, **options})
    model.save_pretrained("base")
    step(model).save_pretrained("ft")
    return model


def tensors(folder):
    return peft_adapters.tensors_in(Path(folder))


def rewrite(folder, change):
    """Change the tensors in a folder's only file."""
    (path,) = Path(folder).glob("*.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})


def rename(folder, old, new):
    rewrite(folder, lambda held: {name.replace(old, new): tensor for name, tensor in held.items()})


def configure(path, **options):
    path = Path(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def load(kind, folder, **options):
    """Load with transformers, which must miss nothing and leave nothing over."""
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def done(result):
    assert result.code == 0, result.err
    return result.err


def refused(result):
    assert result.code == 1
    return result.err


def are_close(found, expected):
    """Tensors of the same names with values that differ by no more than float32 rounds."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


# -- what stands beside the weights ----------------------------------------------------------------


def test_a_generation_config_that_transformers_calls_invalid_is_carried(run):
    make("llama")
    configure("ft/generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    done(run("edit", "base", "ft", "-o", "out"))
    name = "generation_config.json"
    assert Path("out", name).read_bytes() == Path("ft", name).read_bytes()
    load("LlamaForCausalLM", "out")


def test_what_processors_and_tokenizers_read_is_carried(run):
    make("llama")
    names = [
        *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
        *("chat_template.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
        *("vocab.json", "merges.txt", "tokenizer.model", "tekken.json", "added_tokens.json"),
    ]
    for name in names:
        Path("ft", name).parent.mkdir(exist_ok=True)
        Path("ft", name).write_text(f'{{"of": "{name}"}}')
    shutil.copy("ft/model.safetensors", "ft/consolidated.safetensors")
    done(run("edit", "base", "ft", "-o", "out"))
    for name in names:
        assert Path("out", name).read_bytes() == Path("ft", name).read_bytes()
    assert not Path("out/consolidated.safetensors").exists()  # the unedited weights, as Mistral stores them


def test_a_quantization_config_that_a_merge_left_beside_plain_weights(run):
    make("llama")
    left = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    configure("ft/config.json", quantization_config=left)
    said = done(run("edit", "base", "ft", "-o", "out"))
    assert "note: ft: config.json has quantization_config, but the weights are not quantised" in said
    config = json.loads(Path("out/config.json").read_text())
    assert config.pop("quantization_config") == left  # what the note says to remove
    Path("out/config.json").write_text(json.dumps(config))
    load("LlamaForCausalLM", "out")


def test_a_quantization_config_beside_codes_is_refused(run):
    make("llama")
    configure("ft/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    rewrite("ft", lambda held: {**held, "lm_head.weight": (held["lm_head.weight"] * 100).to(torch.int8)})
    assert "'lm_head.weight': the checkpoint is quantised" in refused(run("edit", "base", "ft", "-o", "out"))


# -- names -----------------------------------------------------------------------------------------


def test_a_base_with_the_layer_norms_of_old_bert(run):
    make("bert")
    done(run("wise", "base", "ft", "-o", "expected", "--alpha", "0.5"))
    rename("base", "LayerNorm.weight", "LayerNorm.gamma")
    rename("base", "LayerNorm.bias", "LayerNorm.beta")
    load("BertForMaskedLM", "base")
    said = done(run("wise", "base", "ft", "-o", "out", "--alpha", "0.5"))
    assert "'LayerNorm.gamma' replaced by 'LayerNorm.weight' (6 tensors)" in said
    for name, tensor in tensors("expected").items():
        assert torch.equal(tensors("out")[name], tensor)


def test_a_base_with_the_weight_norm_of_old_torch(run):
    model = build("Wav2Vec2ForCTC", WAV2VEC)
    model.wav2vec2.save_pretrained("base")
    step(model).save_pretrained("ft")
    options = ["--rename", "=wav2vec2", "--alpha", "0.5"]
    done(run("wise", "base", "ft", "-o", "expected", *options))
    rename("base", "parametrizations.weight.original0", "weight_g")
    rename("base", "parametrizations.weight.original1", "weight_v")
    load("Wav2Vec2Model", "base")
    done(run("wise", "base", "ft", "-o", "out", *options))
    assert all(torch.equal(tensors("out")[name], tensor) for name, tensor in tensors("expected").items())
    load("Wav2Vec2ForCTC", "out")


def test_a_state_dict_from_inside_of_fsdp_and_activation_checkpointing(run):
    model = make("llama")
    wrapped = {
        "_fsdp_wrapped_module."
        + name.replace("self_attn.", "_fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(wrapped, "ft.pt")
    done(run("edit", "base", "ft", "-o", "expected"))
    done(run("edit", "base", "ft.pt", "-o", "out"))
    out, expected = tensors("out"), tensors("expected")
    assert out.keys() == wrapped.keys()
    for name, tensor in out.items():
        plain = name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
        assert torch.equal(tensor, expected[plain])


def test_a_text_tower_of_open_clip_with_names_of_its_own(run):
    # open_clip's convert_to_custom_text_state_dict moves these, and no others, below `text.`
    text = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
    old = {
        "visual.transformer.resblocks.0.attn.in_proj_weight": torch.randn(24, 8),
        "visual.positional_embedding": torch.randn(17, 8),
        "transformer.resblocks.0.attn.in_proj_weight": torch.randn(24, 8),
        "positional_embedding": torch.randn(16, 8),
        "token_embedding.weight": torch.randn(9, 8),
        "ln_final.bias": torch.randn(8),
        "text_projection": torch.randn(8, 6),
        "logit_scale": torch.tensor(2.0),
    }
    new = {f"text.{name}" if name.startswith(text) else name: tensor + 1 for name, tensor in old.items()}
    torch.save(old, "old.pt")
    torch.save(new, "new.pt")
    done(run("wise", "old.pt", "new.pt", "-o", "out.safetensors", "--alpha", "0.5"))
    are_close(load_file("out.safetensors"), {name: tensor - 0.5 for name, tensor in new.items()})
    done(run("wise", "new.pt", "old.pt", "-o", "back.safetensors", "--alpha", "0.5"))
    are_close(load_file("back.safetensors"), {name: tensor + 0.5 for name, tensor in old.items()})


def test_a_training_checkpoint_of_open_clip(run):
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    after = {**model.state_dict(), "logit_bias": torch.tensor(-10.0)}  # of training with SigLIP's loss
    epoch = {
        "epoch": 400,
        "name": "2023_12_07-model_ViT-B-32",
        "state_dict": {f"module.{name}": tensor for name, tensor in after.items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(before, "base.pt")
    torch.save(epoch, "epoch_400.pt")
    said = done(run("wise", "base.pt", "epoch_400.pt", "-o", "out.safetensors", "--alpha", "0.5"))
    assert "not part of the state dict, and left out: epoch, name, optimizer" in said
    assert "kept as fine-tuned: 1 tensor: module.logit_bias" in said
    expected = {f"module.{name}": (tensor + after[name]) / 2 for name, tensor in before.items()}
    are_close(load_file("out.safetensors"), {**expected, "module.logit_bias": torch.tensor(-10.0)})


def test_flat_names_of_an_ema_stay_beside_the_live_weights(run):
    base = {f"model.diffusion_model.input_blocks.{i}.0.weight": torch.randn(16, 16) for i in range(3)}
    live = {name: tensor + 0.02 * torch.randn(16, 16) for name, tensor in base.items()}
    ema = {f"model_ema.{name[6:].replace('.', '')}": 0.99 * tensor for name, tensor in live.items()}
    save_file(base, "pruned.safetensors")
    torch.save({"state_dict": {**live, **ema}, "global_step": 100}, "full.ckpt")
    said = done(run("edit", "pruned.safetensors", "full.ckpt", "-o", "out.safetensors"))
    assert (
        "not in the base, and kept as fine-tuned: 3 tensors: model_ema.diffusion_modelinput_blocks00" in said
    )
    out = load_file("out.safetensors")
    assert all(torch.equal(out[name], tensor) for name, tensor in ema.items())
    assert not any(torch.equal(out[name], tensor) for name, tensor in live.items())


# -- shapes, ties and means ------------------------------------------------------------------------


def test_the_weights_of_a_soup_are_shares(run):
    make("llama")
    done(run("soup", "base", "ft", "-o", "out", "--weights", "0.1,1.0"))
    one, two = tensors("base"), tensors("ft")
    are_close(tensors("out"), {name: (0.1 * one[name] + two[name]) / 1.1 for name in one})


def test_one_of_two_fine_tunes_has_a_head_of_its_own(run):
    make("llama, tied")
    shutil.copytree("ft", "apart")
    head = 0.02 * torch.randn(tensors("ft")["model.embed_tokens.weight"].shape)
    rewrite("apart", lambda held: {**held, "lm_head.weight": held["model.embed_tokens.weight"] + head})
    configure("apart/config.json", tie_word_embeddings=False)
    said = refused(run("soup", "ft", "apart", "-o", "out"))
    assert "'lm_head.weight': has other values than 'model.embed_tokens.weight'" in said
    assert "give number 2 first to keep it" in said
    done(run("soup", "apart", "ft", "-o", "out"))
    embedding = tensors("ft")["model.embed_tokens.weight"]
    torch.testing.assert_close(load("LlamaForCausalLM", "out").lm_head.weight.data, embedding + head / 2)


@pytest.mark.parametrize("order", [["ft", "grown"], ["grown", "ft"]])
def test_a_soup_of_vocabularies_of_two_sizes(run, order):
    model = make("llama")
    rows = len(model.lm_head.weight) + 4
    step(model).resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained("grown")
    assert "overlap edits the rows" in refused(run("soup", *order, "-o", "out"))
    done(run("soup", *order, "-o", "out", "--on-mismatch", "overlap"))
    first, other, found = (tensors(folder)["lm_head.weight"] for folder in (*order, "out"))
    shared = min(len(first), len(other))
    torch.testing.assert_close(found[:shared], (first[:shared] + other[:shared]) / 2)
    assert torch.equal(found[shared:], first[shared:])
    load("LlamaForCausalLM", "out")


def test_positions_in_a_larger_image_are_no_further_rows(run):
    kind, options = MODELS["clip"]
    for folder, size in (("base", 32), ("ft", 48)):
        build(kind, {**options, "vision_config": {**VISION, "image_size": size}}).save_pretrained(folder)
    said = refused(run("edit", "base", "ft", "-o", "out"))
    assert "position_embedding.weight': the shapes differ: expected [17, 32], found [37, 32]" in said
    assert "overlap" not in said
    overlap = ["--on-mismatch", "overlap"]
    said = refused(run("edit", "base", "ft", "-o", "out", *overlap))
    assert "rows are other places of the image there; --exclude leaves such tensors as they are" in said
    excluded = ["--exclude", "vision_model.embeddings.position_embedding.weight"]
    for number, way in enumerate((["--on-mismatch", "keep"], [*overlap, *excluded])):
        done(run("edit", "base", "ft", "-o", f"out{number}", *way))
        load("CLIPModel", f"out{number}")


def test_a_t5_with_an_encoder_embedding_and_a_head_but_no_shared_one(run):
    make("t5, untied")
    head = torch.randn(tensors("base")["shared.weight"].shape)
    for folder in ("base", "ft"):
        rename(folder, "shared.weight", "encoder.embed_tokens.weight")
        rewrite(folder, lambda held: {**held, "lm_head.weight": head + 0.1 * torch.randn(head.shape)})
    done(run("edit", "base", "ft", "-o", "out"))
    model = load("T5ForConditionalGeneration", "out")
    for name in ("encoder.embed_tokens.weight", "lm_head.weight"):
        edited = tensors("out")[name]
        assert not torch.equal(edited, tensors("ft")[name])
        assert torch.equal(model.state_dict()[name], edited)


# -- adapters --------------------------------------------------------------------------------------


def adapted(name="linear"):
    """A base and an adapter, and the tensors that peft makes of the two."""
    made = peft_adapters.make(name, Path())
    return made, peft_adapters.merge(made, Path("merged-by-peft"))


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("dora", "lora_magnitude_vector.weight", "lora_magnitude_vector"),  # of peft 0.11 and before
        ("linear", "model.layers.", "layers."),  # trained on the model without its head
        ("linear", "model.layers.", "model._fsdp_wrapped_module.layers."),
    ],
)
def test_adapters_whose_keys_are_not_those_of_todays_peft(run, case, old, new):
    made, expected = adapted(case)
    rename(made.adapter, old, new)
    done(run("wise", made.base, made.adapter, "-o", "out", "--alpha", "1"))
    are_close(tensors("out"), expected)


def test_an_adapter_trained_over_codes_is_merged_into_what_they_were_made_from(run):
    made, expected = adapted()
    named = "unsloth/llama-3-8b-bnb-4bit"
    configure(made.adapter / "adapter_config.json", base_model_name_or_path=named)
    done(run("wise", made.base, made.adapter, "-o", "out", "--alpha", "1"))
    are_close(tensors("out"), expected)


def test_an_adapter_with_the_configuration_of_the_first_peft(run):
    made, expected = adapted()
    path = made.adapter / "adapter_config.json"
    known = json.loads(path.read_text())
    first = {name: known[name] for name in ("peft_type", "r", "lora_alpha", "target_modules", "bias")}
    path.write_text(json.dumps({**first, "enable_lora": None, "merge_weights": False}))
    (weights,) = made.adapter.glob("*.safetensors")
    torch.save(load_file(weights), made.adapter / "adapter_model.bin")
    weights.unlink()
    done(run("wise", made.base, made.adapter, "-o", "out", "--alpha", "1"))
    are_close(tensors("out"), expected)


@pytest.mark.parametrize("case", ["linear", "patterns", "rslora", "dora", "lora_bias"])
def test_a_mean_of_adapters_is_the_mean_of_their_updates(run, case):
    # sums of the factors, as peft's add_weighted_adapter makes them, have products across the adapters
    made = [peft_adapters.make(case, Path(), seed=seed) for seed in (1, 2)]
    one, two = (peft_adapters.merge(each, Path(f"merged-{n}")) for n, each in enumerate(made))
    adapters = [each.adapter for each in made]
    done(run("soup", *adapters, "--base", made[0].base, "-o", "out"))
    are_close(tensors("out"), {name: (one[name] + two[name]) / 2 for name in one})


def test_an_adapter_that_peft_saved_empty(run):
    made = peft_adapters.make("linear", Path())
    (made.adapter / "adapter_model.safetensors").unlink()
    torch.save({}, made.adapter / "adapter_model.bin")
    assert "the state dict is empty" in refused(run("edit", made.base, made.adapter, "-o", "out"))


def test_an_adapter_of_another_name_is_in_a_folder_of_that_name(run):
    made = peft_adapters.make("linear", Path())
    shutil.copytree(made.adapter, "saved/other")
    said = refused(run("edit", made.base, "saved", "-o", "out"))
    assert said.endswith("no weights in this folder; pass one that has some: other\n")
    done(run("edit", made.base, "saved/other", "-o", "out"))
    load("LlamaForCausalLM", "out")


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_state_dict_with_the_adapter_still_in_it(run, is_wrapped):
    made = peft_adapters.make("linear", Path())
    model = peft_adapters.load(made)
    held = model.state_dict() if is_wrapped else model.base_model.model.state_dict()
    assert any("base_layer" in name for name in held)
    torch.save(held, "model.pt")
    for command in (
        ["edit", made.base, "model.pt"],
        ["edit", "model.pt", made.base],
        ["soup", made.base, "model.pt"],
    ):
        said = refused(run(*command, "-o", "out"))
        assert "a model of peft with a LoRA adapter in it, whose scale" in said
        assert "write that with save_pretrained(FOLDER) of the training's LoraConfig" in said
    model.save_pretrained("adapter")
    Path("of-run").mkdir()
    for file in (Path("model.pt"), Path("adapter/adapter_config.json")):
        shutil.copy(file, "of-run")
    done(run("edit", made.base, "of-run", "-o", "of-dump"))
    done(run("edit", made.base, "adapter", "-o", "of-adapter"))
    torch.save(model.merge_and_unload().state_dict(), "model.pt")
    done(run("edit", made.base, "model.pt", "-o", "of-merged"))
    load("LlamaForCausalLM", "of-adapter")
    are_close(tensors("of-dump"), tensors("of-merged"))
    # the spectrum of a merged update has noise of float32 beyond the adapter's rank
    are_close(tensors("of-merged"), tensors("of-adapter"))


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["./lora-out", "/ors/models/aura-11.8b", "ors/out/lora/checkpoint", "C:\\out"]
)
def test_a_path_that_does_not_exist_is_called_so(run, path):
    make("llama")
    assert refused(run("edit", "base", path, "-o", "out")).startswith(
        f"error: {path}: no such file or folder"
    )


def test_a_folder_with_a_configuration_alone(run):
    model = make("llama")
    model.config.save_pretrained("global_step_25/actor/huggingface")
    said = refused(run("edit", "base", "global_step_25/actor/huggingface", "-o", "out"))
    assert said == "error: global_step_25/actor/huggingface: no weights in this folder\n"


# -- diffusers -------------------------------------------------------------------------------------


def test_a_pipeline_whose_parts_have_variants_or_not(run):
    pipeline = unet_pipeline()
    pipeline.save_pretrained("base")
    step(pipeline.unet)
    pipeline.save_pretrained("ft")
    pipeline.unet.half().save_pretrained("ft/unet", variant="fp16")
    Path("ft/unet/diffusion_pytorch_model.safetensors").unlink()
    done(run("edit", "base", "ft", "-o", "out"))
    assert sorted(path.name for path in Path("out/unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    loaded = StableDiffusionPipeline.from_pretrained("out", variant="fp16", dtype=torch.float16)
    (path,) = Path("out/unet").glob("*.safetensors")
    for name, tensor in load_file(path).items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor)


def variants(folder, model):
    """Save half of a model's precision in shards, under the names of a variant."""
    model.half().save_pretrained(folder, variant="fp16", max_shard_size="30KB")
    assert len(list(Path(folder).glob("*.index.fp16.json"))) == 1


@pytest.mark.parametrize("has_index", [True, False])
def test_a_variant_in_shards_keeps_its_names(run, has_index):
    model = build(*MODELS["llama"])
    variants("base", model)
    variants("ft", step(model))
    names = {path.name for path in Path("ft").iterdir()}
    if not has_index:
        Path("ft/model.safetensors.index.fp16.json").unlink()
    said = done(run("wise", "base", "ft", "-o", "out", "--alpha", "1"))
    assert "model.fp16" not in said
    assert {path.name for path in Path("out").iterdir()} == names | {"README.md", "monosoup_report.json"}
    loaded = load("LlamaForCausalLM", "out", variant="fp16", dtype=torch.float16)
    are_close(loaded.state_dict(), model.state_dict())


def test_a_variant_of_a_unet_in_shards_keeps_its_names(run):
    unet = unet_pipeline().unet
    variants("base", unet)
    variants("ft", step(unet))
    done(run("wise", "base", "ft", "-o", "out", "--alpha", "1"))
    loaded = UNet2DConditionModel.from_pretrained("out", variant="fp16", torch_dtype=torch.float16)
    are_close(loaded.state_dict(), unet.state_dict())


def test_the_averaged_unet_of_a_training_script(run):
    unet = unet_pipeline().unet
    unet.save_pretrained("base")
    ema = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    step(unet)
    ema.step(unet.parameters())
    ema.save_pretrained("checkpoint-500/unet_ema")
    unet.save_pretrained("checkpoint-500/unet")
    said = refused(run("edit", "base", "checkpoint-500", "-o", "out"))
    assert "pass one that has some: unet, unet_ema" in said
    done(run("edit", "base", "checkpoint-500/unet_ema", "-o", "out"))
    UNet2DConditionModel.from_pretrained("out")
    assert json.loads(Path("out/config.json").read_text())["optimization_step"] == 1  # as EMAModel reads it
