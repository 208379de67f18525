"""p-values and intervals, against SciPy, every choice of signs, and what their definitions imply."""

import math
import random
from itertools import product

import pytest
import torch
from scipy import stats

from monosoup_cli.evaluation.statistics import (
    AT_ONCE,
    EXACT,
    REPLICATES,
    evidence_of,
    group_evidence,
    holm,
    mcnemar,
)

MANY = 20_000
SPREAD = 5 * math.sqrt(0.25 / REPLICATES)
"""How far a simulated p-value may be from the true one: five standard errors."""


def normals(count, shift, seed):
    source = random.Random(seed)
    return [source.gauss(shift, 1) for _ in range(count)]


def sign_flip(differences, seed=0):
    """The evidence on one edited model, whose scores are numbers."""
    (found,) = evidence_of([differences], seed, is_right_or_wrong=False)
    return found


@pytest.mark.parametrize(
    ("lost", "won"), [(0, 0), (0, 1), (0, 9), (3, 8), (8, 3), (40, 41), (700, 812), (0, 2000)]
)
def test_mcnemar_is_the_binomial_test(lost, won):
    expected = stats.binomtest(won, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_mcnemar_of_a_hundred_thousand():
    assert mcnemar(49_500, 50_500) == pytest.approx(stats.binomtest(49_500, 100_000).pvalue, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7, 12])
@pytest.mark.parametrize("shift", [0, 0.8])
def test_few_differences_have_the_p_value_of_all_signs(count, shift):
    differences = normals(count, shift, count)
    ours = sign_flip(differences)
    expected = stats.permutation_test(
        (differences,), lambda x: x.mean(), permutation_type="samples", n_resamples=2**13
    )
    assert ours.test == "sign-flip"
    assert ours.p == pytest.approx(expected.pvalue, abs=1e-6)
    observed = abs(sum(differences)) - 1e-9
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=count)
    ]
    assert ours.p == pytest.approx(sum(one >= observed for one in sums) / 2**count, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_many_differences_are_simulated(seed):
    differences = normals(60, 0.25, seed)
    expected = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        n_resamples=MANY,
        vectorized=True,
        rng=seed,
    )
    assert sign_flip(differences).p == pytest.approx(expected.pvalue, abs=SPREAD)


def test_simulated_signs_of_equal_sizes_are_those_of_mcnemar():
    """Where all differences are 0 or ±1, the sign-flip test is McNemar's."""
    differences = [1.0] * 40 + [-1.0] * 25 + [0.0] * 50
    (right_or_wrong,) = evidence_of([differences], 0, is_right_or_wrong=True)
    assert len(right_or_wrong.nonzero) > EXACT
    assert right_or_wrong.test == "mcnemar"
    assert right_or_wrong.p == pytest.approx(stats.binomtest(40, 65).pvalue, rel=1e-9)
    assert sign_flip(differences).p == pytest.approx(right_or_wrong.p, abs=SPREAD)


@pytest.mark.parametrize(
    "values", [[1.0] * 30 + [-1.0] * 10 + [0.0] * 60, normals(100, 0.3, 5)], ids=["few", "many"]
)
def test_the_interval_is_that_of_a_paired_bootstrap(values):
    """Both ways to draw: how often each value is drawn, and every draw."""
    expected = stats.bootstrap(
        (values,), lambda x, axis: x.mean(axis), n_resamples=MANY, method="percentile", vectorized=True, rng=0
    ).confidence_interval
    spread = max(values) - min(values)
    assert sign_flip(values).interval == pytest.approx([expected.low, expected.high], abs=0.004 * spread)


