"""Model Stock: how far to go from the base to the mean, from the angles between the updates.

Jang et al., "Model Stock: all we need is just a few fine-tuned models", ECCV 2024 (arXiv 2403.19522).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from monosoup_cli.methods.similarity import cosines

__all__ = ["StockRatio", "stock_ratio"]

ROUNDING = 2.0**-44


class StockRatio(NamedTuple):
    """Of each group of weights: the mean cosine c between updates, the ratio t, and whether t was
    negative and has been set to 0. Tensors of one shape."""

    cosine: torch.Tensor
    ratio: torch.Tensor
    is_clamped: torch.Tensor


def stock_ratio(gram: torch.Tensor, *, clamp: bool = True) -> StockRatio:
    """The interpolation ratio t = N c / (1 + (N − 1) c).

    `gram`: (..., N, N) float64, the inner products of N >= 2 updates. c is the mean over pairs of
    their cosines, in which an update of zero counts as 0. t = 0 where the denominator is 0; below
    float64's rounding of the cosines it is 0.
    """
    count = gram.shape[-1]
    cosine = cosines(gram)
    pairs = cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean = pairs / (count * (count - 1))
    denominator = 1.0 + (count - 1) * mean
    is_zero = denominator < ROUNDING * count  # never negative but by rounding: it is ‖Σ τ/‖τ‖‖²/N
    ratio = torch.where(is_zero, 0.0, count * mean / torch.where(is_zero, 1.0, denominator))
    is_clamped = (ratio < 0.0) & clamp
    return StockRatio(mean, torch.where(is_clamped, 0.0, ratio), is_clamped)
