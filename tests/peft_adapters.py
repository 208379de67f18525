"""Tiny adapters written by peft over tiny models of transformers, and what peft makes of them."""

import warnings
from pathlib import Path
from typing import NamedTuple

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from tests.models import CAUSAL, ENDS, MODELS, VISION, build

VIDEO = {**VISION, "num_frames": 4, "tubelet_size": 2, "decoder_num_hidden_layers": 1}
OPEN = {**CAUSAL, "num_local_experts": 4, "head_dim": 8, "num_experts_per_tok": 2, **ENDS}
MODELS = {
    **MODELS,
    "videomae": ("VideoMAEForVideoClassification", VIDEO),
    "gpt-oss": ("GptOssForCausalLM", OPEN),
    "gpt-oss, square": ("GptOssForCausalLM", {**OPEN, "intermediate_size": OPEN["hidden_size"]}),
}

LLAMA = {"target_modules": ["q_proj", "down_proj"]}
GPT2 = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}
BERT = {"target_modules": ["query", "output.dense"]}
PARAMETERS = {"target_modules": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]}
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\..*": 6},
    "alpha_pattern": {"layers.0.mlp.down_proj": 3, "^model.layers.1.self_attn.q_proj": 32},
}
EXPERT_PATTERNS = {"rank_pattern": {"mlp.experts.down_proj": 2}, "alpha_pattern": {"experts.gate_up_proj": 3}}

CASES = {
    "linear": ("llama", LLAMA),
    "rslora": ("llama", {**LLAMA, "use_rslora": True}),
    "patterns": ("llama", {**LLAMA, **PATTERNS}),
    "patterns, rslora": ("llama", {**LLAMA, **PATTERNS, "use_rslora": True}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "one layer": ("llama", {**LLAMA, "layers_to_transform": [1]}),
    "a regular expression": ("llama", {"target_modules": r".*\.1\..*(q|v)_proj", "lora_dropout": 0.1}),
    "a rank above the shapes": ("llama", {**LLAMA, "r": 64}),
    "head": ("llama", {"target_modules": ["lm_head", "v_proj"]}),
    "bfloat16": ("llama", LLAMA),
    "conv1d of gpt2": ("gpt2", GPT2),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, tied": ("llama, tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "convolution, 1-d": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "convolution, 2-d": ("vit", {"target_modules": ["projection", "q_proj"]}),
    "convolution, 3-d": ("videomae", {"target_modules": ["projection"]}),
    "dora": ("llama", {**LLAMA, "use_dora": True}),
    "dora of gpt2": ("gpt2", {**GPT2, "use_dora": True}),
    "dora of an embedding": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "dora of a convolution, 1-d": ("whisper", {"target_modules": ["conv1", "conv2"], "use_dora": True}),
    "dora of a convolution, 2-d": ("vit", {"target_modules": ["projection"], "use_dora": True}),
    "dora of a convolution, 3-d": ("videomae", {"target_modules": ["projection"], "use_dora": True}),
    "lora_bias": ("bert", {**BERT, "lora_bias": True}),
    "bias, all": ("vit", {"target_modules": ["projection", "q_proj"], "bias": "all"}),
    "bias, all, tied": ("bert", {**BERT, "bias": "all"}),
    "bias, lora_only": ("bert", {**BERT, "bias": "lora_only"}),
    "bias, lora_only, of gpt2": ("gpt2", {**GPT2, "bias": "lora_only"}),
    "modules_to_save": ("llama", {**LLAMA, "modules_to_save": ["lm_head", "norm"]}),
    "modules_to_save with bias": ("vit", {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
    "tokens": ("llama", {**LLAMA, "trainable_token_indices": [7, 3, 98]}),
    "tokens, named": ("llama", {**LLAMA, "trainable_token_indices": {"embed_tokens": [5, 0]}}),
    "tokens, tied": ("llama, tied", {**LLAMA, "trainable_token_indices": [1, 2]}),
    "tokens of a head": (
        "llama",
        {**LLAMA, "trainable_token_indices": {"lm_head": [1]}, "modules_to_save": ["embed_tokens"]},
    ),
    "modules_to_save, tied": (
        "llama, tied",
        {**LLAMA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "parameters": ("llama", PARAMETERS),
    "experts": ("qwen3-moe", EXPERTS),
    "experts and linear": ("qwen3-moe", {**EXPERTS, "target_modules": ["q_proj", "v_proj"]}),
    "experts, patterns": ("qwen3-moe", {**EXPERTS, **EXPERT_PATTERNS}),
    "router": ("qwen3-moe", {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
    "experts of mixtral": ("mixtral", EXPERTS),
    "experts, transposed": ("gpt-oss", EXPERTS),
    "experts, transposed and square": ("gpt-oss, square", EXPERTS),
}
"""The model, and the options of LoraConfig beside rank and alpha."""


class Folders(NamedTuple):
    base: Path
    adapter: Path


def make(name, folder, seed=1, dtype=torch.float32):
    """The folders of a base, in `dtype`, and of an adapter of it, random in all that is trained."""
    made = Folders(folder / "base", folder / f"adapter-{seed}")
    kind, options = CASES[name]
    model = build(*MODELS[kind])
    if not made.base.exists():
        save(model.to(dtype), made.base)
    noise = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of ties, of what is deprecated, of lora_bias as if it were a shard
        adapted = peft.get_peft_model(model.float(), LoraConfig(**{"r": 4, "lora_alpha": 7, **options}))
        for key, weights in adapted.named_parameters():
            if weights.requires_grad:
                weights += 0.05 * torch.randn(weights.shape, generator=noise)
            if "lora_A" in key or "lora_embedding_A" in key:
                # a spectrum that is split within the rank: each row counts less than the one before it
                weights *= 0.4 ** (torch.arange(len(weights)) % 4).view(-1, *[1] * (weights.ndim - 1))
        adapted.save_pretrained(made.adapter)
    if name == "bfloat16":
        (file,) = made.adapter.glob("*.safetensors")
        save_file({key: t.bfloat16() for key, t in load_file(file).items()}, file, {"format": "pt"})
    return made


def save(model, folder):
    """By the names that tensors have in memory, where experts are one."""
    model.save_pretrained(folder, save_original_format=False)


def load(folders, dtype=torch.float32):
    """The base with its adapter, both computing in `dtype`."""
    config = transformers.AutoConfig.from_pretrained(folders.base, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])
    base = kind.from_pretrained(folders.base, dtype=dtype, local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, folders.adapter, autocast_adapter_dtype=False)


def merge(folders, folder, dtype=torch.float32):
    """Write what `merge_and_unload` makes of an adapter, computed in `dtype`; its tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = load(folders, dtype).merge_and_unload()
    assert all(weights.dtype == dtype for weights in merged.parameters())
    save(merged, folder)
    return tensors_in(folder)


def tensors_in(folder):
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