def test_every_choice_of_signs_is_as_likely():
    """Of sizes that are powers of two, a sum tells each sign. Their number is no multiple of eight."""
    sizes = [2.0**power for power in range(21)]
    assert len(sizes) > EXACT
    sums = (sign_flip([*sizes, 0.0]).flipped * 22).round().long()
    plus = ((sums + 2**21 - 1) // 2)[:, None] >> torch.arange(21) & 1
    assert ((2 * plus - 1) * torch.tensor(sizes)).sum(1).tolist() == sums.tolist()
    assert plus.double().mean(0).tolist() == pytest.approx([0.5] * 21, abs=SPREAD)
    both = plus.double().T @ plus.double() / REPLICATES
    assert both[~torch.eye(21, dtype=torch.bool)].tolist() == pytest.approx([0.25] * 420, abs=SPREAD)


def test_several_models_have_the_same_evidence_as_each_alone():
    """Few values and many; the samples of those with many are drawn once."""
    models = [normals(30, 0.2, 1), [1.0, 0.0, -1.0] * 10, normals(30, -0.2, 2)]
    drawn = []
    found = evidence_of(models, 3, is_right_or_wrong=False, advance=drawn.append)
    assert sum(drawn) == REPLICATES
    for one, differences in zip(found, models, strict=True):
        alone = sign_flip(differences, 3)
        assert (one.interval, one.p, one.difference) == (alone.interval, alone.p, alone.difference)


def test_more_samples_than_are_drawn_at_a_time():
    """The interval is that of the normal distribution, which the mean of so many has."""
    differences = normals(AT_ONCE // 100 + 1, 0.01, 4)
    found = sign_flip(differences)
    error = math.sqrt(stats.tvar(differences) / len(differences))
    expected = [found.difference - 1.96 * error, found.difference + 1.96 * error]
    assert found.interval == pytest.approx(expected, abs=0.1 * error)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / error), abs=SPREAD + 0.005)


def test_no_difference():
    nothing = sign_flip([0.0] * 9)
    assert (nothing.difference, nothing.interval, nothing.p) == (0, (0, 0), 1)


def test_a_group_weighs_its_tasks_alike():
    """One task has few samples and the other many; the mean of their differences is tested."""
    few, many = [1.0, 1.0, 0.0, 1.0], normals(200, 0.0, 1)
    group = group_evidence([sign_flip(few), sign_flip(many)])
    assert group.difference == pytest.approx((0.75 + math.fsum(many) / 200) / 2)
    weighted = [*(one / 8 for one in few), *(one / 400 for one in many)]
    expected = stats.permutation_test(
        (weighted,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        n_resamples=MANY,
        vectorized=True,
        rng=0,
    )
    assert 0.03 < expected.pvalue < 0.3
    assert group.p == pytest.approx(expected.pvalue, abs=SPREAD)
    variance = (stats.tvar(few) * 3 / 16 + stats.tvar(many) * 199 / 200**2) / 4
    width = group.interval[1] - group.interval[0]
    assert width == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def test_a_group_of_few_differences_is_exact():
    tasks = [[1.0, 1.0, -1.0, 1.0], [0.5, 0.25]]
    group = group_evidence([sign_flip(one) for one in tasks])
    weighted = [one / len(task) / 2 for task in tasks for one in task]
    expected = stats.permutation_test(
        (weighted,), lambda x: x.sum(), permutation_type="samples", n_resamples=10_000
    )
    assert group.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_the_same_seed_has_the_same_result():
    differences = normals(50, 0.1, 3)
    first, second, third = (sign_flip(differences, seed) for seed in (1, 1, 2))
    assert (first.interval, first.p) == (second.interval, second.p)
    assert first.interval != third.interval


def test_p_values_of_no_effect_are_uniform():
    """Of a hundred pairs that differ by chance alone, about five are below 0.05."""
    below = sum(sign_flip(normals(30, 0, 1000 + seed)).p < 0.05 for seed in range(100))
    assert below == pytest.approx(5, abs=7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.001, 0.9], [1.0, 0.003, 1.0]),
    ],
)
def test_holm(values, expected):
    """By hand: the smallest times 3, the next times 2, the largest as it is, and never less than before."""
    assert holm(values) == pytest.approx(expected)
