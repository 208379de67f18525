"""Tests and intervals for paired differences: exact where that is cheap, else simulated with fixed seeds.

A difference is the score of the edited model minus that of the fine-tuned one, on one sample. Samples of one
task count alike, and so do the tasks of a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
AT_ONCE = 1 << 18
"""How many draws are in memory at a time: as many as a processor's cache holds."""
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the arrays are too small for more, which would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def evidence_of(
    models: Sequence[Sequence[float]],
    seed: int,
    *,
    is_right_or_wrong: bool,
    advance: Callable[[int], None] = lambda replicates: None,
) -> list[Evidence]:
    """Test the differences of one task.

    Args:
        models: For each edited model, a difference for each sample.
        seed: The seed of what is simulated.
        is_right_or_wrong: Whether every score is 0 or 1, and so every difference 0 or ±1.
        advance: Gets how many replicates are drawn, of REPLICATES in all.
    """
    import torch

    many = [number for number, one in enumerate(models) if len(set(one)) > FEW]
    drawn = dict(zip(many, _drawn([models[number] for number in many], seed, advance), strict=True))
    found = []
    for number, differences in enumerate(models):
        count, generator = len(differences), torch.Generator().manual_seed(seed)
        nonzero = [one / count for one in differences if one]
        resampled = drawn[number] if number in drawn else _counted(differences, generator)
        flipped = _flipped(nonzero, generator)
        if is_right_or_wrong:
            won = sum(one > 0 for one in differences)
            test, p = "mcnemar", mcnemar(len(nonzero) - won, won)
        else:
            test, p = "sign-flip", _sign_flip(nonzero, flipped)
        difference = math.fsum(differences) / count
        found.append(Evidence(difference, _interval(resampled), p, test, resampled, flipped, nonzero))
    return found


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


def _drawn(
    models: Sequence[Sequence[float]], seed: int, advance: Callable[[int], None]
) -> list[torch.Tensor]:
    """Means of as many differences, drawn with replacement: the same samples for all models."""
    import torch

    if not models:
        advance(REPLICATES)
        return []
    count, generator = len(models[0]), torch.Generator().manual_seed(seed)
    values = [torch.tensor(one, dtype=torch.float64) for one in models]
    means = [torch.empty(REPLICATES, dtype=torch.float64) for _ in models]
    for start, stop, drawn, taken in _parts(count):
        drawn.random_(0, count, generator=generator)
        for one, found in zip(values, means, strict=True):
            torch.index_select(one, 0, drawn, out=taken)
            torch.mean(taken.view(-1, count), 1, out=found[start:stop])
        advance(stop - start)
    return means


def _counted(differences: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """The same for few different values; a multinomial draw is a binomial one for each, of what is left."""
    import torch

    sums = torch.zeros(REPLICATES, dtype=torch.float64)
    left, others = torch.full_like(sums, len(differences)), len(differences)
    for value, times in sorted(Counter(differences).items()):
        found = torch.binomial(left, torch.full_like(sums, times / others), generator=generator)
        sums += value * found
        left, others = left - found, others - times
    return sums / len(differences)


def _flipped(nonzero: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """Sums of these with random signs. Of few sizes, it is drawn how many of each get a plus."""
    import torch

    times = Counter(map(abs, nonzero))
    if len(times) > FEW:
        return _signed(torch.tensor(nonzero, dtype=torch.float64), generator)
    sums = torch.zeros(REPLICATES, dtype=torch.float64)
    for value, count in times.items():
        of_each = torch.full_like(sums, count)
        plus = torch.binomial(of_each, torch.full_like(sums, 0.5), generator=generator)
        sums += value * (2 * plus - of_each)
    return sums


def _signed(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sums of values with random signs, eight at a time: a byte chooses among their 256 sums."""
    import torch

    eights = torch.nn.functional.pad(values, (0, -len(values) % 8)).view(-1, 8)
    bits = (torch.arange(256) >> torch.arange(8)[:, None]) & 1
    sums = (eights @ torch.tensor([-1.0, 1.0], dtype=torch.float64)[bits]).flatten()
    starts = torch.arange(0, len(sums), 256, dtype=torch.int32)
    found = torch.empty(REPLICATES, dtype=torch.float64)
    for start, stop, drawn, taken in _parts(len(eights)):
        drawn.random_(0, 256, generator=generator).view(-1, len(eights)).add_(starts)
        torch.index_select(sums, 0, drawn, out=taken)
        torch.sum(taken.view(-1, len(eights)), 1, out=found[start:stop])
    return found


def _parts(columns: int) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Which replicates are drawn at a time, if each takes so many draws, and memory for the draws.

    The memory is the same each time: fresh memory takes longer than the arithmetic.
    """
    import torch

    rows = max(1, AT_ONCE // columns)
    drawn = torch.empty(rows * columns, dtype=torch.int32)
    taken = torch.empty(rows * columns, dtype=torch.float64)
    for start in range(0, REPLICATES, rows):
        stop = min(start + rows, REPLICATES)
        used = (stop - start) * columns
        yield start, stop, drawn[:used], taken[:used]
