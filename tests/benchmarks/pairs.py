"""Generated pairs: `python -m tests.benchmarks.pairs KIND FOLDER`.

Updates have what fine-tuning leaves: some strong directions over full-rank noise.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCK = {
    "q": (2048, 1024), "k": (1024, 1024), "v": (1024, 1024), "o": (1024, 2048),
    "gate": (3072, 1024), "up": (3072, 1024), "down": (1024, 3072),
}  # fmt: skip
"""The matrices of a transformer block of a 0.6B model."""


def matrix_pair(shape, generator):
    """(base, fine-tuned), float32: an update with 64 strong directions and a full-rank rest."""
    base = 0.02 * torch.randn(shape, generator=generator)
    left, right = (torch.randn(size, 64, generator=generator) for size in shape)
    strong = (left * 0.95 ** torch.arange(64)) @ right.T
    update = 1e-4 * (strong + torch.randn(shape, generator=generator))
    return base, base + update


def shapes(kind):
    if kind == "embedding":
        return {"embed_tokens.weight": (150_000, 1024)}
    if kind == "two_gigabytes":
        return {f"layers.{n}.weight": (1024, 4096) for n in range(238)}
    return {f"layers.{n}.{name}.weight": shape for n in range(12) for name, shape in BLOCK.items()}


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name, shape in shapes(kind).items():
        pairs[name] = tuple(weights.bfloat16() for weights in matrix_pair(shape, generator))
    for number, role in enumerate(("base", "finetuned")):
        save_file({name: pair[number] for name, pair in pairs.items()}, folder / f"{role}.safetensors")


if __name__ == "__main__":
    main()
