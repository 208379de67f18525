"""How much memory of a card linear algebra takes: no more than it says."""

import gc

import pytest
import torch

from monosoup_cli.methods.monosoup import MonoSoup, edit_update, measure
from monosoup_cli.spectral import spectrum, truncation
from monosoup_cli.spectral.spectrum import decompose, singular_values
from monosoup_cli.spectral.truncation import truncate

pytestmark = pytest.mark.cuda
ROWS, SIDE, BLOCK = 512, 128, 128
ROUNDED = 10 * 512
"""Every allocation is rounded up to 512 bytes, which the small ones show."""
LOW, SWEEP = [MonoSoup(weighting="low")], [MonoSoup(energy=energy) for energy in (0.3, 0.5, 0.9)]


def matrix(decades, rows=ROWS):
    """A matrix on the card, whose singular values fall over some decades."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(rows, SIDE, dtype=torch.float64, generator=generator)
    made *= 10.0 ** -torch.linspace(0, decades, SIDE, dtype=torch.float64)
    return made.cuda()


def peak_and_rest(function):
    """The bytes that a call takes at most, and those that its result takes."""
    torch.linalg.eigh(torch.eye(2, dtype=torch.float64).cuda() @ torch.eye(2, dtype=torch.float64).cuda())
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return peak - before, after - before


@pytest.mark.parametrize("decades", [0, 16])
@pytest.mark.parametrize("share", [1e-10, 1e-2])
def test_a_decomposition_takes_as_much_however_often_it_deflates(decades, share):
    blocks = matrix(decades).split(BLOCK)
    peak, rest = peak_and_rest(lambda: decompose(lambda: blocks, SIDE, share))
    assert peak <= spectrum.held_bytes(BLOCK, SIDE)
    assert rest == 8 * SIDE**2


@pytest.mark.parametrize("decades", [0, 16])
def test_values_take_no_more(decades):
    blocks = matrix(decades).split(BLOCK)
    peak, rest = peak_and_rest(lambda: singular_values(lambda: blocks, SIDE))
    assert peak <= spectrum.held_bytes(BLOCK, SIDE)
    assert rest == 0


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_nor_do_weights_that_are_scaled_first(size):
    blocks = (matrix(16) * size).split(BLOCK)
    peak, _ = peak_and_rest(lambda: decompose(lambda: blocks, SIDE, 1e-2))
    assert peak <= spectrum.held_bytes(BLOCK, SIDE)


@pytest.mark.parametrize(("methods", "kept"), [(LOW, 0.5), (SWEEP[:1], 0.5), (SWEEP, 1.0)])
def test_an_edit_keeps_the_smaller_part_of_the_directions_or_shares_all(methods, kept):
    blocks = matrix(16).split(BLOCK)
    peak, rest = peak_and_rest(lambda: edit_update(lambda: blocks, ROWS, SIDE, methods))
    assert peak <= spectrum.held_bytes(BLOCK, SIDE)
    assert 0 < rest <= kept * 8 * SIDE**2


@pytest.mark.parametrize("methods", [SWEEP[:1], SWEEP])
@pytest.mark.parametrize("rank", [16, 128])
def test_factors(methods, rank):
    update = matrix(1, 10 * ROWS)
    found = decompose(lambda: update.split(BLOCK), SIDE)
    values = found.singular_values
    edited = [measure(values, len(update), method).edited(values) for method in methods]
    peak, rest = peak_and_rest(
        lambda: truncate(lambda: update.split(BLOCK), len(update), found, edited, rank)
    )
    assert peak <= truncation.held_bytes(len(update), SIDE, rank, len(methods)) + ROUNDED
    assert rest <= 8 * len(methods) * rank * (len(update) + SIDE)
