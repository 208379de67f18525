"""MonoSoup: split the spectrum of a fine-tuning update, weight the two parts, add them back.

Abdollahpoorrostam, Dimitriadis, Hazimeh, Frossard, "Model soups need only one ingredient", 2026
(arXiv 2602.09689), called "the paper" here. docs/method.md derives what is computed, and says
where the paper is silent and the choice is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from monosoup_cli.errors import UsageError
from monosoup_cli.methods.splits import SPLITS, SplitRule, by_energy, by_fraction, effective_ranks
from monosoup_cli.options import check_choice
from monosoup_cli.tensors.method import Measure, Paper

if TYPE_CHECKING:
    import torch

    from monosoup_cli.sources.source import Factors
    from monosoup_cli.spectral.eigen import Solver
    from monosoup_cli.spectral.spectrum import Blocks, Spectrum

__all__ = [
    "FAR",
    "MEASURES",
    "PAPER",
    "RELATIVE_UPDATE",
    "LayerSpectrum",
    "MonoSoup",
    "Split",
    "Weighting",
    "edit_matrix",
    "edit_product",
    "edit_update",
    "inspect_product",
    "inspect_update",
    "largest_alpha",
    "measure",
    "measure_all",
    "relative_update",
    "resolved_for",
]

Weighting = Literal["monosoup", "spectral", "alignment", "uniform", "high", "low"]

MAX_QUANTILES = 64
FAR = 0.7
"""Equivalent α below which an edit goes far towards the base."""

PAPER = Paper(
    "The fine-tuned weights, edited by MonoSoup: the update of every weight matrix is split by its"
    " spectrum, the two parts are weighted by coefficients read from that spectrum, and added back to"
    " the base.",
    """
