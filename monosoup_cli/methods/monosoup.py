"""MonoSoup: split the spectrum of a fine-tuning update, weigh the two parts, add them back.

Abdollahpoorrostam, Dimitriadis, Hazimeh, Frossard, "Model soups need only one ingredient", 2026
(arXiv 2602.09689), called "the paper" here. docs/method.md derives what is computed, and says
where the paper is silent and the choice is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from monosoup_cli.errors import UsageError
from monosoup_cli.spectral.low_rank import decompose_product
from monosoup_cli.spectral.spectrum import Blocks, Spectrum, decompose, singular_values

__all__ = [
    "LayerSpectrum",
    "MonoSoup",
    "Truncated",
    "Weighting",
    "edit_matrix",
    "edit_product",
    "edit_update",
    "inspect_product",
    "inspect_update",
    "measure",
    "rank_for",
    "truncate_update",
]

Weighting = Literal["monosoup", "spectral", "alignment", "uniform", "high", "low"]

ROUNDING = 1e-9
"""Relative: an effective rank or an energy this close to its bound counts as being there."""

MAX_QUANTILES = 64


@dataclass(frozen=True)
class MonoSoup:
    """How a spectrum is split and weighed; the default is the paper's rule without parameters.

    At most one of `energy` (R of Eq. 2, in (0, 1]), `rank` (>= 1) and `rank_fraction` (in (0, 1])
    replaces the entropy-based split of Eq. 3-4. `weighting` other than "monosoup" (Eq. 8) selects
    one of the paper's ablations (Fig. 5) or truncations (Fig. 3). Raises UsageError.
    """

    energy: float | None = None
    rank: int | None = None
    rank_fraction: float | None = None
    weighting: Weighting = "monosoup"

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "rank", "rank_fraction") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other: each of them sets k")
        for name in ("energy", "rank_fraction"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share <= 1.0:
                raise UsageError(f"{name} is out of range", expected="0 < value <= 1", found=share)
        if self.rank is not None and self.rank < 1:
            raise UsageError("rank is out of range", expected="at least 1", found=self.rank)
        if self.weighting not in get_args(Weighting):
            raise UsageError(
                "unknown weighting", expected=", ".join(get_args(Weighting)), found=self.weighting
            )


@dataclass(frozen=True)
class LayerSpectrum:
    """What MonoSoup read off one update's spectrum, and the coefficients it chose.

    `rank` is min(m, n), `update_norm` is ‖Δ‖_F; `spectrum` holds up to 64 quantiles of σ/σ_1,
    largest first.
    """

    rank: int
    effective_rank: float
    k: int
    energy_high: float
    rho: float
    cos_alpha: float
    lambda_high: float
    lambda_low: float
    equivalent_alpha: float
    anisotropy: float
    sigma_max: float
    update_norm: float
    spectrum: tuple[float, ...]


def effective_rank(singular_values: torch.Tensor) -> float:
    """The exponential of the entropy of σ/Σσ (Eq. 3-4 of the paper; Roy & Vetterli, 2007)."""
    share = singular_values / singular_values.sum()
    return math.exp(-float(torch.special.xlogy(share, share).sum()))


def split_at(singular_values: torch.Tensor, method: MonoSoup) -> int:
    """k, the number of singular values on the high side: 1 <= k <= r (Eq. 2, Eq. 3, or Fig. 6).

    `singular_values`: (r,) float64, largest first, not all zero.
    """
    r = len(singular_values)
    if method.rank is not None:
        return min(method.rank, r)
    if method.rank_fraction is not None:
        return max(1, math.ceil(method.rank_fraction * r * (1.0 - ROUNDING)))
    if method.energy is None:
        return min(math.ceil(effective_rank(singular_values) / (1.0 + ROUNDING)), r)
    if method.energy == 1.0:
        return r
    energy = singular_values.square().cumsum(0)
    return 1 + int((energy < method.energy * (1.0 - ROUNDING) * energy[-1]).sum())


def coefficients(rho: float, cos_alpha: float, weighting: Weighting) -> tuple[float, float]:
    """λ_high and λ_low from the decay ratio and the alignment (Eq. 8 and the ablations of Fig. 5)."""
    lambda_low = {
        "monosoup": rho + (1.0 - rho) * cos_alpha,
        "spectral": rho,
        "alignment": cos_alpha,
        "uniform": 0.5,
        "high": 0.0,
        "low": 1.0,
    }[weighting]
    return 1.0 - lambda_low, lambda_low


def measure(singular_values: torch.Tensor, method: MonoSoup) -> LayerSpectrum:
    """The split, the coefficients and the summary of one spectrum.

    `singular_values`: (r,) float64 on the CPU, largest first, not all zero. The
    arithmetic runs on σ/σ_1, so that neither tiny nor huge updates under- or overflow.
    """
    sigma_max = float(singular_values[0])
    ratios = singular_values / sigma_max
    k = split_at(ratios, method)
    squares = ratios.square()
    # each sum on its own, smallest first: 1 - P_k would cancel where the tail is small
    high, low = float(squares[:k].flip(0).sum()), float(squares[k:].flip(0).sum())
    energy_high, energy_low = high / (high + low), low / (high + low)
    rho = 0.0 if k == len(ratios) else float(squares[k])
    cos_alpha = math.sqrt(energy_low)
    lambda_high, lambda_low = coefficients(rho, cos_alpha, method.weighting)
    return LayerSpectrum(
        rank=len(ratios),
        effective_rank=effective_rank(ratios),
        k=k,
        energy_high=energy_high,
        rho=rho,
        cos_alpha=cos_alpha,
        lambda_high=lambda_high,
        lambda_low=lambda_low,
        equivalent_alpha=lambda_high * energy_high + lambda_low * energy_low,
        anisotropy=abs(lambda_high - lambda_low) * math.sqrt(energy_high * energy_low),
        sigma_max=sigma_max,
        update_norm=sigma_max * math.sqrt(high + low),
        spectrum=quantiles(ratios),
    )


def quantiles(ratios: torch.Tensor) -> tuple[float, ...]:
    """Up to 64 evenly spaced members of σ/σ_1, the first and the last among them."""
    count = min(len(ratios), MAX_QUANTILES)
    return tuple(ratios[torch.linspace(0, len(ratios) - 1, count).round().long()].tolist())


def reweigh(
    spectrum: Spectrum, layer: LayerSpectrum, *, is_only: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map Δ → λ_high Δ_high + λ_low Δ_low (Eq. 5 of the paper), for any block of rows of Δ.

    Blocks are (any number of rows, side) float64. Only the smaller of the k high and the r − k
    low directions is multiplied out; the other part is what remains. A block is overwritten.
    `is_only`: no other split needs the other directions, and they go from memory.
    """
    k, r = layer.k, layer.rank
    if k <= r - k:
        directions, common, extra = spectrum.vectors[:, :k], layer.lambda_low, layer.lambda_high
    else:
        directions, common, extra = spectrum.vectors[:, k:], layer.lambda_high, layer.lambda_low
    if is_only:
        directions = directions.clone()

    def apply(block: torch.Tensor) -> torch.Tensor:
        projected = block @ directions
        return block.mul_(common).addmm_(projected, directions.T, alpha=extra - common)

    return apply


