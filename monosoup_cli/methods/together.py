"""MonoSoup over many small matrices of one shape at once. The arithmetic is that of one matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from monosoup_cli.methods.monosoup import LayerSpectrum, MonoSoup, measure_all, relative_update, resolved_for
from monosoup_cli.tensors.method import Together

if TYPE_CHECKING:
    import torch

__all__ = ["edit_together"]


def edit_together(
    base: torch.Tensor,
    update: torch.Tensor,
    splits: Sequence[MonoSoup],
    steps: Sequence[float],
    min_update: float,
) -> Together | None:
    """Edit the matrices whose update has full rank, and is neither zero nor smaller than wanted.

    Args:
        base: (matrices, rows, columns) float64.
        update: The same.
        splits: How the spectra are split and weighted.
        steps: How far to go from the base to each edited update.
        min_update: The smallest update that is edited, relative to the base.

    Returns:
        The edits for every split and, within it, every step.
    """
    import torch

    from monosoup_cli.spectral.together import decompose_together

    is_wide = update.shape[1] < update.shape[2]
    if is_wide:
        base, update = base.mT, update.mT
    numbers, values, vectors = decompose_together(update, resolved_for(splits))
    norms = torch.linalg.vector_norm(base, dim=(1, 2)).tolist()
    spectra = [measure_all(values, update.shape[1], split) for split in splits] if numbers else []
    chosen = [
        place
        for place, number in enumerate(numbers)
        if not norms[number] or spectra[0][place].update_norm / norms[number] >= min_update
    ]
    if not chosen:
        return None
    if len(chosen) < len(base):
        numbers, vectors = [numbers[place] for place in chosen], vectors[torch.tensor(chosen)]
        base, update = base[torch.tensor(numbers)], update[torch.tensor(numbers)]
        spectra = [[of_split[place] for place in chosen] for of_split in spectra]
    measures = [
        [
            {**vars(one), "relative_update": relative_update(one, norms[number])}
            for one in of_splits
            for _ in steps
        ]
        for number, *of_splits in zip(numbers, *spectra, strict=True)
    ]

    def results() -> Iterator[torch.Tensor]:
        for of_split in spectra:
            edited = _reweigh(update, vectors, of_split)
            for step in steps:
                result = torch.add(base, edited, alpha=step)
                yield result.mT if is_wide else result

    return Together(numbers, measures, results())


def _reweigh(updates: torch.Tensor, vectors: torch.Tensor, spectra: Sequence[LayerSpectrum]) -> torch.Tensor:
    """`monosoup.reweigh` for every matrix: those with the same k in one product."""
    import torch

    same_k = defaultdict(list)
    for number, spectrum in enumerate(spectra):
        same_k[spectrum.k].append(number)
    edited = torch.empty_like(updates)
    for k, numbers in same_k.items():
        layers = [spectra[number] for number in numbers]
        is_high = k <= layers[0].rank - k
        high, low = (
            torch.tensor([[[getattr(layer, name)]] for layer in layers], dtype=torch.float64).to(updates)
            for name in ("lambda_high", "lambda_low")
        )
        common, extra = (low, high) if is_high else (high, low)
        index = torch.tensor(numbers)
        block = updates[index]
        directions = vectors[index, :, :k] if is_high else vectors[index, :, k:]
        projected = torch.bmm(torch.bmm(block, directions), directions.mT)
        edited[index] = (block * common).addcmul_(projected, extra - common)
    return edited
