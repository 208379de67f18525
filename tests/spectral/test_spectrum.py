"""Singular values and directions by blocks, against NumPy's decomposition of the whole matrix."""

import numpy as np
import pytest
import torch

from monosoup_cli.spectral.spectrum import decompose, gram, singular_values

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def with_spectrum(sigma, rows=300):
    rng = np.random.default_rng(len(sigma))
    return orthogonal(rng, rows, len(sigma)) * sigma @ orthogonal(rng, len(sigma), len(sigma)).T


SPECTRA = {
    "random": np.linalg.svd(np.random.default_rng(0).standard_normal((300, 80)), compute_uv=False),
    "flat": np.ones(80),
    "low rank": np.r_[np.ones(8), np.zeros(72)],
    "low rank and noise of float32": np.r_[np.ones(8), np.full(72, 1e-7)],
    "two steps": np.r_[np.ones(4), np.full(4, 1e-6), np.full(72, 1e-13)],
    "graded over sixteen decades": 10.0 ** -np.linspace(0, 16, 80),
    "one direction": np.r_[1.0, np.zeros(79)],
    "squares that underflow": 1e-170 * np.linspace(1, 0.1, 80),
    "squares that overflow": 1e170 * np.linspace(1, 0.1, 80),
    "denormal squares": 1e-158 * np.r_[np.ones(8), np.zeros(72)],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_values_and_directions(name, rows, device):
    sigma = SPECTRA[name]
    matrix = torch.from_numpy(with_spectrum(sigma)).to(device)
    spectrum = decompose(lambda: matrix.split(rows), 80)
    found, scale = spectrum.singular_values.numpy(), sigma[0]
    reference = np.linalg.svd(matrix.cpu().numpy() / scale, compute_uv=False)
    np.testing.assert_allclose(found / scale, reference, atol=3e-12)
    assert (np.diff(found) <= 1e-12 * scale).all()
    vectors = spectrum.vectors.cpu().numpy()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(80), atol=1e-13)
    lengths = np.linalg.norm(matrix.cpu().numpy() / scale @ vectors, axis=0)
    np.testing.assert_allclose(lengths, found / scale, atol=3e-12)
    values = singular_values(lambda: matrix.split(rows), 80).numpy()
    np.testing.assert_allclose(values / scale, reference, atol=3e-12)


def test_noise_below_float64_does_not_enter_the_entropy():
    """Without deflation a thousand values of 1e-8 σ_1 would add 2e-4 to an effective rank of 8."""
    matrix = [torch.from_numpy(with_spectrum(SPECTRA["low rank"]))]
    assert decompose(lambda: matrix, 80).singular_values[8:].max() < 1e-14
    assert singular_values(lambda: matrix, 80)[8:].max() < 1e-14


def test_low_rank_of_many_scales_takes_few_passes():
    """Each pass may resolve more of a larger matrix, as the rounding of its values hides more."""
    rng = np.random.default_rng(0)
    matrix, passes = torch.zeros(600, 512, dtype=torch.float64), []
    matrix[:64] = torch.from_numpy(rng.standard_normal((64, 512)) * 10.0 ** -np.linspace(0, 6, 64)[:, None])

    def blocks():
        passes.append(None)
        return [matrix]

    values = decompose(blocks, 512).singular_values
    assert int((values > 600 * 2.2e-16 * values[0]).sum()) == 64
    assert len(passes) <= 10


@pytest.mark.parametrize("side", [1, 5, 63, 64, 65, 257, 300])
def test_gram_fills_the_upper_triangle(side):
    matrix = torch.randn(400, side, dtype=torch.float64)
    found = gram(matrix.split(128), side)
    torch.testing.assert_close(found.triu(), (matrix.T @ matrix).triu(), rtol=1e-13, atol=1e-12)


def test_zeros():
    matrix = [torch.zeros(9, 4, dtype=torch.float64)]
    assert torch.equal(singular_values(lambda: matrix, 4), torch.zeros(4, dtype=torch.float64))
    spectrum = decompose(lambda: matrix, 4)
    assert not spectrum.singular_values.any()
    assert torch.equal(spectrum.vectors, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite(value):
    matrix = torch.ones(9, 4, dtype=torch.float64)
    matrix[3, 2] = value
    for function in (decompose, singular_values):
        with pytest.raises(FloatingPointError, match="NaN or Inf"):
            function(lambda: [matrix], 4)
