"""The identities of MonoSoup (docs/method.md, section 7) on random matrices, and its options' limits."""

import doctest
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from monosoup_cli.errors import UsageError
from monosoup_cli.methods import monosoup
from monosoup_cli.methods.monosoup import MonoSoup, Weighting, edit_matrix, largest_alpha, measure
from tests import oracle

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
sides = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)
methods = st.one_of(
    st.just(MonoSoup()),
    st.builds(MonoSoup, energy=st.floats(0.05, 1.0)),
    st.builds(MonoSoup, rank=st.integers(1, 30)),
    st.builds(MonoSoup, rank_fraction=st.floats(0.05, 1.0)),
    st.builds(MonoSoup, weighting=st.sampled_from(["spectral", "alignment", "uniform", "high", "low"])),
)


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


@st.composite
def updates(draw):
    """Matrices with decaying, nearly flat or random spectra, of any shape and scale."""
    m, n, rng = draw(sides), draw(sides), np.random.default_rng(draw(seeds))
    r = min(m, n)
    decay = draw(st.floats(0.3, 1.0))
    sigma = decay ** np.arange(r) * rng.uniform(0.9, 1.1, r) * 10.0 ** draw(st.integers(-8, 8))
    return orthogonal(rng, m, r) * sigma @ orthogonal(rng, n, r).T


def edited_update(update, method, device="cpu"):
    update = torch.from_numpy(np.ascontiguousarray(update)).to(device)
    edited, layer = edit_matrix(torch.zeros_like(update), update, method)
    return edited.cpu().numpy(), layer


def is_decided(update, k):
    """Whether σ_k > σ_{k+1} by enough to tell their directions apart."""
    sigma = np.linalg.svd(update, compute_uv=False)
    return k >= len(sigma) or sigma[k - 1] - sigma[k] > 1e-6 * sigma[0]


def same_split(one, other):
    names = ("rho", "cos_alpha", "lambda_high", "lambda_low", "equivalent_alpha", "anisotropy")
    return one.k == other.k and all(
        math.isclose(getattr(one, name), getattr(other, name), abs_tol=1e-9) for name in names
    )


@pytest.mark.parametrize("device", DEVICES)
@given(updates(), methods)
def test_the_oracle_agrees(device, update, method):
    edited, layer = edited_update(update, method, device)
    assume(is_decided(update, layer.k))
    options = {name: getattr(method, name) for name in ("energy", "rank", "rank_fraction", "weighting")}
    reference, measures = oracle.edit(np.zeros_like(update), update, **options)
    oracle.assert_measures_equal(vars(layer), measures)
    assert np.abs(edited - reference).max() <= 1e-9 * np.abs(update).max()


@given(updates(), methods, st.floats(1e-150, 1e150))
def test_scaling_the_update_scales_the_edit(update, method, factor):
    update = update / np.abs(update).max()
    edited, layer = edited_update(update, method)
    assume(is_decided(update, layer.k))
    scaled, scaled_layer = edited_update(factor * update, method)
    assert same_split(layer, scaled_layer)
    np.testing.assert_allclose(scaled / factor, edited, atol=1e-9)


@given(updates(), methods)
def test_transposing_the_update_transposes_the_edit(update, method):
    edited, layer = edited_update(update, method)
    assume(is_decided(update, layer.k))
    transposed, transposed_layer = edited_update(update.T, method)
    assert same_split(layer, transposed_layer)
    np.testing.assert_allclose(transposed.T, edited, atol=1e-9 * np.abs(update).max())


@given(updates(), methods, seeds)
def test_rotating_the_update_rotates_the_edit(update, method, seed):
    rng = np.random.default_rng(seed)
    left, right = (orthogonal(rng, size, size) for size in update.shape)
    edited, layer = edited_update(update, method)
    assume(is_decided(update, layer.k))
    rotated, rotated_layer = edited_update(left @ update @ right, method)
    assume(rotated_layer.k == layer.k)  # an effective rank at an integer may round either way
    assert same_split(layer, rotated_layer)
    np.testing.assert_allclose(rotated, left @ edited @ right, atol=1e-9 * np.abs(update).max())


@given(sides, sides, seeds, st.floats(1e-8, 1e8))
def test_equal_singular_values_are_left_alone(m, n, seed, scale):
    rng, r = np.random.default_rng(seed), min(m, n)
    update = scale * orthogonal(rng, m, r) @ orthogonal(rng, n, r).T
    edited, layer = edited_update(update, MonoSoup())
    assert (layer.k, layer.rho, layer.cos_alpha, layer.lambda_high) == (r, 0.0, 0.0, 1.0)
    np.testing.assert_allclose(edited, update, atol=1e-12 * scale)


