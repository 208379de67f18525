"""Adapters that were trained after the vocabulary was resized, against peft's own merge."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from tests.models import MODELS, build
from tests.peft_adapters import tensors_in

BOTH = ["embed_tokens", "lm_head"]
CASES = {
    "lora of the embedding and the head": {"target_modules": ["q_proj", *BOTH]},
    "rslora of both": {"target_modules": ["q_proj", *BOTH], "use_rslora": True},
    "dora of both": {"target_modules": ["q_proj", *BOTH], "use_dora": True},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": BOTH},
    "saved whole, and by their own names": {
        "target_modules": ["q_proj"],
        "modules_to_save": BOTH,
        "save": True,
    },
    "one saved whole, and by their own names": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "save": True,
    },
    "saved untrained": {"target_modules": ["q_proj"], "save": True},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 85], "save": True},
}
FEWER = {**CASES, "lora without a copy": {"target_modules": ["q_proj", *BOTH], "save": False}}


def train(folder, model, rows, save="auto", **options):
    """Resize the vocabulary, and write an adapter whose trained weights are random."""
    noise = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(rows)
        adapted = peft.get_peft_model(model, LoraConfig(r=4, lora_alpha=7, **options))
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights += 0.1 * torch.randn(weights.shape, generator=noise)
        adapted.save_pretrained(folder, save_embedding_layers=save)


def merged_by_peft(base, adapter, rows):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(rows)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def load(folder, rows):
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == rows
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "rows"), [*((kind, 110) for kind in CASES), *((kind, 90) for kind in FEWER)]
)
def test_a_resized_vocabulary_merges_as_peft_merges_it(run, tmp_path, kind, rows):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).save_pretrained(base)
    train(adapter, build(*MODELS["llama"]), rows, **FEWER[kind])
    refused = run("edit", base, adapter, "-o", out)
    assert refused.code == 1
    assert "the shapes differ" in refused.err
    assert "--on-mismatch keep leaves such tensors as they are, overlap edits" in refused.err
    result = run("wise", base, adapter, "--alpha", 1, "-o", out, "--on-mismatch", "keep")
    assert result.code == 0, result.err
    expected = merged_by_peft(base, adapter, rows)
    found = load(out, rows).state_dict()
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.allclose(found[name], weights, rtol=1e-5, atol=1e-6), name
    edited = run("edit", base, adapter, "-o", tmp_path / "edited", "--on-mismatch", "overlap")
    assert edited.code == 0, edited.err
    for weights in load(tmp_path / "edited", rows).state_dict().values():
        assert torch.isfinite(weights).all()


def test_only_the_rows_that_both_have_are_edited(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).save_pretrained(base)
    train(adapter, build(*MODELS["llama"]), 110, **CASES["lora of the embedding and the head"])
    merged = merged_by_peft(base, adapter, 110)["model.embed_tokens.weight"]
    result = run("wise", base, adapter, "--alpha", 0.5, "-o", out, "--on-mismatch", "overlap")
    assert result.code == 0, result.err
    found = tensors_in(out)["model.embed_tokens.weight"]
    before = tensors_in(base)["model.embed_tokens.weight"]
    assert torch.allclose(found[:99], (before + merged[:99]) / 2, atol=1e-6)
    assert torch.allclose(found[99:], merged[99:], atol=1e-6)


def test_a_tied_vocabulary_saved_under_all_names_of_peft_is_read(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama, tied"]).save_pretrained(base)
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    train(adapter, build(*MODELS["llama, tied"]), 110, save=True, **options)
    (file,) = adapter.glob("*.safetensors")
    assert "base_model.model.lm_head.original_module.weight" in load_file(file)
    result = run("wise", base, adapter, "--alpha", 1, "-o", out, "--on-mismatch", "keep")
    assert result.code == 0, result.err
    expected = merged_by_peft(base, adapter, 110)
    for name, weights in load(out, 110).state_dict().items():
        assert torch.allclose(weights, expected[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj", *BOTH]}, {"target_modules": ["q_proj"], "trainable_token_indices": [105]}],
    ids=["lora", "rows"],
)
def test_rows_that_nobody_has_are_asked_for(run, tmp_path, options):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).save_pretrained(base)
    train(adapter, build(*MODELS["llama"]), 110, save=False, **options)
    refused = run("edit", base, adapter, "-o", out, "--on-mismatch", "keep")
    assert refused.code == 1
    assert "with peft's save_pretrained(OUT, save_embedding_layers=True)" in refused.err
    train(adapter, build(*MODELS["llama"]), 110, save=True, **options)
    result = run("edit", base, adapter, "-o", out, "--on-mismatch", "keep")
    assert result.code == 0, result.err
    load(out, 110)


def test_two_values_of_one_tensor_are_refused(run, tmp_path):
    from safetensors.torch import save_file

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    build(*MODELS["llama"]).save_pretrained(base)
    train(adapter, build(*MODELS["llama"]), 110, **CASES["saved whole, and by their own names"])
    (file,) = adapter.glob("*.safetensors")
    state = load_file(file)
    state["base_model.model.lm_head.modules_to_save.weight"] += 1
    save_file(state, file)
    refused = run("edit", base, adapter, "-o", tmp_path / "out", "--on-mismatch", "keep")
    assert refused.code == 1
    assert "is there twice, and differs" in refused.err


@pytest.mark.parametrize("base", ["-", "base"])
def test_a_resized_adapter_is_written_again(run, tmp_path, base):
    folder, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).save_pretrained(folder)
    train(adapter, build(*MODELS["llama"]), 110, **CASES["lora of the embedding and the head"])
    where = folder if base == "base" else "-"
    result = run("edit", where, adapter, "-o", out, "--as-adapter", "--on-mismatch", "keep")
    assert result.code == 0, result.err
    merged_by_peft(folder, out, 110)


@pytest.mark.parametrize("pattern", [False, True])
def test_an_alpha_of_zero_is_refused_with_the_way_out(run, tmp_path, pattern):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).save_pretrained(base)
    train(adapter, build(*MODELS["llama"]), 99, target_modules=["q_proj"])
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    change = {"lora_alpha": 0} if not pattern else {"alpha_pattern": {"layers.1.self_attn.q_proj": 0}}
    path.write_text(json.dumps({**config, **change}))
    for arguments in ((base, adapter), ("-", adapter, "--as-adapter")):
        refused = run("edit", *arguments, "-o", out)
        assert refused.code == 1
        assert "set lora_alpha in adapter_config.json to that of the training" in refused.err
    path.write_text(json.dumps(config))
    assert run("edit", base, adapter, "-o", out).code == 0
    load(out, 99)
