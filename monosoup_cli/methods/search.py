"""Search for the best edit by scores: which candidates there are, which are tried next, which one is best.

First a coarse pass over every kind of edit. Then the neighbours of the best so far, at smaller and smaller
distances: a pattern search, which needs no more of the scores than their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

__all__ = ["Candidate", "Goal", "Trial", "coarse", "explore", "front", "neighbours"]

STEPS = (0.25, 0.1, 0.05, 0.02, 0.01)
"""How far apart neighbours are, pass by pass."""
RULES: Sequence[Mapping[str, Any]] = ({}, {"split": "energy-entropy"}, {"split": "noise"})
WEIGHTINGS = ("monosoup", "spectral", "alignment", "high")
"""Those that may be near the best. "uniform" goes as far in every direction, as wise does; "low" keeps what
is most like noise."""
ROUNDING = 1e-9
"""How much of a score, or of 1, is taken for rounding."""
LEAST, MOST = 0.05, 0.99
"""The energies that are tried, and how far --wise goes: beyond them, an edit is nearly an input."""


@dataclass(frozen=True)
class Candidate:
    """A command on the inputs of the search, with its own options.

    Attributes:
        command: The command.
        options: Its options by their Python names, without those at their defaults.
    """

    command: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The words of the command, without inputs and output."""
        words = [f"--{name.replace('_', '-')} {_word(value)}" for name, value in sorted(self.options.items())]
        return " ".join([self.command, *words])


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wise(alpha: float) -> Candidate:
    return Candidate("wise", {"alpha": alpha})


def _edit(**options: Any) -> Candidate:
    return Candidate("edit", options)


def _lines(alpha: float, beta: float) -> Candidate:
    return Candidate("lines", {"alpha": alpha, "beta": beta})


def coarse(*, is_of_several: bool, has_blocks: bool) -> Iterator[Candidate]:
    """The candidates of the first pass, those first that say most about where to look.

    The first one is the fine-tuned model, or the mean of several, and the second one the base.

    Args:
        is_of_several: Whether several fine-tuned checkpoints are averaged.
        has_blocks: Whether blocks are found in the names, which `lines` needs.
    """
    yield from (_wise(1.0), _wise(0.0), _edit(), _wise(0.5))
    if is_of_several:
        yield Candidate("stock")
    yield from (_edit(split="noise", weighting="high"), _edit(energy=0.8))
    if has_blocks:
        yield _lines(0.25, 0.75)
    yield from (_edit(wise=0.5), _edit(split="noise"), _edit(split="energy-entropy"), _edit(energy=0.5))
    yield from (_edit(weighting=name) for name in WEIGHTINGS[1:])


def neighbours(candidate: Candidate, step: float) -> Iterator[Candidate]:
    """The candidates at this distance from another one."""
    options = dict(candidate.options)
    if candidate.command == "wise":
        yield from (_wise(alpha) for alpha in _around(options["alpha"], step, 0.0, 1.0))
    elif candidate.command == "lines":
        alpha, beta = options["alpha"], options["beta"]
        for first in _around(alpha, step, 0.0, alpha + beta):  # the last block as it is
            yield _lines(first, round(alpha + beta - first, 4))
        yield from (_lines(alpha, more) for more in _around(beta, step, 0.0, 1.0 - alpha))
    elif candidate.command == "edit":
        if "energy" in options:
            yield from (
                _edit(**options | {"energy": at}) for at in _around(options["energy"], step, LEAST, MOST)
            )
        for at in _around(options.pop("wise", 1.0), step, LEAST, 1.0):
            yield _edit(**options, **({"wise": at} if at < 1.0 else {}))


def other_rules(candidate: Candidate) -> Iterator[Candidate]:
    """The edits that split or weigh in another way, and go as far from the base."""
    if candidate.command != "edit":
        return
    options = candidate.options
    wise, weighting, rule = (
        {name: options[name] for name in names if name in options}
        for names in (("wise",), ("weighting",), ("split", "energy"))
    )
    yield from (_edit(**wise, **other, **weighting) for other in (*RULES, {"energy": 0.8}))
    for name in WEIGHTINGS:
        yield _edit(**wise, **rule, **({} if name == WEIGHTINGS[0] else {"weighting": name}))


