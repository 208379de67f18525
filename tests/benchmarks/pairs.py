"""Generated pairs: `python -m tests.benchmarks.pairs KIND FOLDER`.

Updates have what fine-tuning leaves: some strong directions over full-rank noise.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCK = {
    "q": (2048, 1024),
    "k": (1024, 1024),
    "v": (1024, 1024),
    "o": (1024, 2048),
    "gate": (3072, 1024),
    "up": (3072, 1024),
    "down": (1024, 3072),
}
"""The matrices of a transformer block of a 0.6B model."""


EXPERTS = 128
"""How many matrices the stack has."""


def matrix_pair(shape, generator):
    """(base, fine-tuned), float32: an update with 64 strong directions and a full-rank rest."""
    base = 0.02 * torch.randn(shape, generator=generator)
    left, right = (torch.randn(size, 64, generator=generator) for size in shape)
    strong = (left * 0.95 ** torch.arange(64)) @ right.T
    update = 1e-4 * (strong + torch.randn(shape, generator=generator))
    return base, base + update


def qwen2(hidden, intermediate, layers, vocabulary, key_value):
    """The tensors of a Qwen2 by name."""
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for number in range(layers):
        prefix = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (hidden,)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, intermediate)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}.mlp.{name}.weight", (intermediate, hidden)
        for name, rows in {"q_proj": hidden, "k_proj": key_value, "v_proj": key_value}.items():
            yield f"{prefix}.self_attn.{name}.weight", (rows, hidden)
            yield f"{prefix}.self_attn.{name}.bias", (rows,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
    yield "model.norm.weight", (hidden,)


FAMILIES = {
    "half_billion": ((896, 4864, 24, 151_936, 128), torch.bfloat16),
    "few_layers": ((896, 4864, 4, 30_000, 128), torch.bfloat16),
    "small": ((64, 172, 4, 320, 32), torch.float32),
}
"""Sizes as in Qwen2 0.5B, 988 MB; with fewer layers and words, 173 MB; and of a small model for comparing
numbers."""


def write_family(kind, folder):
    """A base and four fine-tunes of it, folders that transformers and mergekit take for Qwen2."""
    sizes, dtype = FAMILIES[kind]
    hidden, intermediate, layers, vocabulary, key_value = sizes
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "num_attention_heads": hidden // 64 or 1,
        "num_key_value_heads": key_value // 64 or 1,
        "head_dim": hidden // (hidden // 64 or 1),
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in qwen2(*sizes)}
    together = {name: torch.randn(weights.shape, generator=generator) for name, weights in base.items()}
    for name in ("base", "ft1", "ft2", "ft3", "ft4"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        tensors = {
            key: weights
            if name == "base"
            else weights + 1e-3 * (together[key] + torch.randn(weights.shape, generator=generator))
            for key, weights in base.items()
        }
        save_file(
            {key: weights.to(dtype) for key, weights in tensors.items()},
            folder / name / "model.safetensors",
            {"format": "pt"},
        )


ALIKE = {
    "two_gigabytes": (238, (1024, 4096)),
    "fp8": (476, (1024, 4096)),
    "sides_of_1024": (24, (1024, 1024)),
    "sides_of_2048": (6, (2048, 2048)),
    "tall": (1, (50_000, 512)),
    "many_small": (3000, (64, 64)),
}
"""Files of so many matrices of one shape."""

SCALE = 2.0**-11
"""The scale of every block of fp8 codes, with which no weight overflows."""


def shapes(kind):
    if kind == "embedding":
        return {"embed_tokens.weight": (150_000, 1024)}
    if kind in ALIKE:
        count, shape = ALIKE[kind]
        return {f"layers.{n}.weight": shape for n in range(count)}
    if kind == "tiny":
        return {f"layers.{n // 1000}.experts.{n % 1000}.weight": (16, 16) for n in range(100_000)}
    if kind == "stack":
        return {"layers.0.mlp.experts.up": (EXPERTS, 768, 2048)}
    return {f"layers.{n}.{name}.weight": shape for n in range(12) for name, shape in BLOCK.items()}


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind in FAMILIES:
        write_family(kind, folder)
        return
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name, shape in shapes(kind).items():
        dtype = torch.float8_e4m3fn if kind == "fp8" else torch.bfloat16
        pair = tuple(torch.empty(math.prod(shape[:-2]), *shape[-2:], dtype=dtype) for _ in range(2))
        for matrices in zip(*pair, strict=True):
            for matrix, weights in zip(matrices, matrix_pair(shape[-2:], generator), strict=True):
                matrix.copy_(weights / SCALE if kind == "fp8" else weights)
        pairs[name] = tuple(weights.view(shape) for weights in pair)
    if kind == "fp8":
        scales = torch.full((1024 // 128, 4096 // 128), SCALE)
        pairs |= {f"{name}_scale_inv": (scales.clone(), scales.clone()) for name in [*pairs]}
    if kind == "stack":  # the same matrices, apart
        (name,) = pairs
        apart = {f"{name}.{n:03}": tuple(part[n].clone() for part in pairs[name]) for n in range(EXPERTS)}
        save_pair(apart, folder / "apart")
    save_pair(pairs, folder)


def save_pair(pairs, folder):
    folder.mkdir(exist_ok=True)
    for number, role in enumerate(("base", "finetuned")):
        save_file({name: pair[number] for name, pair in pairs.items()}, folder / f"{role}.safetensors")


if __name__ == "__main__":
    main()
