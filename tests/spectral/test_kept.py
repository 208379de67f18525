"""Eigenvectors in files: to the bit what `eigh` finds, once for each matrix."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monosoup_cli.methods.monosoup import MonoSoup, edit_update
from monosoup_cli.spectral import kept
from monosoup_cli.spectral.eigen import eigh
from monosoup_cli.spectral.kept import KeptEigenvectors


def gram(seed, side=24, rank=24):
    factor = torch.randn(side, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


@pytest.fixture
def solved(monkeypatch):
    """Matrices that were decomposed."""
    found = []
    monkeypatch.setattr(kept, "eigh", lambda matrix: found.append(matrix) or eigh(matrix))
    return found


def test_a_matrix_is_decomposed_once_and_found_again_to_the_bit(tmp_path, solved):
    solve = KeptEigenvectors(tmp_path, reserve=0)
    for _ in range(3):
        for seed in range(2):
            (values, vectors), (expected, right) = solve(gram(seed)), eigh(gram(seed))
            assert torch.equal(values, expected)
            assert torch.equal(vectors, right)
            assert vectors.stride() == right.stride()  # or products differ in the last bit
    assert len(solved) == 2


def test_another_instance_finds_what_one_kept(tmp_path, solved):
    KeptEigenvectors(tmp_path, reserve=0)(gram(0))
    KeptEigenvectors(tmp_path, reserve=0)(gram(0))
    assert len(solved) == 1


@pytest.mark.parametrize("rank", [24, 5])
def test_edits_are_the_same_to_the_bit_also_where_they_deflate(tmp_path, solved, rank):
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((40, rank), (rank, 24))
    )
    update, solve = left @ right, KeptEigenvectors(tmp_path, reserve=0)

    def edited(rule, *solver):
        ((layer, apply),) = edit_update(lambda: (update.clone(),), 40, 24, [rule], *solver)
        return layer, apply(update.clone())

    for rule in (MonoSoup(), MonoSoup(split="noise"), MonoSoup(energy=0.5)):
        (layer, result), (expected, alone) = edited(rule, solve), edited(rule)
        assert layer == expected
        assert torch.equal(result, alone)
    assert len(solved) == (1 if rank == 24 else 2)


def test_nothing_is_kept_where_the_disk_would_have_less_than_the_reserve(tmp_path, solved):
    solve = KeptEigenvectors(tmp_path, reserve=1 << 60)
    for _ in range(2):
        assert torch.equal(solve(gram(0))[1], eigh(gram(0))[1])
    assert len(solved) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_costs_time_alone(tmp_path, solved):
    solve = KeptEigenvectors(tmp_path / "removed", reserve=0)
    for _ in range(2):
        assert torch.equal(solve(gram(0))[1], eigh(gram(0))[1])
    assert len(solved) == 2


def test_workers_share_what_they_find(tmp_path, solved):
    solve = KeptEigenvectors(tmp_path, reserve=0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: solve(gram(number % 5)), range(40)))
    for number, (values, vectors) in enumerate(found):
        expected, right = eigh(gram(number % 5))
        assert torch.equal(values, expected)
        assert torch.equal(vectors, right)
    assert not list(tmp_path.glob("*.[0-9]*"))
    assert len(list(tmp_path.iterdir())) == 5
