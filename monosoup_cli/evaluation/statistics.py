"""Tests and intervals for paired differences: exact where that is cheap, else simulated with fixed seeds.

A difference is the score of the edited model minus that of the fine-tuned one, on one sample. Samples of one
task count alike, and so do the tasks of a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["LEVEL", "REPLICATES", "Evidence", "evidence_of", "group_evidence", "holm", "mcnemar"]

LEVEL = 0.95
"""How often an interval contains the true difference, if samples were drawn anew."""
REPLICATES = 10_000
"""How many simulated differences an interval or a p-value is made of."""
EXACT = 20
"""The most differences whose signs are all tried."""
FEW = 8
"""Up to so many different values, it is simulated how often each is drawn; above, every draw is."""
AT_ONCE = 1 << 21
"""How many draws are in memory at a time."""
ROUNDING = 1e-12
"""How far below the observed sum another one may be, relative to the sum of all sizes, and be as large."""


@dataclass(frozen=True)
class Evidence:
    """What a paired difference rests on.

    Attributes:
        difference: The mean of all differences.
        interval: Its bootstrap interval: percentiles.
        p: The two-sided p-value of no difference.
        test: "mcnemar" or "sign-flip".
        resampled: The means of differences drawn with replacement.
        flipped: The means of differences with random signs.
        nonzero: The differences that are not 0, divided by the number of all.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    test: str
    resampled: torch.Tensor
    flipped: torch.Tensor
    nonzero: Sequence[float]


def evidence_of(differences: Sequence[float], seed: int, *, is_right_or_wrong: bool) -> Evidence:
    """Test the differences of one task.

    Args:
        differences: One for each sample.
        seed: The seed of what is simulated.
        is_right_or_wrong: Whether every score is 0 or 1, and so every difference 0 or ±1.
    """
    import torch

    count = len(differences)
    generator = torch.Generator().manual_seed(seed)
    nonzero = [one / count for one in differences if one]
    resampled, flipped = _resampled(differences, generator), _flipped(nonzero, generator)
    if is_right_or_wrong:
        won = sum(one > 0 for one in differences)
        test, p = "mcnemar", mcnemar(len(nonzero) - won, won)
    else:
        test, p = "sign-flip", _sign_flip(nonzero, flipped)
    return Evidence(
        math.fsum(differences) / count, _interval(resampled), p, test, resampled, flipped, nonzero
    )


def group_evidence(tasks: Sequence[Evidence]) -> Evidence:
    """Test the mean of the differences of several tasks, which are independent."""
    import torch

    if len(tasks) == 1:
        return tasks[0]
    count = len(tasks)
    resampled, flipped = (
        torch.stack(one).mean(0)
        for one in ([task.resampled for task in tasks], [task.flipped for task in tasks])
    )
    nonzero = [one / count for task in tasks for one in task.nonzero]
    difference = math.fsum(task.difference for task in tasks) / count
    p = _sign_flip(nonzero, flipped)
    return Evidence(difference, _interval(resampled), p, "sign-flip", resampled, flipped, nonzero)


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact test: the two-sided binomial p-value of how many samples were lost and won."""
    count, fewer = lost + won, min(lost, won)
    if lost == won:
        return 1.0
    log_all = count * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(count + 1) - math.lgamma(one + 1) - math.lgamma(count - one + 1) - log_all)
        for one in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that hold together for all of them."""
    corrected, highest = [0.0] * len(values), 0.0
    for place, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = highest
    return corrected


def _sign_flip(nonzero: Sequence[float], flipped: torch.Tensor) -> float:
    """The share of signs with which the sum is as far from 0 as it is, or further."""
    import torch

    observed = abs(math.fsum(nonzero)) - ROUNDING * math.fsum(map(abs, nonzero))
    if len(nonzero) > EXACT:
        return (1 + int((flipped.abs() >= observed).sum())) / (1 + len(flipped))
    sums = torch.zeros(1, dtype=torch.float64)
    for one in nonzero:
        sums = torch.cat([sums + one, sums - one])
    return int((sums.abs() >= observed).sum()) / len(sums)


def _interval(resampled: torch.Tensor) -> tuple[float, float]:
    low, high = resampled.quantile(resampled.new_tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])).tolist()
    return low, high


def _resampled(differences: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """Means of as many differences, drawn with replacement."""
    import torch

    count, times = len(differences), sorted(Counter(differences).items())
    if len(times) > FEW:
        values = torch.tensor(differences, dtype=torch.float64)
        return torch.cat(
            [
                values[torch.randint(count, (rows, count), generator=generator)].mean(1)
                for rows in _parts(count)
            ]
        )
    sums = torch.zeros(REPLICATES, dtype=torch.float64)
    left, others = torch.full_like(sums, count), count
    for value, drawn in times:  # a multinomial draw is a binomial one for each value, of what is left
        found = torch.binomial(left, torch.full_like(sums, drawn / others), generator=generator)
        sums += value * found
        left, others = left - found, others - drawn
    return sums / count


def _flipped(nonzero: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """Sums of these with random signs; of equal sizes, it is drawn how many get a plus."""
    import torch

    times = Counter(map(abs, nonzero))
    if not times:
        return torch.zeros(REPLICATES, dtype=torch.float64)
    sizes, counts = (torch.tensor([*one], dtype=torch.float64) for one in (times.keys(), times.values()))
    parts = []
    for rows in _parts(len(sizes)):
        of_each = counts.expand(rows, -1)
        plus = torch.binomial(of_each, torch.full_like(of_each, 0.5), generator=generator)
        parts.append((2 * plus - of_each) @ sizes)
    return torch.cat(parts)


def _parts(columns: int) -> list[int]:
    """How many replicates are drawn at a time, if each takes so many draws."""
    rows = max(1, AT_ONCE // columns)
    return [min(rows, REPLICATES - start) for start in range(0, REPLICATES, rows)]