@misc{abdollahpoorrostam2026monosoup,
  title = {Model soups need only one ingredient},
  author = {Abdollahpoorrostam, Alireza and Dimitriadis, Nikolaos and Hazimeh, Adam and Frossard, Pascal},
  year = {2026},
  eprint = {2602.09689},
  archivePrefix = {arXiv}
}
""",
    updates="MonoSoup splits the update of every weight matrix by its spectrum, and weights the two parts by"
    " coefficients read from that spectrum.",
)

RELATIVE_UPDATE = Measure("relative_update", "‖Δ‖/‖W0‖", unit="‖W0‖", summary="mean")
MEASURES = (
    Measure("rank", "r", unit="directions", is_comparable=False),
    Measure("effective_rank", "effective rank", unit="directions", is_comparable=False),
    Measure("k", "k", unit="directions", is_comparable=False),
    Measure("k_ratio", "k/r", summary="mean", is_stored=False),
    Measure("energy_high", "energy kept"),
    Measure("rho", "ρ", summary="mean"),
    Measure("cos_alpha", "cos low", summary="mean"),
    Measure("lambda_high", "λ_high", summary="mean"),
    Measure("lambda_low", "λ_low", summary="mean"),
    Measure("equivalent_alpha", "equivalent α", summary="mean"),
    Measure("anisotropy", "anisotropy", summary="mean"),
    Measure("sigma_max", "σ_1", unit="weights", is_comparable=False),
    Measure("update_norm", "‖Δ‖", unit="weights", is_comparable=False),
    Measure("spectrum"),
    RELATIVE_UPDATE,
)


@dataclass(frozen=True)
class MonoSoup:
    """How a spectrum is split and weighted; the default is the paper's rule without parameters.

    At most one of `split`, `energy`, `rank` and `rank_fraction` replaces the entropy-based split of Eq. 3-4.

    Args:
        split: A rule without parameters: "entropy" (Eq. 3-4), "energy-entropy" (the same of σ²), or "noise"
            (the optimal hard threshold of Gavish and Donoho, 2014).
        energy: R of Eq. 2, in (0, 1].
        rank: k itself, at least 1.
        rank_fraction: k/r, in (0, 1].
        weighting: "monosoup" (Eq. 8), or one of the paper's ablations (Fig. 5) and truncations (Fig. 3).

    Raises:
        UsageError: A value is out of range, or two of the splits are given.
    """

    split: SplitRule = "entropy"
    energy: float | None = None
    rank: int | None = None
    rank_fraction: float | None = None
    weighting: Weighting = "monosoup"

    def __post_init__(self) -> None:
        check_choice("split", self.split, SplitRule)
        rules = [name for name in ("energy", "rank", "rank_fraction") if getattr(self, name) is not None]
        if rules and self.split != "entropy":
            rules.insert(0, "split")
        if len(rules) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in rules)
            raise UsageError(f"{flags} exclude each other: each of them sets k")
        for name in ("energy", "rank_fraction"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share <= 1.0:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is out of range", expected="0 < value <= 1", found=share)
        if self.rank is not None and self.rank < 1:
            raise UsageError("--rank is out of range", expected="at least 1", found=self.rank)
        check_choice("weighting", self.weighting, Weighting)


@dataclass(frozen=True)
class Split:
    """Where a spectrum is split, and the coefficients of the two parts (Eq. 5-8 of the paper)."""

    k: int
    energy_high: float
    rho: float
    cos_alpha: float
    lambda_high: float
    lambda_low: float
    equivalent_alpha: float
    anisotropy: float

    def edited(self, singular_values: torch.Tensor) -> torch.Tensor:
        """The singular values of the edited update, in the order of those of the update."""
        edited = singular_values * self.lambda_low
        edited[: self.k] = singular_values[: self.k] * self.lambda_high
        return edited.clamp_(min=0.0)


@dataclass(frozen=True)
class LayerSpectrum(Split):
    """What MonoSoup reads from one update's spectrum.

    `rank` is min(m, n), `update_norm` is ‖Δ‖_F; `spectrum` has up to 64 quantiles of σ/σ_1, largest first.
    """

    rank: int
    effective_rank: float
    sigma_max: float
    update_norm: float
    spectrum: tuple[float, ...]


def splits_at(ratios: torch.Tensor, ranks: Sequence[float], long: int, method: MonoSoup) -> list[int]:
    """k of every row: 1 <= k <= r, or 0 where no singular value exceeds the noise.

    Args:
        ratios: (any number, r) float64, σ/σ_1, largest first.
        ranks: Their effective ranks.
        long: The larger side of the matrices.
        method: The rule.
    """
    count, r = ratios.shape
    if method.rank is not None:
        return [min(method.rank, r)] * count
    if method.rank_fraction is not None:
        return by_fraction(ratios, method.rank_fraction)
    if method.energy is not None:
        return by_energy(ratios, method.energy)
    return SPLITS[method.split](ratios, ranks, long)


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


def largest_alpha(energy: float, weighting: Weighting) -> float:
    """The largest equivalent α of a spectrum of so many directions that its strong part has just this share.

    Given that share, only ρ depends on the spectrum. The equivalent α is linear in it, so that it is largest
    at ρ = 0 (a spectrum that falls steeply) or at ρ = 1 (a flat one). Where a few directions hold most of an
    update, the strong part has more than the share, and the equivalent α may be up to 1.
    """
    pairs = (coefficients(rho, math.sqrt(1.0 - energy), weighting) for rho in (0.0, 1.0))
    return max(high * energy + low * (1.0 - energy) for high, low in pairs)


def measure(singular_values: torch.Tensor, long: int, method: MonoSoup) -> LayerSpectrum:
    """Split one spectrum, and read the coefficients and the summary from it.

    Args:
        singular_values: (r,) float64 on the CPU, largest first, not all zero.
        long: The larger side of the matrix, max(m, n); the smaller one is r.
        method: The rule.
    """
    return measure_all(singular_values.unsqueeze(0), long, method)[0]


def measure_all(singular_values: torch.Tensor, long: int, method: MonoSoup) -> list[LayerSpectrum]:
    """`measure` for several spectra of matrices of one shape, (any number, r).

    The arithmetic runs on σ/σ_1, so that neither tiny nor huge updates under- or overflow.
    """
    largest = singular_values[:, :1]
    ratios = singular_values / largest
    ranks = effective_ranks(ratios)
    ks = splits_at(ratios, ranks, long, method)
    parts: dict[int, tuple[float, float, float]] = {}
    for k in set(ks):
        numbers = [number for number, own in enumerate(ks) if own == k]
        squares = ratios[numbers].square()
        # each sum on its own, smallest first: 1 - P_k would cancel where the tail is small
        high, low = (part.flip(1).sum(1).tolist() for part in (squares[:, :k], squares[:, k:]))
        rho = squares[:, k].tolist() if k < squares.shape[1] else [0.0] * len(numbers)
        parts |= dict(zip(numbers, zip(high, low, rho, strict=True), strict=True))
    rows = zip(largest.view(-1).tolist(), ranks, ks, quantiles(ratios), strict=True)
    return [_layer(method, ratios.shape[1], *row, *parts[number]) for number, row in enumerate(rows)]


def _layer(
    method: MonoSoup,
    rank: int,
    sigma_max: float,
    effective_rank: float,
    k: int,
    spectrum: tuple[float, ...],
    high: float,
    low: float,
    rho: float,
) -> LayerSpectrum:
    """The coefficients of a split whose parts have the energies `high` and `low`, relative to σ_1²."""
    energy_high, energy_low = high / (high + low), low / (high + low)
    cos_alpha = math.sqrt(energy_low)
    lambda_high, lambda_low = coefficients(rho, cos_alpha, method.weighting)
    return LayerSpectrum(
        rank=rank,
        effective_rank=effective_rank,
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
        spectrum=spectrum,
    )


def quantiles(ratios: torch.Tensor) -> list[tuple[float, ...]]:
    """Up to 64 evenly spaced members of σ/σ_1, the first and the last among them, of every row."""
    import torch

    count = min(ratios.shape[1], MAX_QUANTILES)
    chosen = torch.linspace(0, ratios.shape[1] - 1, count).round().long()
    return [tuple(row) for row in ratios[:, chosen].tolist()]


def reweigh(
    spectrum: Spectrum, layer: LayerSpectrum, *, is_only: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map Δ → λ_high Δ_high + λ_low Δ_low (Eq. 5 of the paper), for any block of rows of Δ.

    Blocks are (any number of rows, side) float64, and are overwritten. Only the smaller of the k high and the
    r − k low directions is multiplied out; the other part is what remains.

    Args:
        spectrum: The decomposition of Δ.
        layer: The split and its coefficients.
        is_only: Whether no other split needs the other directions, so that their memory can be freed.
    """
    k, r = layer.k, layer.rank
    if k <= r - k:
        directions, common, extra = spectrum.vectors[:, :k], layer.lambda_low, layer.lambda_high
    else:
        directions, common, extra = spectrum.vectors[:, k:], layer.lambda_high, layer.lambda_low
    if is_only:
        directions = directions.clone()

    def apply(block: torch.Tensor) -> torch.Tensor:
        # in this order no operand of a wide matrix's block is transposed, which MKL takes twice the time for
        projected = (directions.T @ block.T).T
        return block.mul_(common).addmm_(projected, directions.T, alpha=extra - common)

    return apply


