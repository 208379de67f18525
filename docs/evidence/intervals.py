"""Estimates with intervals: paired over the examples, and over the seeds."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.96


class Estimate(NamedTuple):
    """A mean difference in points, its 95 % interval paired over examples, and the mean of each seed."""

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
    mean, error = statistics.fmean(means), math.sqrt(sum(variances)) / len(variances)
    numbers = list(next(iter(tasks.values())))
    per_seed = [
        statistics.fmean(statistics.fmean(averaged(seeds[number])) for seeds in tasks.values())
        for number in numbers
    ]
    return Estimate(mean, mean - Z95 * error, mean + Z95 * error, tuple(per_seed))


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of the two is constant."""
    one, two = ranks(first), ranks(second)
    if len(set(one)) < 2 or len(set(two)) < 2:
        return 0.0
    return statistics.correlation(one, two)


def spearman_interval(
    first: Sequence[float], second: Sequence[float], draws: int = 2000
) -> tuple[float, float]:
    """Its 95 % interval, by drawing the pairs anew."""
    source, count = random.Random(0), len(first)
    found = []
    for _ in range(draws):
        drawn = [source.randrange(count) for _ in range(count)]
        found.append(spearman([first[at] for at in drawn], [second[at] for at in drawn]))
    found.sort()
    return found[int(0.025 * draws)], found[int(0.975 * draws) - 1]
