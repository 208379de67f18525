"""Estimates with intervals: paired over the examples, and over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A mean difference in points, its 95 % interval, and the mean of each seed."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def word(self) -> str:
        """What the interval says."""
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "not shown"


def accuracy(answers: str) -> float:
    """In percent, of a string of 0 and 1."""
    return 100 * answers.count("1") / len(answers)


def difference(after: str, before: str) -> list[float]:
    """For every example 100, 0 or −100: points gained."""
    return [100.0 * (int(new) - int(old)) for new, old in zip(after, before, strict=True)]


def averaged(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several rows, example by example."""
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def estimate(tasks: dict[str, dict[int, list[list[float]]]], *, same_examples: bool) -> Estimate:
    """The mean over tasks of the mean difference.

    The variance of the examples and that of the seeds' means are added. The quantile is that of Student's t,
    with the degrees of freedom of Welch and Satterthwaite.

    Args:
        tasks: for each task and seed, a row of differences for every checkpoint.
        same_examples: whether all seeds are scored on the same ones; an example then counts once.
    """
    means, variances = [], []
    for seeds in tasks.values():
        rows = [averaged(rows) for rows in seeds.values()]
        examples = averaged(rows) if same_examples else [each for row in rows for each in row]
        means.append(statistics.fmean(examples))
        widened = [*examples, 100.0, -100.0]  # Bonett and Price, 2012: no difference seen is not no width
        variances.append(statistics.variance(widened) / len(widened))
    numbers = list(next(iter(tasks.values())))
    per_seed = [
        statistics.fmean(statistics.fmean(averaged(seeds[number])) for seeds in tasks.values())
        for number in numbers
    ]
    of_examples = sum(variances) / len(variances) ** 2
    of_seeds = statistics.variance(per_seed) / len(per_seed) if len(per_seed) > 1 else 0.0
    variance = of_examples + of_seeds
    freedom = (len(per_seed) - 1) * (variance / of_seeds) ** 2 if of_seeds else math.inf
    width = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    mean = statistics.fmean(means)
    return Estimate(mean, mean - width, mean + width, tuple(per_seed))


class Correlation(NamedTuple):
    """Spearman's rank correlation with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        """Whether the interval is without 0."""
        return not self.low <= 0 <= self.high


def spearman(
    first: Sequence[float], second: Sequence[float], seeds: Sequence[object], draws: int = 4000
) -> Correlation:
    """Spearman's rank correlation. The interval draws whole seeds anew: their checkpoints share a base."""
    one, two = stats.rankdata(first), stats.rankdata(second)
    terms = np.stack([np.ones_like(one), one, two, one * one, two * two, one * two])
    groups = np.array([[each == seed for each in seeds] for seed in dict.fromkeys(seeds)], dtype=float)
    sums = groups @ terms.T
    drawn = np.random.default_rng(0).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), draws)
    low, high = np.quantile(_pearson(drawn @ sums), (0.025, 0.975))
    (value,) = _pearson(sums.sum(0, keepdims=True))
    return Correlation(float(value), float(low), float(high))


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Of rows of Σ1, Σx, Σy, Σx², Σy² and Σxy; 0 where x or y is constant."""
    count, x, y, xx, yy, xy = sums.T
    product = (count * xx - x * x) * (count * yy - y * y)
    return np.divide(count * xy - x * y, np.sqrt(product), out=np.zeros_like(xy), where=product > 1e-9)
