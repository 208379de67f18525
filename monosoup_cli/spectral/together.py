"""The decomposition of many small matrices of one shape in a few calls."""

from __future__ import annotations

import torch

from monosoup_cli.spectral.eigen import eigh
from monosoup_cli.spectral.spectrum import RESOLVED, SAFE_SQUARES

__all__ = ["decompose_together"]


def decompose_together(
    matrices: torch.Tensor, resolved: float = RESOLVED
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Decompose those of many matrices that need neither scaling nor deflation (see `spectrum`).

    Args:
        matrices: (any number, rows, side) float64, rows >= side.
        resolved: As for `decompose`.

    Returns:
        The numbers of the matrices that were decomposed; of these, the singular values, (number, side) on the
        CPU, largest first, and the right singular vectors, (number, side, side). The others are zero, not
        finite, very large or small, or of low rank.
    """
    grams = torch.bmm(matrices.mT, matrices)
    traces = grams.diagonal(dim1=1, dim2=2).sum(1)
    is_in_range = (traces > SAFE_SQUARES[0]) & (traces < SAFE_SQUARES[1])
    numbers = is_in_range.nonzero().view(-1).cpu()
    if len(numbers) < len(grams):
        grams = grams[numbers]
    try:
        squares, vectors = eigh(grams)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # which of them, shows one by one
        return [], traces.new_empty(0), grams[:0]
    is_resolved = squares[:, -1] > resolved * squares[:, 0]
    if not is_resolved.all():
        numbers, squares, vectors = numbers[is_resolved], squares[is_resolved], vectors[is_resolved]
    return numbers.tolist(), squares.sqrt(), vectors
