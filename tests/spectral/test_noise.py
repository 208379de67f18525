"""The edge of the noise: its constants by quadrature and simulation, and what it finds in noise."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.methods.monosoup import MonoSoup, edit_matrix, inspect_update, measure
from monosoup_cli.methods.splits import splits_of
from monosoup_cli.spectral.noise import edge_by_median, median_of_noise
from tests import oracle
from tests.sampling import first

SIDES = [(60, 60), (60, 90), (40, 200), (24, 1000)]
SEEDS = first(1, [range(40), range(40, 200)])


def spiked(rng, short, long, sizes, *, is_wide):
    """Noise of variance 1/long, and orthogonal directions of these sizes."""
    noise = rng.standard_normal((short, long)) / math.sqrt(long)
    left = np.linalg.qr(rng.standard_normal((short, len(sizes))))[0]
    right = np.linalg.qr(rng.standard_normal((long, len(sizes))))[0]
    matrix = noise + (left * sizes) @ right.T
    return matrix if is_wide else matrix.T


def k_of(update):
    _, layer = edit_matrix(torch.zeros(update.shape), torch.from_numpy(update), MonoSoup("noise"))
    return layer.k


def spike_seen_at(observed, beta):
    """The size of a direction whose singular value is `observed` with noise (Gavish and Donoho, 2014)."""
    rest = observed**2 - beta - 1
    return math.sqrt((rest + math.sqrt(rest**2 - 4 * beta)) / 2)


@pytest.mark.parametrize("beta", [1.0, 1 - 1e-9, 0.999, 0.75, 0.5, 0.1, 0.01, 1e-3, 1e-5])
def test_the_median_of_noise_by_quadrature(beta):
    assert median_of_noise(beta) ** 2 == pytest.approx(oracle.marchenko_pastur_median(beta), rel=1e-10)


@pytest.mark.parametrize("shape", [(600, 600), (400, 800), (200, 2000)])
def test_the_median_of_noise_by_simulation(shape):
    rng = np.random.default_rng(0)
    medians = [
        np.median(np.linalg.svd(rng.standard_normal(shape) / math.sqrt(shape[1]), compute_uv=False))
        for _ in range(4)
    ]
    assert median_of_noise(shape[0] / shape[1]) == pytest.approx(np.mean(medians), rel=2e-3)


def test_the_published_constant_of_square_matrices():
    assert edge_by_median(1000, 1000) == pytest.approx(2.858, abs=5e-4)
    assert edge_by_median(1, 10**12) == pytest.approx(math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize(("short", "long"), SIDES)
def test_pure_noise_keeps_nothing(short, long, is_wide, seeds):
    rngs = map(np.random.default_rng, seeds)
    assert {k_of(spiked(rng, short, long, [], is_wide=is_wide)) for rng in rngs} == {0}


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize(("short", "long"), SIDES)
def test_a_spike_well_above_the_edge_is_kept_and_one_well_below_dropped(short, long, is_wide, seeds):
    beta = short / long
    edge = spike_seen_at(edge_by_median(short, long) * median_of_noise(beta), beta)
    sizes = np.array([3 * edge, 2 * edge, 0.5 * edge])
    rngs = map(np.random.default_rng, seeds)
    assert {k_of(spiked(rng, short, long, sizes, is_wide=is_wide)) for rng in rngs} == {2}


@pytest.mark.parametrize("weighting", ["monosoup", "high", "low"])
def test_an_update_of_noise_is_all_weak_part(weighting):
    update = torch.from_numpy(spiked(np.random.default_rng(0), 60, 90, [], is_wide=True))
    edited, layer = edit_matrix(torch.zeros(60, 90), update, MonoSoup("noise", weighting=weighting))
    assert (layer.k, layer.rho, layer.cos_alpha, layer.energy_high) == (0, 1.0, 1.0, 0.0)
    expected = torch.zeros_like(update) if weighting == "high" else update  # λ_low is 0, or 1
    torch.testing.assert_close(edited, expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize(("m", "n"), [(40, 40), (40, 90), (90, 40)])
@pytest.mark.parametrize("rank", [1, 5, 19])
def test_exactly_low_rank_is_kept_whole(m, n, rank):
    rng = np.random.default_rng(rank)
    update = torch.from_numpy(rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)))
    edited, layer = edit_matrix(torch.zeros(m, n), update, MonoSoup("noise", weighting="high"))
    assert layer.k == rank
    torch.testing.assert_close(edited, update, rtol=0.0, atol=1e-13 * float(update.abs().max()))


def badly_scaled(kind, rng, m, n, rank):
    """A matrix of exactly this rank, and no rounding in it, whose directions span ten orders of magnitude."""
    left = rng.integers(-3, 4, (m, rank)).astype(float)
    if kind == "rows":  # each belongs to one direction, so that bfloat16 holds them
        left *= np.arange(m)[:, None] % rank == np.arange(rank)
    right = rng.integers(-3, 4, (rank, n)).astype(float)
    update = (left * 2.0 ** np.linspace(10, -24, rank).round()) @ right
    return update * 2.0 ** rng.integers(-3, 4, (m, 1)) if kind == "both" else update


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["rows", "directions", "both"])
@pytest.mark.parametrize(("m", "n"), [(64, 48), (40, 90), (300, 40), (20, 20), (260, 200)])
def test_exactly_low_rank_of_many_scales(m, n, kind, seed):
    update = badly_scaled(kind, np.random.default_rng(seed), m, n, 8)
    rank = np.linalg.matrix_rank(update)
    assert oracle.edit(np.zeros((m, n)), update, split="noise")[1]["k"] == rank
    assert k_of(update) == rank
    tall = torch.from_numpy(update if m >= n else update.T.copy())
    _, values = inspect_update(lambda: (tall,), max(m, n), min(m, n), MonoSoup("noise"))
    assert splits_of(values, max(m, n))["k_noise"] == rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_so_are_files_of_it(tmp_path, dtype):
    update = torch.from_numpy(badly_scaled("rows", np.random.default_rng(0), 256, 192, 8))
    assert torch.equal(update.to(dtype).double(), update)
    for name, weights in (("base", torch.zeros_like(update)), ("ft", update)):
        save_file({"layers.0.weight": weights.to(dtype)}, tmp_path / f"{name}.safetensors")
    inputs = (tmp_path / "base.safetensors", tmp_path / "ft.safetensors")
    report = monosoup_cli.edit(*inputs, tmp_path / "out", split="noise", weighting="high")
    assert report["layers"][0]["k"] == 8
    assert monosoup_cli.inspect_spectrum(*inputs)["layers"][0]["k_noise"] == 8
    edited = load_file(tmp_path / "out" / "model.safetensors")["layers.0.weight"]
    torch.testing.assert_close(edited.double(), update, rtol=0.0, atol=1e-13 * float(update.abs().max()))


def test_one_direction_says_nothing_about_noise():
    """Of a single singular value the median is itself."""
    assert measure(torch.tensor([2.0], dtype=torch.float64), 50, MonoSoup("noise")).k == 0


@pytest.mark.parametrize("others", [{"energy": 0.5}, {"rank": 3}, {"rank_fraction": 0.5}])
def test_split_excludes_the_other_rules(others):
    from monosoup_cli.errors import UsageError

    with pytest.raises(UsageError, match="--split and --"):
        MonoSoup("noise", **others)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["noise", "spiked", "deficient"])
@pytest.mark.parametrize("shape", [(30, 30), (30, 80), (80, 30), (5, 200), (2, 3)])
def test_k_and_weights_of_every_rule_by_an_independent_route(shape, kind, seed):
    rng = np.random.default_rng(seed)
    strength, rank = 10 ** rng.uniform(-1, 2), max(1, min(shape) // 3)
    low = strength * rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    noise = rng.standard_normal(shape) * rng.exponential(size=shape)
    update = {"noise": noise, "spiked": low + noise, "deficient": low}[kind]
    for split in ("entropy", "energy-entropy", "noise"):
        for weighting in ("monosoup", "high"):
            expected, measures = oracle.edit(np.zeros(shape), update, split=split, weighting=weighting)
            edited, layer = edit_matrix(
                torch.zeros(shape), torch.from_numpy(update), MonoSoup(split, weighting=weighting)
            )
            oracle.assert_measures_equal(vars(layer), measures)
            np.testing.assert_allclose(edited, expected, atol=1e-10 * np.abs(update).max())
