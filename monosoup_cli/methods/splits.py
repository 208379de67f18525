"""Where a spectrum is split: k, the number of singular values in the high part.

All functions take spectra as rows of σ/σ_1, (any number, r) float64 on the CPU, largest first. The rules
without parameters also take the effective ranks of these, and the larger side of the matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = [
    "COMPARED",
    "ROUNDING",
    "SPLITS",
    "SplitRule",
    "by_energy",
    "by_fraction",
    "effective_ranks",
    "splits_of",
]

SplitRule = Literal["entropy", "energy-entropy", "noise"]

ROUNDING = 1e-9
"""Relative: an effective rank or an energy this close to its bound counts as being there."""


def effective_ranks(ratios: torch.Tensor) -> list[float]:
    """The exponential of the entropy of σ/Σσ (Eq. 3-4 of the paper; Roy & Vetterli, 2007) of every row."""
    import torch

    share = ratios / ratios.sum(1, keepdim=True)
    return [math.exp(-entropy) for entropy in torch.special.xlogy(share, share).sum(1).tolist()]


def by_entropy(ratios: torch.Tensor, ranks: Sequence[float], long: int) -> list[int]:
    """The effective rank, rounded up (Eq. 3)."""
    return [min(math.ceil(rank / (1.0 + ROUNDING)), ratios.shape[1]) for rank in ranks]


def by_energy_entropy(ratios: torch.Tensor, ranks: Sequence[float], long: int) -> list[int]:
    """The exponential of the entropy of σ²/Σσ², rounded up."""
    return by_entropy(ratios, effective_ranks(ratios.square()), long)


def by_noise(ratios: torch.Tensor, ranks: Sequence[float], long: int) -> list[int]:
    """How many singular values exceed what noise would have (spectral/noise.py), possibly none.

    An update of exactly low rank has no noise. There all singular values count that float64 tells from zero,
    as NumPy and MATLAB count a rank.
    """
    import torch

    from monosoup_cli.spectral.noise import edge_by_median

    r = ratios.shape[1]
    medians = (ratios[:, (r - 1) // 2] + ratios[:, r // 2]) / 2.0
    edges = medians * edge_by_median(r, long)
    zero = long * torch.finfo(ratios.dtype).eps
    edges[medians <= zero] = zero
    counts: list[int] = (ratios > edges.unsqueeze(1)).sum(1).tolist()
    return counts


SPLITS: Mapping[SplitRule, Callable[[torch.Tensor, Sequence[float], int], list[int]]] = {
    "entropy": by_entropy,
    "energy-entropy": by_energy_entropy,
    "noise": by_noise,
}
"""The rules without parameters."""

COMPARED: Mapping[SplitRule, str] = {name: f"k_{name.replace('-', '_')}" for name in SPLITS}
"""What the report of an inspection calls the k of each of them."""


def splits_of(singular_values: torch.Tensor, long: int) -> dict[str, int]:
    """Return k by every rule without parameters, under the names of `COMPARED`.

    Args:
        singular_values: (r,) float64 on the CPU, largest first, not all zero.
        long: The larger side of the matrix.
    """
    ratios = (singular_values / singular_values[0]).unsqueeze(0)
    ranks = effective_ranks(ratios)
    return {COMPARED[name]: split(ratios, ranks, long)[0] for name, split in SPLITS.items()}


def by_energy(ratios: torch.Tensor, share: float) -> list[int]:
    """The smallest k whose singular values have `share` of the energy, 0 < share <= 1 (Eq. 2)."""
    if share == 1.0:
        return [ratios.shape[1]] * len(ratios)
    energy = ratios.square().cumsum(1)
    return [1 + few for few in (energy < share * (1.0 - ROUNDING) * energy[:, -1:]).sum(1).tolist()]


def by_fraction(ratios: torch.Tensor, fraction: float) -> list[int]:
    """A share of r, rounded up, at least 1 (Fig. 6)."""
    return [max(1, math.ceil(fraction * ratios.shape[1] * (1.0 - ROUNDING)))] * len(ratios)
