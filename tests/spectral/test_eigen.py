"""Eigenvalues, also where a card fails to compute them."""

import numpy as np
import pytest
import torch

from monosoup_cli.spectral.eigen import eigh, eigvalsh
from monosoup_cli.spectral.low_rank import decompose_product
from tests.card.state import STATE

aten = torch.ops.aten
FAILURES = [
    torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED"),
]


@pytest.fixture
def failures():
    """What the emulated cards' operators raise, once."""
    if not STATE.cards:
        pytest.skip("a real card does not fail when it is told to")
    yield STATE.failures
    STATE.failures.clear()


def gram_of_low_rank():
    factor = np.random.default_rng(0).standard_normal((40, 5))
    return factor @ factor.T


@pytest.mark.cuda
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_what_a_card_fails_to_decompose_the_cpu_decomposes(failures, failure):
    matrix = gram_of_low_rank()
    failures[aten._linalg_eigh.default] = failure
    values, vectors = eigh(torch.from_numpy(matrix).cuda())
    assert not failures
    assert (values.device.type, vectors.device.type) == ("cpu", "cuda")
    vectors = vectors.cpu().numpy()
    np.testing.assert_allclose((vectors * values.numpy()) @ vectors.T, matrix, atol=1e-12)
    failures[aten._linalg_eigh.default] = failure
    np.testing.assert_allclose(eigvalsh(torch.from_numpy(matrix).cuda()), values, atol=1e-12)
    assert not failures


@pytest.mark.cuda
def test_a_card_without_memory_says_so(failures):
    failures[aten._linalg_eigh.default] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        eigh(torch.eye(3, dtype=torch.float64).cuda())


def test_the_cpu_is_not_asked_twice():
    with pytest.raises(torch.linalg.LinAlgError):
        eigh(torch.full((3, 3), torch.nan, dtype=torch.float64))


@pytest.mark.cuda
def test_the_core_of_a_product_is_left_to_the_cpu(failures):
    failures[aten._linalg_svd.default] = RuntimeError("gesvdj is not exact enough")
    left, right = torch.eye(6, 3, dtype=torch.float64), torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    spectrum = decompose_product(left.cuda(), right.cuda())
    assert failures, "the card was asked"
    np.testing.assert_allclose(spectrum.singular_values, [3.0, 2.0, 1.0], atol=1e-15)
    assert spectrum.left.device.type == spectrum.right.device.type == "cuda"