def _around(value: float, step: float, least: float, most: float) -> Iterator[float]:
    """What is a step below and above a number, within bounds."""
    for other in (round(value - step, 4), round(value + step, 4)):
        if least - 1e-9 <= other <= most + 1e-9:
            yield abs(other)


@dataclass(frozen=True)
class Trial:
    """A candidate and its scores by name; `same_as` is the label of an earlier one with the same weights."""

    candidate: Candidate
    scores: Mapping[str, float]
    same_as: str | None = None


@dataclass(frozen=True)
class Goal:
    """What is wanted of the scores.

    Attributes:
        prefer: The score that should be as high as can be.
        floors: What other scores must not fall below.
    """

    prefer: str
    floors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def within(
        cls, prefer: str, losses: Mapping[str, float], finetuned: Sequence[Mapping[str, float]]
    ) -> Goal:
        """The goal where other scores may lose so much from the best of the fine-tuned models' scores."""
        floors = {name: max(scores[name] for scores in finetuned) - loss for name, loss in losses.items()}
        return cls(prefer, floors)

    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """How scores compare, the best with the lowest: by how far they are below the floors, the preferred
        score, and the others. What a difference from a floor owes to rounding does not count."""
        gaps = [(floor - scores[name], abs(floor)) for name, floor in self.floors.items()]
        lack = sum(gap for gap, size in gaps if gap > ROUNDING * max(size, 1.0))
        return lack, -scores[self.prefer], *(-scores[name] for name in scores if name != self.prefer)

    def lack(self, trial: Trial) -> float:
        """How far a trial is below the floors."""
        return self.rank(trial.scores)[0]

    def best_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """Sort trials by their rank; the earlier of those that tie comes first."""
        return sorted(trials, key=lambda trial: self.rank(trial.scores))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one exceeds in a score without falling behind in another: the Pareto front."""

    def beats(one: Trial, other: Trial) -> bool:
        pairs = [(score, other.scores[name]) for name, score in one.scores.items()]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    distinct = {
        tuple(trial.scores.values()): trial for trial in reversed(trials)
    }  # the earlier of equal ones
    kept = [trial for trial in distinct.values() if not any(beats(other, trial) for other in trials)]
    return sorted(kept, key=lambda trial: tuple(trial.scores.values()))


def explore(
    first: Sequence[Candidate], attempt: Callable[[Candidate], Trial], goal: Goal, budget: int
) -> list[Trial]:
    """Try the candidates of the first pass, then what is near the best.

    At the two largest distances, the best of every command is followed, unless it is beyond a limit that
    others keep. Then the best edit gets other rules, and the best of all is followed at every distance. What
    is left of the budget goes to the whole front.

    Args:
        first: The candidates of the first pass.
        attempt: Scores a candidate, unless its weights were scored before.
        goal: What is best.
        budget: How many candidates may be scored; those with the weights of another do not count.
    """
    trials: dict[str, Trial] = {}

    def try_all(candidates: Iterable[Candidate]) -> bool:
        """Try what is new among candidates; returns whether anything was."""
        before = len(trials)
        for candidate in candidates:
            spent = sum(trial.same_as is None for trial in trials.values())
            if candidate.label not in trials and spent < budget:
                trials[candidate.label] = attempt(candidate)
        return len(trials) > before

    def best(command: str = "") -> list[Candidate]:
        some = [one for one in trials.values() if command in ("", one.candidate.command)]
        return [trial.candidate for trial in goal.best_first(some)[:1]]

    def promising(command: str) -> list[Candidate]:
        is_within = any(goal.lack(trial) == 0.0 for trial in trials.values())
        return [one for one in best(command) if not is_within or goal.lack(trials[one.label]) == 0.0]

    def follow(centres: Callable[[], Sequence[Candidate]], step: float) -> None:
        while any(try_all(neighbours(centre, step)) for centre in centres()):
            pass

    try_all(first)
    for step in STEPS[:2]:
        for command in ("wise", "lines", "edit"):
            follow(partial(promising, command), step)
    for centre in best("edit"):
        try_all(other_rules(centre))
    for step in STEPS:
        follow(best, step)
    for step in STEPS:
        follow(lambda: [trial.candidate for trial in front(list(trials.values()))], step)
    return list(trials.values())