def edit_update(
    updates: Blocks, side: int, methods: Sequence[MonoSoup]
) -> list[tuple[LayerSpectrum, Callable[[torch.Tensor], torch.Tensor]]] | None:
    """What MonoSoup measures on an update seen by blocks, and the map that edits its blocks; for
    each way of splitting and weighing it, from one decomposition.

    `updates` yields Δ, or Δᵀ where that is the taller, as blocks (any number of rows, side) with
    side = min(m, n). None for an update of zeros. Raises FloatingPointError on NaN or Inf.
    """
    # where the low part is all that is left of the update, its directions must be right to
    # float64 relative to themselves, not to σ_1
    has_low = any(method.weighting == "low" for method in methods)
    spectrum = decompose(updates, side, 1e-2) if has_low else decompose(updates, side)
    if not _has_moved(spectrum.singular_values):
        return None
    layers = [measure(spectrum.singular_values, method) for method in methods]
    return [(layer, reweigh(spectrum, layer, is_only=len(layers) == 1)) for layer in layers]


def edit_product(
    left: torch.Tensor, right: torch.Tensor, methods: Sequence[MonoSoup]
) -> list[tuple[LayerSpectrum, tuple[torch.Tensor, torch.Tensor]]] | None:
    """`edit_update` for an update left @ right of low rank: what is measured, and the factors of the edited
    update, each with half of its singular values.

    `left` (m, r), `right` (r, n): float64; the factors that come back are (m, s) and (s, n) with
    s = min(m, n, r). Nothing of size m × n is made. None and errors as there.
    """
    spectrum = decompose_product(left, right)
    if not _has_moved(spectrum.singular_values):
        return None
    values = spectrum.singular_values[: spectrum.left.shape[1]]
    edits = []
    for method in methods:
        layer = measure(spectrum.singular_values, method)
        weighed = values * layer.lambda_low
        weighed[: layer.k] = values[: layer.k] * layer.lambda_high
        half = weighed.clamp(min=0.0).sqrt().to(left)
        edits.append((layer, (spectrum.left * half, half[:, None] * spectrum.right)))
    return edits


