"""CKA is that of the definition, whatever the form and the pieces in which matrices are read."""

import numpy as np
import pytest
import torch

from monosoup_cli.spectral import cka
from tests.features import cka_by_definition, random_features

WIDE, TALL = (40, 90), (200, 30)


class Matrix:
    """A matrix in memory that notes the pieces that are read of it."""

    def __init__(self, values):
        self.values, self.shape, self.read_elements, self.pieces = values, values.shape, 0, 0

    def read(self, rows, columns):
        self.read_elements += len(rows) * len(columns)
        self.pieces += 1
        part = self.values[rows.start : rows.stop, columns.start : columns.stop]
        return torch.from_numpy(part.astype(np.float64))


def alignment(*values, limit=cka.HELD_BYTES):
    matrices = [Matrix(one) for one in values]
    pairs = {(one, other) for other in range(len(values)) for one in range(other + 1)}
    return cka.alignments(matrices, pairs, limit), matrices


def orthogonal(width, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


@pytest.mark.parametrize("shape", [WIDE, TALL, (50, 50)])
@pytest.mark.parametrize("mean", [0, 3, 1e6])
def test_it_is_that_of_the_definition(shape, mean):
    features = [random_features(shape[0], shape[1] + extra, extra, mean) for extra in (0, 3, 7)]
    found, _ = alignment(*features)
    for (one, other), value in found.items():
        assert value == pytest.approx(cka_by_definition(features[one], features[other]), rel=1e-9)
        assert 0 <= value <= 1


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_rotation_scale_and_shift_change_nothing(shape):
    features, others = random_features(*shape, 1), random_features(*shape, 2)
    moved = 1e-5 * features @ orthogonal(shape[1], 3) + 7
    found, _ = alignment(features, others, moved)
    assert found[0, 2] == pytest.approx(1, abs=1e-12)
    assert found[0, 1] == pytest.approx(found[1, 2], rel=1e-9)
    assert found[0, 1] < 0.9


def test_other_linear_maps_do():
    features = random_features(*TALL, 1)
    found, _ = alignment(features, features @ np.diag(np.arange(30.0)))
    assert found[0, 1] < 0.99


@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("products", [2, 0.3, 0.02])
def test_pieces_passes_and_tiles_change_nothing(shape, products, monkeypatch):
    """With memory for two products, or for a part of one."""
    features = [random_features(*shape, seed) for seed in range(4)]
    whole, matrices = alignment(*features)
    assert all(one.pieces == 1 for one in matrices)
    monkeypatch.setattr(cka, "BLOCK_BYTES", 8 * 700)
    limit = int(8 * products * min(shape) ** 2)
    in_pieces, matrices = alignment(*features, limit=limit)
    assert all(one.pieces > 4 for one in matrices)
    assert in_pieces == pytest.approx(whole, rel=1e-12)
    made = list(cka.passes([shape] * 4, whole, limit))
    assert len(made) > 1
    assert sum(one.read_elements for one in matrices) == sum(
        shape[0] * len(columns) for one in made for _, columns in one.strips
    )


@pytest.mark.parametrize("limit", [8 * 300, 8 * 60])
@pytest.mark.parametrize("samples", [100, 9])
def test_a_pass_holds_no_more_than_it_may(samples, limit):
    shapes = [(samples, 10 + number) for number in range(6)]
    pairs = {(one, other) for one in range(3) for other in range(3, 6)}
    made = list(cka.passes(shapes, pairs, limit))
    assert len(made) > 1
    for one in made:
        tiles = 8 * len(one.tile[0]) * len(one.tile[1])
        held = sum(8 * len(first[1]) * len(second[1]) for first, second in one.products)
        assert held + tiles * (len({first for first, _ in one.pairs}) + 1) <= limit
    computed = {(first[0], second[0]) for one in made for first, second in one.products}
    computed |= {pair for one in made for pair in one.pairs}
    assert computed == pairs | {(place, place) for place in range(6)}


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_features_that_do_not_vary_have_none(shape):
    constant = np.full(shape, 0.1) * np.arange(shape[1])
    found, _ = alignment(random_features(*shape), constant)
    assert (found[0, 1], found[1, 1]) == (None, None)
    assert found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_numbers_whose_squares_overflow(shape):
    with pytest.raises(OverflowError):
        alignment(1e200 * random_features(*shape))


def test_every_pair_takes_the_smaller_product():
    """XᵀY of few features, and XXᵀ where there are more features than samples."""
    features = [random_features(30, width, width) for width in (2, 400, 5)]
    by_features, by_samples = cka.passes([one.shape for one in features], {(0, 1), (0, 2), (1, 2)})
    assert {(one[0], other[0]) for one, other in by_features.products} == {(0, 0), (0, 1), (0, 2), (2, 2)}
    assert set(by_samples.pairs) == {(1, 1), (1, 2)}
    found, _ = alignment(*features)
    for one, other in found:
        assert found[one, other] == pytest.approx(cka_by_definition(features[one], features[other]), rel=1e-9)
