"""The rival: MonoSoup as one writes it in an afternoon, `torch.linalg.svd` in float32 on the whole update."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def edit(base, finetuned):
    """The edited matrix in float32."""
    update = finetuned.float() - base.float()
    u, sigma, vt = torch.linalg.svd(update, full_matrices=False)
    share = sigma / sigma.sum()
    k = int(torch.exp(-torch.special.xlogy(share, share).sum()).ceil().clamp(max=len(sigma)))
    rho = (sigma[k] / sigma[0]) ** 2 if k < len(sigma) else 0.0
    cos_alpha = torch.linalg.vector_norm(sigma[k:]) / torch.linalg.vector_norm(sigma)
    low = rho + (1 - rho) * cos_alpha
    high_part = (u[:, :k] * sigma[:k]) @ vt[:k]
    low_part = (u[:, k:] * sigma[k:]) @ vt[k:]
    return base.float() + (1 - low) * high_part + low * low_part


def main():
    folder = Path(sys.argv[1])
    base, finetuned = (load_file(folder / f"{role}.safetensors") for role in ("base", "finetuned"))
    edited = {name: edit(base[name], weights).to(weights.dtype) for name, weights in finetuned.items()}
    save_file(edited, folder / "rival.safetensors")


if __name__ == "__main__":
    main()