@dataclass(frozen=True)
class Truncated:
    """The best approximation of low rank of an edited update, left (rows, rank) @ right (rank, side).

    `error`: ‖edited − left @ right‖_F / ‖edited‖_F, 0 for an edited update of zeros.
    """

    layer: LayerSpectrum
    left: torch.Tensor
    right: torch.Tensor
    error: float


def truncate_update(
    updates: Blocks, side: int, methods: Sequence[MonoSoup], rank: int
) -> list[Truncated] | None:
    """`edit_update` for an adapter: the largest `rank` parts of each edited update (Eckart and Young, 1936),
    from the decomposition that the edit itself takes, and one more pass. Arguments, None and errors as
    there."""
    spectrum = decompose(updates, side)
    values = spectrum.singular_values
    if not _has_moved(values):
        return None
    layers, chosen, weighed = [measure(values, method) for method in methods], [], []
    for layer in layers:
        weights = torch.full_like(values, layer.lambda_low)
        weights[: layer.k] = layer.lambda_high
        weighed.append(weights.clamp_(min=0.0) * values)
        chosen.append(weighed[-1].argsort(descending=True, stable=True)[:rank])
    vectors = [spectrum.vectors[:, kept.to(spectrum.vectors.device)] for kept in chosen]
    parts: list[list[torch.Tensor]] = [[] for _ in layers]
    for block in updates():
        for part, columns in zip(parts, vectors, strict=True):
            part.append(block @ columns)
    found = []
    for layer, part, kept, edited, columns in zip(layers, parts, chosen, weighed, vectors, strict=True):
        ratios = edited / values[0]
        # Δ v is σ u: half of the weighed σ goes to each side
        share = torch.where(values[kept] > 0.0, (edited[kept].sqrt() / values[kept]), 0.0).to(columns)
        half = edited[kept].sqrt().to(columns)
        lost, total = ratios.square().clone(), float(ratios.square().sum())
        lost[kept] = 0.0
        error = math.sqrt(float(lost.sum()) / total) if total else 0.0
        found.append(Truncated(layer, torch.cat(part) * share, half[:, None] * columns.T, error))
    return found


def rank_for(updates: Blocks, side: int, methods: Sequence[MonoSoup], energy: float) -> int:
    """The smallest rank whose best approximation has that share of ‖edited‖_F², in (0, 1], of every method's
    edited update; 0 for an update of zeros. Other arguments and errors as of `edit_update`."""
    values, ranks = singular_values(updates, side), [0]
    for method in methods if _has_moved(values) else ():
        layer = measure(values, method)
        edited = (values / values[0]) * layer.lambda_low
        edited[: layer.k] = values[: layer.k] / values[0] * layer.lambda_high
        held = edited.sort(descending=True).values.square().cumsum(0)
        ranks.append(min(1 + int((held < energy * (1.0 - ROUNDING) * held[-1]).sum()), len(values)))
    return max(ranks)


def inspect_product(
    left: torch.Tensor, right: torch.Tensor, method: MonoSoup
) -> tuple[LayerSpectrum, torch.Tensor] | None:
    """`inspect_update` for an update left @ right of low rank."""
    values = decompose_product(left, right).singular_values
    return (measure(values, method), values) if _has_moved(values) else None


def inspect_update(updates: Blocks, side: int, method: MonoSoup) -> tuple[LayerSpectrum, torch.Tensor] | None:
    """What `edit_update` measures, in half of its time or less, and the singular values: (side,) float64
    on the CPU. Arguments, None and errors as there."""
    values = singular_values(updates, side)
    return (measure(values, method), values) if _has_moved(values) else None


def _has_moved(singular_values: torch.Tensor) -> bool:
    if not math.isfinite(singular_values.sum()):
        raise FloatingPointError("the singular values of the update overflow float64")
    return float(singular_values[0]) > 0.0


def edit_matrix(
    base: torch.Tensor, finetuned: torch.Tensor, method: MonoSoup | None = None
) -> tuple[torch.Tensor, LayerSpectrum | None]:
    """MonoSoup on one matrix in memory: the edited weights in float64, and what was measured.

    `base`, `finetuned`: (m, n), any floating dtypes, on one device. Where the two are equal the
    fine-tuned weights come back, and None. Raises FloatingPointError on NaN or Inf.

    >>> base, finetuned = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    >>> edited, layer = edit_matrix(base, finetuned)
    >>> layer.k, layer.lambda_high  # equal singular values: nothing to reweigh
    (2, 1.0)
    """
    base = base.double()
    update = finetuned.to(torch.float64, copy=True).sub_(base)
    is_wide = update.shape[0] < update.shape[1]
    tall = update.T if is_wide else update
    edits = edit_update(lambda: (tall,), tall.shape[1], [method or MonoSoup()])
    if edits is None:
        return finetuned.double(), None
    ((layer, apply),) = edits
    edited = apply(tall)
    return (edited.T if is_wide else edited).add_(base), layer