def resolved_for(methods: Sequence[MonoSoup]) -> float:
    """What `decompose` has to resolve for these rules."""
    from monosoup_cli.spectral.spectrum import RESOLVED

    # where the low part is all that is left of the update, its directions must be right to
    # float64 relative to themselves, not to σ_1
    return 1e-2 if any(method.weighting == "low" for method in methods) else RESOLVED


Edits: TypeAlias = list[tuple[LayerSpectrum, Callable[["torch.Tensor"], "torch.Tensor"]]]
"""For every rule what was measured, and the function that edits a block of the update."""


def edit_update(
    updates: Blocks, long: int, side: int, methods: Sequence[MonoSoup], solve: Solver | None = None
) -> Edits | None:
    """Measure an update that is read in blocks, and return the function that edits them. Both use one
    decomposition.

    Args:
        updates: Yields Δ, or Δᵀ where that is the taller, as blocks (any number of rows, side).
        long: max(m, n).
        side: min(m, n).
        methods: The rules; each gets an entry of the result.
        solve: What decomposes Gram matrices; None for `eigh`.

    Returns:
        None for an update of zeros.

    Raises:
        FloatingPointError: The update has NaN or Inf, or its norm overflows.
    """
    from monosoup_cli.spectral.eigen import eigh
    from monosoup_cli.spectral.spectrum import decompose, has_moved

    spectrum = decompose(updates, side, resolved_for(methods), solve or eigh)
    if not has_moved(spectrum.singular_values):
        return None
    layers = [measure(spectrum.singular_values, long, method) for method in methods]
    return [(layer, reweigh(spectrum, layer, is_only=len(layers) == 1)) for layer in layers]


