"""Pairs of checkpoints with a matrix of every kind."""

import numpy as np
import torch
from safetensors.torch import save_file


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def updates(rng):
    """name → (shape in the file, the update as it is meant before rounding, whether the base is zero)."""
    normal = rng.standard_normal
    decaying = orthogonal(rng, 96, 64) * 0.9 ** np.arange(64) @ orthogonal(rng, 64, 64).T
    return {
        "square": normal((64, 64)),
        "tall": normal((200, 48)),
        "wide": normal((48, 200)),
        "decaying": decaying,
        "rank_deficient": np.vstack([normal((40, 64)), np.zeros((24, 64))]),
        "low_rank": normal((96, 8)) @ normal((8, 64)),
        "rank_1": np.outer(normal(64), normal(48)),
        "flat": 8 * orthogonal(rng, 96, 64),
        "tiny": 1e-7 * normal((64, 48)) / 50,
        "row": normal((1, 300)),
        "column": normal((300, 1)),
        "scalar": normal((1, 1)),
        "convolution": normal((24, 6, 3, 3)),
        "conv_1d": normal((24, 6, 5)),
        "mlp.experts.gate_up_proj": normal((3, 32, 24)),
    }


def write_pair(tmp_path, base_dtype, finetuned_dtype, *, zero_base):
    rng = np.random.default_rng(7)
    base, finetuned = {}, {}
    for name, update in updates(rng).items():
        weights = np.zeros_like(update) if zero_base else rng.standard_normal(update.shape)
        step = update if zero_base else 0.05 * update
        base[name] = torch.from_numpy(weights).to(base_dtype)
        finetuned[name] = (base[name].double() + torch.from_numpy(step)).to(finetuned_dtype)
    save_file(base, tmp_path / "base.safetensors")
    save_file(finetuned, tmp_path / "finetuned.safetensors")
    return base, finetuned
