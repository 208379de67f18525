"""Tiny models of mixtures of experts, each in two forms, and the other forms that are made by hand."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file, save_file

from tests.models import CAUSAL, EXPERTS, MODELS, build, step

ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1}
LATENT = {
    **CAUSAL,
    **ROUTED,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}

FAMILIES = {
    "qwen3-moe": MODELS["qwen3-moe"],
    "mixtral": MODELS["mixtral"],
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**CAUSAL, **EXPERTS, "shared_expert_intermediate_size": 40}),
    "phimoe": ("PhimoeForCausalLM", {**CAUSAL, "num_local_experts": 4}),
    "olmoe": ("OlmoeForCausalLM", {**CAUSAL, "num_experts": 4}),
    "granitemoe": ("GraniteMoeForCausalLM", {**CAUSAL, "num_local_experts": 4}),
    "jamba": (
        "JambaForCausalLM",
        {
            **CAUSAL,
            "num_experts": 4,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "pad_token_id": 0,
        },
    ),
    "glm4-moe": (
        "Glm4MoeForCausalLM",
        {**CAUSAL, **ROUTED, "head_dim": 8, "n_routed_experts": 4, "first_k_dense_replace": 1},
    ),
    "deepseek-v2": ("DeepseekV2ForCausalLM", LATENT),
    "deepseek-v3": ("DeepseekV3ForCausalLM", LATENT),
    "ernie": (
        "Ernie4_5_MoeForCausalLM",
        {
            **CAUSAL,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    "minimax": ("MiniMaxForCausalLM", {**CAUSAL, "num_local_experts": 4}),
    "minimax-m2": ("MiniMaxM2ForCausalLM", {**CAUSAL, "head_dim": 8, "num_local_experts": 4}),
    "lfm2-moe": (
        "Lfm2MoeForCausalLM",
        {
            **CAUSAL,
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "hunyuan": ("HunYuanMoEV1ForCausalLM", {**CAUSAL, "num_experts": 4, "moe_topk": 2, "head_dim": 8}),
    "qwen3.5-moe": (
        "Qwen3_5MoeForCausalLM",
        {
            **CAUSAL,
            **EXPERTS,
            "head_dim": 8,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["full_attention", "full_attention"],
        },
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": {**CAUSAL, **EXPERTS, "head_dim": 8, "rope_parameters": SECTIONS},
            "vision_config": VISION,
        },
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {**CAUSAL, "head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            **CAUSAL,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["full_attention", "full_attention"],
        },
    ),
    "nemotron-h": (
        "NemotronHForCausalLM",
        {
            **CAUSAL,
            **ROUTED,
            "head_dim": 8,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 24,
            "layers_block_type": ["attention", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
        },
    ),
    "dbrx": (
        "DbrxForCausalLM",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "vocab_size": 99,
            "max_seq_len": 64,
            "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 24},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        },
    ),
}
"""The class in transformers and the options of its config."""

PACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias)?$")
ENDINGS = {None: "weight", "_bias": "bias"}


def transposed(weights):
    """Qwen3-VL-MoE as it is published: (experts, in, out)."""
    return {name: one.mT.contiguous() if PACKED.match(name) else one for name, one in weights.items()}


def llama4_apart(weights):
    """As tools that quantise single linear layers store it."""
    apart = {}
    for name, packed in weights.items():
        match = PACKED.match(name)
        if match is None:
            apart[name] = packed
            continue
        for number, one in enumerate(packed.mT):
            if match[2] == "gate_up_proj":
                gate, up = one.chunk(2)
                apart[f"{match[1]}.{number}.gate_proj.weight"] = gate.contiguous()
                apart[f"{match[1]}.{number}.up_proj.weight"] = up.contiguous()
            else:
                apart[f"{match[1]}.{number}.down_proj.weight"] = one.contiguous()
    return apart


def gpt_oss_apart(weights):
    """Every projection by itself; gate and up have the even and the odd columns."""
    apart = {}
    for name, packed in weights.items():
        match = PACKED.match(name)
        if match is None:
            apart[name] = packed
            continue
        for number, stored in enumerate(packed):
            one = stored if match[3] else stored.mT
            ending = ENDINGS[match[3]]
            if match[2] == "gate_up_proj":
                apart[f"{match[1]}.{number}.gate_proj.{ending}"] = one[::2].contiguous()
                apart[f"{match[1]}.{number}.up_proj.{ending}"] = one[1::2].contiguous()
            else:
                apart[f"{match[1]}.{number}.down_proj.{ending}"] = one.contiguous()
    return apart


def gpt_oss_fused(weights):
    """One linear layer for gate and up of each expert, as 4-bit trainers have it."""
    apart = {}
    for name, packed in weights.items():
        match = PACKED.match(name)
        for number, one in enumerate(packed if match else ()):
            ending = ENDINGS[match[3]]
            apart[f"{match[1]}.{match[2]}s.{number}.{ending}"] = (one if match[3] else one.mT).contiguous()
        if match is None:
            apart[name] = packed
    return apart


def dbrx_apart(weights):
    """As converted for quantisation: linear layers, so that the down projection is transposed."""
    apart = {}
    for name, flat in weights.items():
        if ".experts.mlp." not in name:
            apart[name] = flat
            continue
        outer, _, what = name.rpartition(".")
        for number, one in enumerate(flat.chunk(4)):
            apart[f"{outer}.{number}.{what}.weight"] = (one.mT if what == "w2" else one).contiguous()
    return apart


def nemotron_packed(weights):
    """The names of transformers, but for the prefix, which --rename changes."""
    return {name.replace("model.", "backbone.", 1): one for name, one in weights.items()}


BY_HAND = {
    "nemotron-h": nemotron_packed,
    "qwen3-vl-moe": transposed,
    "llama4": llama4_apart,
    "gpt-oss": gpt_oss_apart,
    "gpt-oss, fused": gpt_oss_fused,
    "dbrx": dbrx_apart,
}
"""How the other form is made where transformers reads and writes only one."""


def heads():
    """Prediction heads as Qwen3.5 publishes them beside the model: always with experts one by one."""
    shapes = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
    return {
        f"mtp.layers.0.mlp.experts.{number}.{what}.weight": torch.randn(shape)
        for number in range(2)
        for what, shape in shapes.items()
    }


def make(family, folder):
    """Save a model and a step of it in two forms: base-one, base-two, ft-one, ft-two; the first loads.

    Returns:
        The model's class.
    """
    kind, options = FAMILIES[family.partition(",")[0]]
    model = build(kind, options)
    by_hand = BY_HAND.get(family)
    extra = heads() if family == "qwen3.5-moe" else {}
    for stage in ("base", "ft"):
        if stage == "ft":
            step(model)
        model.save_pretrained(folder / f"{stage}-one")
        model.save_pretrained(folder / f"{stage}-two", save_original_format=False)
        if by_hand:
            rewrite(folder / f"{stage}-two", by_hand)
        for form in ("one", "two") if extra else ():
            rewrite(folder / f"{stage}-{form}", lambda weights, extra=extra: weights | extra)
        extra = {name: 1.02 * one for name, one in extra.items()}
    return type(model)


def rewrite(folder, change):
    """Change the tensors in a folder's only file."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
