"""Eigenvalues and eigenvectors of symmetric matrices, on their device or, where that fails, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

__all__ = ["Solver", "eigh", "eigvalsh"]

Solver: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""`eigh`, or a function that returns the same."""


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the eigenvalues of symmetric matrices, largest first, and their eigenvectors as columns.

    Args:
        matrix: (..., n, n) float64, of which only the upper triangles are read.

    Returns:
        (..., n) float64 on the CPU, and (..., n, n) float64 on the matrices' device.
    """
    values, vectors = _solve(lambda solved: torch.linalg.eigh(solved, UPLO="U"), matrix)
    return values.cpu().flip(-1), vectors.to(matrix.device).flip(-1)


def eigvalsh(matrix: torch.Tensor) -> torch.Tensor:
    """Compute the eigenvalues alone, as `eigh` does, in less than half of its time."""
    (values,) = _solve(lambda solved: (torch.linalg.eigvalsh(solved, UPLO="U"),), matrix)
    return values.cpu().flip(0)


def _solve(
    solve: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], matrix: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Solve on the matrix's device, and on the CPU where that fails: cuSOLVER does on some matrices of low
    rank."""
    try:
        return solve(matrix)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a LinAlgError, or an error of cuSOLVER that has no class of its own
        on_cpu = matrix.cpu()
        if on_cpu is matrix:
            raise
        return solve(on_cpu)
