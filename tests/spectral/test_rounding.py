"""What rounding adds to an update, against the singular values of real rounding."""

import math

import numpy as np
import pytest
import torch

from monosoup_cli.spectral.rounding import MARGIN, Rounding

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [(64, 64), (300, 1000), (4096, 128), (513, 512)]


def expected(base, finetuned, dtype, count=1):
    rounding = Rounding(torch.finfo(dtype), count)
    for rows in zip(base.split(100), finetuned.split(100), strict=True):
        rounding.add(rows[0], rows[1] - rows[0])
    return rounding.sigma(float(torch.dist(finetuned, base))) / MARGIN


def largest(update):
    return float(np.linalg.svd(update.numpy(), compute_uv=False)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_it_bounds_real_rounding_closely(dtype, shape, seed):
    exact = 0.02 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    stored = exact.to(dtype).double()
    sigma = expected(exact, stored, dtype)
    assert 0.7 * sigma < largest(stored - exact) < sigma


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_and_rows_of_large_weights_count(shape):
    exact = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact[:, :3] *= 30
    exact[-2:] *= 20
    stored = exact.bfloat16().double()
    sigma = expected(exact, stored, torch.bfloat16)
    assert 0.5 * sigma < largest(stored - exact) < sigma


def test_the_mean_of_several_has_less():
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(256, 256, dtype=torch.float64, generator=generator)
    exact = [base + 0.001 * torch.randn(256, 256, dtype=torch.float64, generator=generator) for _ in range(4)]
    error = sum(each.bfloat16().double() - each for each in exact) / 4
    sigma = expected(base, sum(exact) / 4, torch.bfloat16, 4)
    assert 0.7 * sigma < largest(error) < sigma


def test_rows_that_did_not_move_were_not_rounded():
    base = torch.randn(400, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    finetuned = base.clone()
    finetuned[:10] += 0.1
    assert expected(base, finetuned, torch.bfloat16) < 0.5 * expected(base, base + 0.1, torch.bfloat16)
    assert expected(base, base, torch.bfloat16) == 0.0


def test_denormal_numbers_have_the_last_place_of_the_smallest_normal_one():
    tiny = torch.full((8, 8), 2.0**-24, dtype=torch.float64)
    normal = torch.full((8, 8), torch.finfo(torch.float16).smallest_normal, dtype=torch.float64)
    zero = torch.zeros(8, 8, dtype=torch.float64)
    of_normal = expected(zero, normal, torch.float16)
    assert expected(zero, tiny, torch.float16) == of_normal
    assert math.isclose(of_normal, 2 * math.sqrt(8 / 12) * 2.0**-24)


def test_nothing_seen_is_nothing_expected():
    assert Rounding(torch.finfo(torch.bfloat16)).sigma(1.0) == 0.0


@pytest.mark.parametrize("count", [2, 8, 16])
def test_updates_below_the_last_place_are_rounded_alike(count):
    """All round the same base in the same way: their mean has as much of it as one."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(256, 256, dtype=torch.float64, generator=generator)
    updates = [1e-6 * torch.randn(256, 256, dtype=torch.float64, generator=generator) for _ in range(count)]
    mean = sum((base + update).bfloat16().double() for update in updates) / count
    sigma = expected(base, mean, torch.bfloat16, count)
    assert 0.7 * sigma < largest(mean - base) < sigma


@pytest.mark.parametrize("size", [1e-200, 1e-140, 1e160, 1e300])
def test_weights_of_any_size(size):
    exact = torch.randn(64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(exact)
    finfo = torch.finfo(torch.float64)
    rounding, scaled = Rounding(finfo), Rounding(finfo)
    rounding.add(zero, exact)
    scaled.add(zero, exact * 2.0 ** math.floor(math.log2(size)))
    assert scaled.sigma(1.0) == rounding.sigma(1.0) * 2.0 ** math.floor(math.log2(size))
