"""Eigenvalues, also where a card fails to compute them."""

import numpy as np
import pytest
import torch

from monosoup_cli.spectral.eigen import eigh, eigvalsh
from monosoup_cli.spectral.low_rank import decompose_product
from monosoup_cli.spectral.together import decompose_together
from tests.card import faults
from tests.card.state import STATE

FAILURES = [faults.NOT_CONVERGED, RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED")]

needs_emulation = pytest.mark.skipif(not STATE.cards, reason="a real card fails when it likes")


def gram_of_low_rank():
    factor = np.random.default_rng(0).standard_normal((40, 5))
    return factor @ factor.T


@needs_emulation
@pytest.mark.cuda
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_what_a_card_fails_to_decompose_the_cpu_decomposes(failure):
    matrix = gram_of_low_rank()
    with faults.failing(failure, "_linalg_eigh") as fault:
        values, vectors = eigh(torch.from_numpy(matrix).cuda())
        alone = eigvalsh(torch.from_numpy(matrix).cuda())
    assert fault.raised == 2
    assert (values.device.type, vectors.device.type) == ("cpu", "cuda")
    vectors = vectors.cpu().numpy()
    np.testing.assert_allclose((vectors * values.numpy()) @ vectors.T, matrix, atol=1e-12)
    np.testing.assert_allclose(alone, values, atol=1e-12)


@needs_emulation
@pytest.mark.cuda
def test_a_card_without_memory_says_so():
    with faults.failing(faults.OUT_OF_MEMORY, "_linalg_eigh"), pytest.raises(torch.OutOfMemoryError):
        eigh(torch.eye(3, dtype=torch.float64).cuda())


def test_the_cpu_is_not_asked_twice():
    with pytest.raises(torch.linalg.LinAlgError):
        eigh(torch.full((3, 3), torch.nan, dtype=torch.float64))


@needs_emulation
@pytest.mark.cuda
def test_the_core_of_a_product_is_left_to_the_cpu():
    left, right = torch.eye(6, 3, dtype=torch.float64), torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    with faults.failing(RuntimeError("gesvdj is not exact enough"), "_linalg_svd"):
        spectrum = decompose_product(left.cuda(), right.cuda())
    np.testing.assert_allclose(spectrum.singular_values, [3.0, 2.0, 1.0], atol=1e-15)
    assert spectrum.left.device.type == spectrum.right.device.type == "cuda"


@needs_emulation
@pytest.mark.cuda
def test_a_batch_that_a_card_fails_to_decompose_the_cpu_decomposes():
    matrices = torch.randn(7, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with faults.failing(faults.NOT_CONVERGED, "_linalg_eigh") as fault:
        numbers, values, vectors = decompose_together(matrices.cuda())
    assert (fault.raised, numbers, vectors.device.type) == (1, list(range(7)), "cuda")
    np.testing.assert_allclose(values, np.linalg.svd(matrices.numpy(), compute_uv=False), atol=1e-12)