def edit_product(
    left: torch.Tensor, right: torch.Tensor, methods: Sequence[MonoSoup]
) -> list[tuple[LayerSpectrum, Factors]] | None:
    """`edit_update` for an update left @ right of low rank, whose edits are such products again.

    Args:
        left: (m, s) float64.
        right: (s, n) float64.
        methods: The rules; each gets an entry of the result.
    """
    from monosoup_cli.spectral.low_rank import decompose_product
    from monosoup_cli.spectral.spectrum import has_moved

    spectrum = decompose_product(left, right)
    if not has_moved(spectrum.singular_values):
        return None
    long = max(left.shape[0], right.shape[1])
    values = spectrum.singular_values[: spectrum.left.shape[1]]
    edits = []
    for method in methods:
        layer = measure(spectrum.singular_values, long, method)
        half = layer.edited(values).sqrt().to(left)
        edits.append((layer, (spectrum.left * half, half[:, None] * spectrum.right)))
    return edits


def inspect_product(
    left: torch.Tensor, right: torch.Tensor, method: MonoSoup
) -> tuple[LayerSpectrum, torch.Tensor] | None:
    """`inspect_update` for an update left @ right of low rank."""
    from monosoup_cli.spectral.low_rank import decompose_product
    from monosoup_cli.spectral.spectrum import has_moved

    values = decompose_product(left, right).singular_values
    long = max(left.shape[0], right.shape[1])
    return (measure(values, long, method), values) if has_moved(values) else None


def inspect_update(
    updates: Blocks, long: int, side: int, method: MonoSoup
) -> tuple[LayerSpectrum, torch.Tensor] | None:
    """What `edit_update` measures, in half of its time or less; with the singular values, (side,) float64 on
    the CPU. None and errors as there."""
    from monosoup_cli.spectral.spectrum import has_moved, singular_values

    values = singular_values(updates, side)
    return (measure(values, long, method), values) if has_moved(values) else None


def edit_matrix(
    base: torch.Tensor, finetuned: torch.Tensor, method: MonoSoup | None = None
) -> tuple[torch.Tensor, LayerSpectrum | None]:
    """Edit one matrix in memory.

    Args:
        base: (m, n), of any floating dtype.
        finetuned: (m, n), of any floating dtype, on the same device.
        method: The rule; None for the paper's.

    Returns:
        The edited weights in float64, and what was measured. If the inputs are equal, these are the
        fine-tuned weights and None.

    Raises:
        FloatingPointError: The update has NaN or Inf.

    >>> import torch
    >>> base, finetuned = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    >>> edited, layer = edit_matrix(base, finetuned)
    >>> layer.k, layer.lambda_high  # equal singular values: nothing to reweigh
    (2, 1.0)
    """
    import torch

    base = base.double()
    update = finetuned.to(torch.float64, copy=True).sub_(base)
    is_wide = update.shape[0] < update.shape[1]
    tall = update.T if is_wide else update
    edits = edit_update(lambda: (tall,), tall.shape[0], tall.shape[1], [method or MonoSoup()])
    if edits is None:
        return finetuned.double(), None
    ((layer, apply),) = edits
    edited = apply(tall)
    return (edited.T if is_wide else edited).add_(base), layer


def relative_update(spectrum: LayerSpectrum, base_norm: float) -> float | None:
    """‖Δ‖/‖W0‖; None where it does not exist."""
    relative = spectrum.update_norm / base_norm if base_norm else math.inf
    return relative if relative < math.inf else None
