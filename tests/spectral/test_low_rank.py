"""The spectrum of a product from its factors, against NumPy's decomposition of the product."""

import numpy as np
import pytest
import torch

from monosoup_cli.spectral.low_rank import decompose_product

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SHAPES = [(60, 40, 8), (40, 60, 8), (50, 50, 1), (12, 30, 20), (30, 12, 20), (8, 8, 8)]


def factors(rows, columns, rank, device="cpu"):
    rng = np.random.default_rng(rank)
    made = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
    return made, [torch.from_numpy(factor).to(device) for factor in made]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_values_and_directions(rows, columns, rank, device):
    (left, right), tensors = factors(rows, columns, rank, device)
    spectrum = decompose_product(*tensors)
    sigma = np.linalg.svd(left @ right, compute_uv=False)
    found = spectrum.singular_values.numpy()
    assert found.shape == sigma.shape
    assert np.abs(found - sigma).max() <= 1e-13 * sigma[0]
    count = min(rank, rows, columns)
    assert (found[count:] == 0.0).all()
    u, vt = spectrum.left.cpu().numpy(), spectrum.right.cpu().numpy()
    assert (u.shape, vt.shape) == ((rows, count), (count, columns))
    assert np.abs(u.T @ u - np.eye(count)).max() <= 1e-13
    assert np.abs(vt @ vt.T - np.eye(count)).max() <= 1e-13
    assert np.abs((u * found[:count]) @ vt - left @ right).max() <= 1e-13 * sigma[0]


@pytest.mark.parametrize(("one", "other"), [(1e-170, 1e-170), (1e170, 1e130), (1e-300, 1.0), (1e200, 1e-200)])
def test_factors_of_any_size(one, other):
    (left, right), tensors = factors(20, 30, 4)
    found = decompose_product(tensors[0] * one, tensors[1] * other).singular_values.numpy()
    sigma = np.linalg.svd(left @ right, compute_uv=False)
    expected = sigma * one * other  # 0 where float64 has nothing so small
    assert np.abs(found - expected).max() <= 1e-12 * expected[0]


def test_factors_that_depend_on_each_other():
    """A rank below that of the factors: half of the columns stand twice."""
    _, (left, right) = factors(30, 20, 4)
    spectrum = decompose_product(torch.cat([left, left], 1), torch.cat([right, right]))
    sigma = np.linalg.svd(2 * (left @ right).numpy(), compute_uv=False)
    assert np.abs(spectrum.singular_values.numpy() - sigma).max() <= 1e-13 * sigma[0]


def test_zeros():
    spectrum = decompose_product(torch.zeros(5, 2).double(), torch.ones(2, 7).double())
    assert spectrum.singular_values.tolist() == [0.0] * 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_refused(bad, which):
    _, tensors = factors(6, 5, 2)
    tensors[which][1, 1] = bad
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        decompose_product(*tensors)
