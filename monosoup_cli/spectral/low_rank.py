"""The singular value decomposition of a product of two thin matrices, without computing the product.

With B = Q_B R_B and Aᵀ = Q_A R_A the product is B A = Q_B (R_B R_Aᵀ) Q_Aᵀ. Its singular values are those of
the small core R_B R_Aᵀ, and its singular vectors are Q_B and Q_A times those of the core. So an update of
rank r only takes the decomposition of an r × r matrix, whatever the size of the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["LowRankSpectrum", "decompose_product", "held_bytes"]


@dataclass(frozen=True)
class LowRankSpectrum:
    """The singular value decomposition of an (m, n) matrix of low rank, left · diag(σ) · right.

    Attributes:
        singular_values: (min(m, n),) float64 on the CPU, largest first, zero beyond the factors' rank r.
        left: The left singular vectors of the first r, (m, r) float64 on the factors' device.
        right: The right singular vectors of the first r, (r, n) float64 on the factors' device.
    """

    singular_values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


def decompose_product(left: torch.Tensor, right: torch.Tensor) -> LowRankSpectrum:
    """Decompose left @ right. Singular values are exact to about 1e-15 of the product of the factors' norms.

    Args:
        left: (m, r) float64.
        right: (r, n) float64.

    Raises:
        FloatingPointError: A factor contains NaN or Inf.
    """
    left, left_exponent = _in_range(left)
    right, right_exponent = _in_range(right)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    # on the CPU: cuSOLVER's one for small matrices (gesvdj) is only exact to about 4e-13
    u, values, vt = torch.linalg.svd((r_left @ r_right.T).cpu(), full_matrices=False)
    padded = torch.zeros(min(left.shape[0], right.shape[1]), dtype=torch.float64)
    padded[: len(values)] = values
    exponent = torch.tensor(left_exponent + right_exponent)
    return LowRankSpectrum(torch.ldexp(padded, exponent), q_left @ u.to(left), vt.to(left) @ q_right.T)


def held_bytes(length: int, side: int, rank: int, edits: int) -> int:
    """How many bytes the decomposition of a product takes, or what it is and `edits` products made from it.

    Args:
        length: The number of rows of the left factor.
        side: The number of columns of the right factor.
        rank: The rank of the factors.
        edits: How many products of the same rank are made from the singular vectors.
    """
    # scaled factors, their orthogonal bases, and the workspace of QR or the singular vectors
    return 8 * rank * (length + side) * max(3, 1 + edits) + 6 * 8 * rank**2


def _in_range(factor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Scale a factor so that its largest element is between 1/2 and 1. Return it and the exponent of 2."""
    peak = float(factor.abs().max()) if factor.numel() else 0.0
    if not math.isfinite(peak):
        raise FloatingPointError("a factor holds NaN or Inf")
    exponent = max(math.frexp(peak)[1], -1000)
    return torch.ldexp(factor, torch.tensor(-exponent).to(factor)), exponent
