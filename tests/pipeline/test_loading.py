"""Outputs load where their inputs did: real transformers models, built from small configs."""

import pytest
import torch

import monosoup_cli
from tests import oracle

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


def llama(**options):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, **options)
    )


def clip():
    text = {**SIZES, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config)


MODELS = {
    "llama": llama,
    "llama with tied embeddings": lambda: llama(tie_word_embeddings=True),
    "llama in bfloat16": lambda: llama().to(torch.bfloat16),
    "clip": clip,
}


@pytest.mark.parametrize("is_sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("name", MODELS)
def test_the_edited_model_loads_with_the_oracles_weights(name, is_sharded, tmp_path):
    torch.manual_seed(0)
    base = MODELS[name]()
    finetuned = type(base)(base.config).to(base.dtype)
    finetuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save = {"max_shard_size": "20kB"} if is_sharded else {}
    base.save_pretrained(tmp_path / "base", **save)
    finetuned.save_pretrained(tmp_path / "finetuned", **save)
    assert (tmp_path / "finetuned" / "model.safetensors.index.json").exists() == is_sharded

    monosoup_cli.edit(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")

    edited, info = type(base).from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=base.dtype, local_files_only=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = base.state_dict(), finetuned.state_dict()
    for key, found in edited.state_dict().items():
        if found.ndim < 2 or not found.is_floating_point():
            assert torch.equal(found, after[key]), key
            continue
        shape = (found.shape[0], -1)
        matrices = [state[key].double().reshape(shape).numpy() for state in (before, after)]
        reference, _ = oracle.edit(*matrices)
        oracle.assert_weights_equal(found.reshape(shape), reference)
    if name == "llama with tied embeddings":
        assert edited.lm_head.weight is edited.model.embed_tokens.weight