@given(sides, sides, seeds)
def test_rank_one_is_left_alone(m, n, seed):
    rng = np.random.default_rng(seed)
    update = np.outer(rng.standard_normal(m), rng.standard_normal(n))
    edited, layer = edited_update(update, MonoSoup())
    assert layer.k == 1
    assert layer.lambda_high == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(edited, update, atol=1e-12 * np.abs(update).max())


@given(updates(), st.floats(0.05, 0.999))
def test_theorem_1(update, share):
    """1 − R − σ_k²/‖Δ‖² < cos²α ≤ 1 − R for k > 1 (Appendix C of the paper), to 1e-9."""
    _, layer = edited_update(update, MonoSoup(energy=share))
    assume(layer.k > 1)
    sigma = np.linalg.svd(update, compute_uv=False)
    lower = 1 - share - sigma[layer.k - 1] ** 2 / (sigma**2).sum()
    assert lower - 1e-9 < layer.cos_alpha**2 <= 1 - share + 1e-9


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("energy", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_no_spectrum_of_many_directions_keeps_more_than_the_largest_alpha(weighting, energy):
    """Of spectra with many directions, from flat to steep; and some come close to it."""
    bound, method = largest_alpha(energy, weighting), MonoSoup(energy=energy, weighting=weighting)
    directions = torch.arange(4000, dtype=torch.float64)
    one_strong = torch.full((4000,), math.sqrt((1 - energy) / 3999), dtype=torch.float64)
    one_strong[0] = math.sqrt(energy)
    spectra = [one_strong, *((-slope * directions / 4000).exp() for slope in (0, 1, 3, 10, 30))]
    kept = []
    for sigma in spectra:
        edited = measure(sigma / sigma[0], 4000, method).edited(sigma)
        kept.append(float((edited * sigma).sum() / sigma.square().sum()))
    assert bound - 0.01 < max(kept) < bound + 0.01


def test_few_directions_may_keep_more_than_the_largest_alpha_of_many():
    """The second of two takes the strong part from a share of 0.79 to all of the update."""
    sigma = torch.tensor([math.sqrt(0.79), math.sqrt(0.21)], dtype=torch.float64)
    layer = measure(sigma, 2, MonoSoup(energy=0.8))
    assert (layer.k, layer.equivalent_alpha) == (2, 1.0)
    assert largest_alpha(0.8, "monosoup") < 0.6


def test_a_nearly_flat_spectrum_may_lose_its_high_part():
    """What must not be taken for granted: λ_high > λ_low."""
    within_a_tenth = torch.linspace(1.1, 0.9, 1024, dtype=torch.float64)
    layer = measure(within_a_tenth, len(within_a_tenth), MonoSoup())
    assert layer.k < 1024
    assert layer.lambda_high == pytest.approx(0.3, abs=0.05)
    assert measure(within_a_tenth, len(within_a_tenth), MonoSoup(energy=0.8)).lambda_high < 0.2


def test_no_update_is_no_edit():
    weights = torch.randn(5, 3)
    edited, layer = edit_matrix(weights, weights.clone())
    assert layer is None
    assert torch.equal(edited, weights.double())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_matrices_are_refused(value):
    finetuned = torch.ones(4, 3)
    finetuned[2, 1] = value
    with pytest.raises(FloatingPointError):
        edit_matrix(torch.zeros(4, 3), finetuned)


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.0},
        {"energy": 1.01},
        {"energy": math.nan},
        {"rank": 0},
        {"rank_fraction": 0.0},
        {"rank_fraction": 2.0},
        {"energy": 0.5, "rank": 2},
        {"weighting": "best"},
    ],
    ids=str,
)
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        MonoSoup(**options)


def test_the_spectrum_is_summarised_by_its_quantiles():
    update = torch.diag(torch.arange(200.0, 0.0, -1.0))
    _, layer = edit_matrix(torch.zeros(200, 200), update)
    assert len(layer.spectrum) == 64
    assert layer.spectrum[0] == 1.0
    assert layer.spectrum[-1] == pytest.approx(1 / 200)
    assert list(layer.spectrum) == sorted(layer.spectrum, reverse=True)


def test_the_example_in_the_docstring():
    assert doctest.testmod(monosoup).failed == 0
    assert doctest.testmod(monosoup).attempted > 0
