"""A base and a fine-tune of one dense model in two forms: q, k, v and gate, up fused or apart, transposed."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.layouts.forms import GATE_UP, QKV, fuse, in_turn, rows, save_like, tensors_in, turned, unfuse
from tests.models import CAUSAL, ENDS, STACK, TEXT, VISION, build, step
from tests.oracle import assert_weights_equal
from tests.oracle import edit as oracle

GPT2 = {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}
FALCON = {**STACK, "vocab_size": 99, "bias": True, "alibi": False}


def phi3(tensors):
    tensors = unfuse(tensors, "qkv_proj.", QKV, rows(32, 16, 16))
    return unfuse(tensors, "gate_up_proj.", GATE_UP, rows(48, 48))


def chatglm(tensors):
    """Tensors of transformers' GLM, with q, k, v fused as THUDM has them, and gate and up apart."""
    tensors = fuse(tensors, QKV, "query_key_value.")
    return unfuse(tensors, "gate_up_proj.", GATE_UP, rows(48, 48))


def gpt2(tensors):
    """The linear layers that `Conv1D` stands for, with q, k and v apart."""
    tensors = turned(tensors, ["c_attn", "c_fc", "c_proj"])
    return unfuse(tensors, "c_attn.", QKV, rows(32, 32, 32))


FAMILIES = {
    "Phi-3": ("Phi3ForCausalLM", {**CAUSAL, "pad_token_id": 0}, phi3),
    "GLM": ("GlmForCausalLM", {**CAUSAL, "head_dim": 8, "pad_token_id": 0, "attention_bias": True}, chatglm),
    "Falcon, groups of heads": (
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        lambda tensors: unfuse(tensors, "query_key_value.", QKV, in_turn(2, 16, 8, 8)),
    ),
    "Falcon, one k and v": (
        "FalconForCausalLM",
        {**FALCON, "multi_query": True},
        lambda tensors: unfuse(tensors, "query_key_value.", QKV, rows(32, 8, 8)),
    ),
    "Falcon, head by head": (
        "FalconForCausalLM",
        {**FALCON, "multi_query": False},
        lambda tensors: unfuse(tensors, "query_key_value.", QKV, in_turn(4, 8, 8, 8)),
    ),
    "Bloom": (
        "BloomForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        lambda tensors: unfuse(tensors, "query_key_value.", QKV, in_turn(4, 8, 8, 8)),
    ),
    "GPT-NeoX": (
        "GPTNeoXForCausalLM",
        TEXT,
        lambda tensors: unfuse(tensors, "query_key_value.", QKV, in_turn(4, 8, 8, 8)),
    ),
    "CodeGen": (
        "CodeGenForCausalLM",
        {**GPT2, "rotary_dim": 8},
        lambda tensors: unfuse(tensors, "qkv_proj.", [QKV[0], QKV[2], QKV[1]], in_turn(4, 8, 8, 8)),
    ),
    "timm": ("ViTModel", VISION, lambda tensors: fuse(tensors, ("query", "key", "value"), "qkv.")),
    "CLIP": (
        "CLIPModel",
        {"text_config": {**TEXT, **ENDS}, "vision_config": VISION, "projection_dim": 24},
        lambda tensors: fuse(tensors, QKV, "in_proj_"),
    ),
    "GPT-2": ("GPT2LMHeadModel", GPT2, gpt2),
}
"""The class in transformers, the options of its config, and its tensors in another form."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The base and the fine-tune of a family in both forms, made once."""
    made = {}

    def make(name):
        if name not in made:
            kind, options, other = FAMILIES[name]
            folder = tmp_path_factory.mktemp("family")
            base = build(kind, options)
            with torch.no_grad():
                for weights in base.parameters():  # biases too, which are zeros
                    weights.add_(0.02 * torch.randn(weights.shape))
            found = []
            for model, word in ((base, "base"), (step(copy.deepcopy(base)), "finetuned")):
                model.save_pretrained(folder / word)
                tensors = other(tensors_in(folder / word))
                found.append((folder / word, save_like(folder / word, tensors, folder / f"{word} apart")))
            made[name] = found
        return made[name]

    return make


def edited(run, base, finetuned, out):
    result = run("edit", base, finetuned, "-o", out)
    assert result.code == 0, result.err
    return result


def assert_edited(found, base, finetuned):
    assert found.keys() == finetuned.keys()
    for name, after in finetuned.items():
        if after.ndim == 2:
            assert_weights_equal(found[name], oracle(base[name].double().numpy(), after.double().numpy())[0])
        else:
            assert found[name].ndim != 1 or torch.equal(found[name], after), name


@pytest.mark.parametrize("form", [0, 1], ids=["as transformers has it", "in the other form"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_in_another_form(run, checkpoints, tmp_path, family, form):
    base, finetuned = checkpoints(family)
    edited(run, base[form], finetuned[form], tmp_path / "same")
    result = edited(run, base[1 - form], finetuned[form], tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "same/model.safetensors"
    ).read_bytes()
    assert "names are read with" in result.err
    assert_edited(tensors_in(tmp_path / "out"), tensors_in(base[form]), tensors_in(finetuned[form]))
    if form == 0:
        kind = getattr(transformers, FAMILIES[family][0])
        _, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info.values()), info


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_edited_each_for_itself(run, checkpoints, tmp_path, family):
    """With --split-fused the form does not matter."""
    base, finetuned = checkpoints(family)
    for form in (0, 1):
        result = run("edit", base[form], finetuned[form], "-o", tmp_path / f"{form}", "--split-fused")
        assert result.code == 0, result.err
    other = FAMILIES[family][2](tensors_in(tmp_path / "0"))
    found = tensors_in(tmp_path / "1")
    assert found.keys() == other.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-7, msg=name)


def test_plain_layers_have_no_parts(run, checkpoints, tmp_path):
    """`dense_h_to_4h` is gate and up in ChatGLM, and one layer in GPT-NeoX, as its configuration shows."""
    base, finetuned = checkpoints("GPT-NeoX")
    result = run("edit", base[0], finetuned[0], "-o", tmp_path / "out", "--split-fused")
    assert "query_key_value.weight' is taken by itself" in result.err
    assert "dense_h_to_4h" not in result.err


def test_heads_of_a_language_model_are_not_those_of_its_vision_model(run, tmp_path):
    """The vision model of InternVL has as many rows in all, but they are others."""
    generator = torch.Generator().manual_seed(0)
    text = {"model_type": "internlm2", "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    for name in ("base", "finetuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"llm_config": text}))
        tensors = {
            "vision.blocks.0.attn.qkv.weight": torch.randn(96, 32, generator=generator),
            "vision.blocks.0.attn.proj.weight": torch.randn(32, 32, generator=generator),
            "model.layers.0.attention.wqkv.weight": torch.randn(96, 48, generator=generator),
        }
        save_file(tensors, tmp_path / name / "model.safetensors")
    result = run("edit", tmp_path / "base", tmp_path / "finetuned", "-o", tmp_path / "out", "--split-fused")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out/monosoup_report.json").read_text())
    shapes = {part["name"]: part["shape"] for layer in report["layers"] for part in layer.get("slices", [])}
    assert [shapes[f"vision.blocks.0.attn.{part}.weight"] for part in QKV] == [[32, 32]] * 3
    assert [shapes[f"model.layers.0.attention.{part}.weight"] for part in QKV] == [
        [48, 48],
        [24, 48],
        [24, 48],
    ]
    assert "qkv.weight' is taken by itself (q then k then v;" in result.err
    assert "wqkv.weight' is taken by itself (q then k then v, in each of 2 groups" in result.err
