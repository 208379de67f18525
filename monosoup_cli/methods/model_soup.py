"""Model soups: average the weights of several fine-tuned checkpoints.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from monosoup_cli.devices.held import Held
from monosoup_cli.errors import UsageError
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Paper, PlainMethod, Variant, Wanted

if TYPE_CHECKING:
    import torch

__all__ = ["PAPER", "WSM", "Average", "Schedule", "Trial", "best_first", "greedy", "normalise", "scheduled"]

SUM_BYTES = 32 << 20
"""What the sums of one of several means take, at most."""

PAPER = Paper(
    "The mean of the weights of several fine-tuned checkpoints: a model soup.",
    """
@inproceedings{wortsman2022model,
  title = {Model soups: averaging weights of multiple fine-tuned models improves accuracy without
           increasing inference time},
  author = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and Roelofs, Rebecca
            and Gontijo-Lopes, Raphael and Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali
            and Carmon, Yair and Kornblith, Simon and Schmidt, Ludwig},
  booktitle = {ICML},
  year = {2022}
}
""",
)


WSM = Paper(
    "The mean of the checkpoints of one training run, weighted by their steps.",
    """
@misc{tian2025wsm,
  title = {{WSM}: Decay-Free Learning Rate Schedule via Checkpoint Merging for {LLM} Pre-training},
  author = {Tian, Changxin and Wang, Jiapeng and Zhao, Qian and Chen, Kunlong and Liu, Jia and Liu, Ziqi
            and Mao, Jiaxin and Zhao, Wayne Xin and Zhang, Zhiqiang and Zhou, Jun},
  year = {2025},
  eprint = {2507.17634},
  archivePrefix = {arXiv}
}
""",
)


@dataclass(frozen=True)
class Average(PlainMethod):
    """The (weighted) mean of the fine-tuned checkpoints; the base is not used.

    Attributes:
        paper: Where it comes from.
        averaged: What was averaged, by name: its step, and its weight in every checkpoint of the output.
        shares: For each of several checkpoints of the output, the weights of its mean. Of a single one, the
            order has the weights.
        sweep: The checkpoints of the output.
    """

    paper: Paper = PAPER
    averaged: Sequence[Mapping[str, Any]] = ()
    shares: Sequence[Sequence[float]] = ()
    sweep: Sequence[Variant] = (Variant(),)

    verb = "average"
    measures = ()
    needs_base = False

    @property
    def details(self) -> Mapping[str, Any]:
        """What was averaged, where a schedule gave the weights."""
        return {"averaged": list(self.averaged)} if self.averaged else {}

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the sweep."""
        return self.sweep

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """The sums of all means at a time."""
        return Held(device=SUM_BYTES * len(self.shares))

    def edit(self, layer: Layer) -> Edit | None:
        """Average one tensor; with one checkpoint there is nothing to do."""
        assert isinstance(layer, FlatLayer)
        if layer.count == 1:
            return None
        return Edit([{} for _ in self.sweep], self._means(layer) if self.shares else self._blocks(layer))

    def _blocks(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop in layer.ranges():
            yield start, stop, [layer.mean(start, stop)]

    def _means(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        import torch

        for start, stop in layer.ranges():
            totals = [layer.memory.buffer(f"mean {at}", stop - start) for at in range(len(self.shares))]
            for number in range(layer.count):
                one = layer.one(number, start, stop)
                for total, weights in zip(totals, self.shares, strict=True):
                    if number:
                        total.add_(one, alpha=weights[number])
                    else:
                        torch.mul(one, weights[0], out=total)
            if not all(math.isfinite(total.sum()) for total in totals):
                layer.updates.check(start, stop)
            yield start, stop, totals


def normalise(weights: Sequence[float]) -> list[float]:
    """Scale weights to sum to 1.

    Raises:
        UsageError: A weight is negative or not finite, or all are 0.
    """
    if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UsageError("--weights must be at least 0, and not all 0", found=list(weights))
    largest = max(weights)
    shares = [weight / largest for weight in weights]
    total = math.fsum(shares)
    return [share / total for share in shares]


Schedule = Literal["uniform", "linear", "minus-sqrt", "cosine", "ema"]

DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "minus-sqrt": lambda x: 1.0 - math.sqrt(x),
    "cosine": lambda x: (1.0 + math.cos(math.pi * x)) / 2.0,
}
"""The learning rate at x in [0, 1], from the start of a decay to its end."""


def scheduled(schedule: Schedule, steps: Sequence[int], ema_decay: float) -> list[float]:
    """The weights of the checkpoints of a run, which sum to 1.

    A mean of the checkpoints of a run at a constant learning rate counts what was learned after checkpoint i
    as often as the later checkpoints weigh together. So weights that sum up to a decay, from the end, stand
    for a run with that decay (Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
    LLM Pre-training", arXiv 2507.17634). The decay begins at the first checkpoint, and would reach 0 one mean
    distance after the last one.

    Args:
        schedule: "linear", "minus-sqrt" (1 − √x) and "cosine" are such decays; of checkpoints at equal
            distances, linear is the even mean. "uniform" is that mean anyway. "ema" weighs a checkpoint by
            `ema_decay` to the power of its distance from the last one, in mean distances.
        steps: The steps of the checkpoints, ascending, at least two.
        ema_decay: In (0, 1].
    """
    count = len(steps)
    mean_distance = (steps[-1] - steps[0]) / (count - 1)
    if schedule == "uniform":
        return [1.0 / count] * count
    if schedule == "ema":
        return normalise([ema_decay ** ((steps[-1] - step) / mean_distance) for step in steps])
    decay, length = DECAYS[schedule], mean_distance * count
    rates = [1.0, *(decay((step - steps[0]) / length) for step in steps[1:]), 0.0]
    return [rate - following for rate, following in pairwise(rates)]


def best_first(scores: Sequence[float]) -> list[int]:
    """Sort indices by score, the highest first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda number: -scores[number])


@dataclass(frozen=True)
class Trial:
    """One step of the greedy soup.

    Attributes:
        candidate: The index of the checkpoint that is tried.
        score: The score of the mean of the members so far and the candidate.
        joined: Whether the candidate became a member.
    """

    candidate: int
    score: float
    joined: bool


def greedy(
    order: Sequence[int], score: Callable[[Sequence[int]], float], *, strict: bool = False
) -> Iterator[Trial]:
    """Run the greedy soup (Recipe 1 of the paper), and yield every trial as soon as it is scored.

    The first candidate is a member. Every other one joins if the score with it is at least the best so far.

    Args:
        order: The indices of the candidates, in the order in which they are tried.
        score: Rates the uniform mean of some checkpoints, in the order in which they joined. Higher is
            better.
        strict: Whether the score must be above the best so far.
    """
    members, best = [order[0]], score([order[0]])
    yield Trial(order[0], best, True)
    for candidate in order[1:]:
        value = score([*members, candidate])
        joined = value > best if strict else value >= best
        if joined:
            members.append(candidate)
            best = value
        yield Trial(candidate, value, joined)
