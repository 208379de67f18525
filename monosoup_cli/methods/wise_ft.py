"""WiSE-FT: interpolate between the base and the fine-tuned weights.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv 2109.01903).
"""

from __future__ import annotations

import torch

__all__ = ["interpolate"]


def interpolate(
    base: torch.Tensor, finetuned: torch.Tensor, alpha: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """(1 − α) W0 + α W1, for tensors of one shape and dtype; α outside [0, 1] extrapolates.

    α = 0 and α = 1 give back the one or the other itself, to the last bit; else the result is
    written to `out`, where that is given.
    """
    if alpha in (0, 1):
        return finetuned if alpha else base
    return torch.lerp(base, finetuned, alpha, out=out)
