"""`soup`: uniform, weighted and greedy model soups."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast

from monosoup_cli.api.command import Request, command
from monosoup_cli.errors import UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.model_soup import (
    WSM,
    Average,
    Schedule,
    Trial,
    best_first,
    greedy,
    normalise,
    scheduled,
)
from monosoup_cli.methods.score_option import check_template
from monosoup_cli.options import (
    Finetuned,
    Option,
    Output,
    Scores,
    StrPath,
    as_paths,
    check_choice,
    check_one_each,
    path_list,
)
from monosoup_cli.sources.runs import checkpoints_of, steps_of
from monosoup_cli.tensors.method import Order, Variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.inputs import Inputs
    from monosoup_cli.pipeline.task import Choice, ChooserContext
    from monosoup_cli.tensors.plan import Selection

__all__ = ["Accept", "Watch", "soup"]

Accept = Literal["ge", "gt"]
EMA_DECAY = 0.8

Watch: TypeAlias = Callable[[str, Trial | float | None, int], None]
"""Called before and after every score of the greedy soup: with a source, the trial (or the score, of a
checkpoint alone; None before it is known), and the number of checkpoints whose mean is scored."""


def _ignore(source: str, trial: Trial | float | None, count: int) -> None:
    pass


AVERAGED = "are averaged, too; if their shapes differ, they come from the first checkpoint. Repeatable."
HELPS = {
    "include": f"Count only tensors whose names match as edited. The others {AVERAGED}",
    "exclude": f"Do not count tensors whose names match as edited. They {AVERAGED}",
}


@command("Combine", HELPS)
def soup(
    finetuned: Finetuned,
    output: Output,
    *,
    base: Annotated[
        StrPath | None,
        Option(
            "The base that LoRA adapters are merged into; only they need one.",
            metavar="BASE",
            shell=str,
            in_card=False,
        ),
    ] = None,
    weights: Annotated[
        Sequence[float] | None,
        Option(
            "A weight for each checkpoint; scaled to sum to 1.", metavar="W1,W2,…", shell=str, is_list=True
        ),
    ] = None,
    schedule: Annotated[
        str | Sequence[str] | None,
        Option(
            "Weigh the checkpoints of one training run by their steps: uniform, ema, or as a learning rate"
            " that decays over them (linear, minus-sqrt, cosine). A list such as linear,cosine makes one"
            " checkpoint per schedule: OUT/schedule-linear, …",
            metavar="NAME",
            shell=str,
        ),
    ] = None,
    steps: Annotated[
        Sequence[float] | None,
        Option(
            "The step of each checkpoint, where names do not say it.",
            metavar="S1,S2,…",
            shell=str,
            is_list=True,
        ),
    ] = None,
    window: Annotated[
        int | None,
        Option("Average only the last N checkpoints of the run.", metavar="N", shell=int, minimum=2),
    ] = None,
    ema_decay: Annotated[
        float,
        Option("With --schedule ema: how much a checkpoint counts, relative to the next one.", metavar="B"),
    ] = EMA_DECAY,
    greedy: Annotated[bool, Option("Add checkpoints, best first, while the score does not fall.")] = False,
    score_command: Annotated[
        str | None,
        Option(
            "A shell command that scores a checkpoint. {} is replaced by its path, and the last line that the"
            " command prints is the score; higher is better.",
            metavar="COMMAND",
            shell=str,
            is_private=True,
        ),
    ] = None,
    scores: Scores = None,
    accept: Annotated[
        Accept,
        Option(
            "Add a candidate if the score is at least the best so far (ge), or only if it is better (gt)."
        ),
    ] = "ge",
    watch: Watch | None = None,
    **options: Unpack[RunKeywords],
) -> Request:
    """Average checkpoints: model soups.

    The mean of two or more checkpoints is uniform, weighted or greedy. The greedy soup scores every trial
    with a command of yours, and --resume continues without scoring anything twice. A folder with
    checkpoint-500, checkpoint-1000, … stands for all of them; --schedule weighs them by their steps.

    Example: monosoup soup ft1.safetensors ft2.safetensors ft3.safetensors -o out
    """
    sources = path_list(finetuned)
    if len(sources) == 1 and Path(sources[0]).is_dir():
        sources = _of_run(sources[0])
    run = _Run.of(sources, schedule, steps, window, ema_decay)
    if run is not None:
        sources = list(run.sources)
    sources = as_paths(sources, at_least=2)
    if run is not None and (weights is not None or greedy):
        raise UsageError("--schedule and --window, --weights and --greedy exclude each other")
    if weights is not None:
        check_one_each("--weights", weights, len(sources))
    check_choice("accept", accept, Accept)
    known = None
    chooser = None
    if greedy:
        from monosoup_cli.pipeline.score_command import scores_of

        if score_command is None:
            raise UsageError("--greedy needs --score-command: it scores every trial")
        if weights is not None:
            raise UsageError("--weights and --greedy exclude each other: the greedy soup is uniform")
        check_template(score_command, "--score-command")
        known = None if scores is None else scores_of(scores, sources)
        chooser = _Greedy(sources, score_command, known, accept == "gt", watch or _ignore)
    elif score_command is not None or scores is not None or accept != "ge":
        raise UsageError("--score-command, --scores and --accept need --greedy")
    order = Order(
        Average() if run is None else run.method(),
        sources,
        os.fspath(output),
        None if base is None else os.fspath(base),
        weights=run.weights if run is not None else None if weights is None else normalise(weights),
        base_is_option=True,
        arguments={
            "weights": None if weights is None else list(weights),
            "scores": known,
            "schedule": None if run is None else run.argument,
            "steps": None if run is None else list(run.steps),
        },
    )
    return Request(order, chooser=chooser)


@dataclass(frozen=True)
class _Run:
    """The checkpoints of one training run, by their steps, and the schedules that weigh them."""

    sources: Sequence[str]
    steps: Sequence[int]
    schedules: Sequence[Schedule]
    is_sweep: bool
    ema_decay: float

    @classmethod
    def of(
        cls,
        sources: Sequence[str],
        schedule: str | Sequence[str] | None,
        steps: Sequence[float] | None,
        window: int | None,
        ema_decay: float,
    ) -> _Run | None:
        """The run that the options ask for; None where they ask for none.

        Raises:
            UsageError: A value is out of range, or the steps are unclear.
        """
        if schedule is None and window is None:
            if ema_decay != EMA_DECAY:
                raise UsageError("--ema-decay needs --schedule ema")
            if steps is not None:
                raise UsageError("--steps needs --schedule or --window")
            return None
        if not 0.0 < ema_decay <= 1.0:
            raise UsageError("--ema-decay is out of range", expected="0 < value <= 1", found=ema_decay)
        if window is not None and window < 2:
            raise UsageError("--window is out of range", expected="at least 2", found=window)
        given = "uniform" if schedule is None else schedule
        names = given.split(",") if isinstance(given, str) else list(given)
        if not names:
            raise UsageError("--schedule has no value")
        for name in names:
            check_choice("schedule", name, Schedule)
        if len(set(names)) < len(names):
            raise UsageError("--schedule has the same value twice", found=",".join(names))
        if ema_decay != EMA_DECAY and "ema" not in names:
            raise UsageError("--ema-decay needs --schedule ema")
        if window is not None and window > len(sources):
            most = f"at most {len(sources)}"
            raise UsageError("--window is larger than the run", expected=most, found=window)
        known = dict(zip(sources, _steps(steps, sources), strict=True))
        kept = sorted(sources, key=lambda source: known[source])[-(window or len(sources)) :]
        is_sweep = len(names) > 1 or not isinstance(given, str)
        return cls(kept, [known[one] for one in kept], cast("Sequence[Schedule]", names), is_sweep, ema_decay)

    @property
    def argument(self) -> str | list[str]:
        """The argument as the report has it."""
        return list(self.schedules) if self.is_sweep else self.schedules[0]

    @property
    def weights(self) -> list[float] | None:
        """The weights of a single mean."""
        return None if self.is_sweep or len(self.steps) < 2 else self._weights(self.schedules[0])

    def _weights(self, schedule: Schedule) -> list[float]:
        return scheduled(schedule, self.steps, self.ema_decay)

    def method(self) -> Average:
        """What averages them."""
        if len(self.steps) < 2:
            return Average()
        shares = [self._weights(schedule) for schedule in self.schedules]
        averaged = [
            {"source": source, "step": step, "weights": dict(zip(self.schedules, of_each, strict=True))}
            for source, step, of_each in zip(self.sources, self.steps, zip(*shares, strict=True), strict=True)
        ]
        if not self.is_sweep:
            return Average(WSM, averaged)
        variants = [
            Variant(f"schedule-{name}", {"schedule": name}, weights=weights)
            for name, weights in zip(self.schedules, shares, strict=True)
        ]
        return Average(WSM, averaged, shares, variants)


def _of_run(run: str) -> list[str]:
    """The checkpoints in the folder of a run.

    Raises:
        UsageError: There are too few.
    """
    found = checkpoints_of(run)
    if len(found) < 2:
        names = ", ".join(Path(one).name for one in found) or "none"
        raise UsageError(
            "too few fine-tuned checkpoints in this folder",
            path=run,
            expected="at least 2, such as checkpoint-500",
            found=names,
        )
    return found


def _steps(given: Sequence[float] | None, sources: Sequence[str]) -> list[int]:
    """The steps that the user gives, or else those in the names.

    Raises:
        UsageError: They are no steps of these checkpoints.
    """
    if given is None:
        return steps_of(sources)
    check_one_each("--steps", given, len(sources))
    if any(step < 0 or step != int(step) for step in given) or len(set(given)) < len(given):
        raise UsageError("--steps must be whole numbers, each once", found=list(given))
    return [int(step) for step in given]


@dataclass(frozen=True)
class _Greedy:
    """Chooses the members of the greedy soup. Every score is noted as soon as it is known."""

    sources: Sequence[str]
    template: str
    scores: Mapping[str, float] | None
    is_strict: bool
    watch: Watch
    drafts: int = 1
    candidates: int = 0

    @property
    def trials(self) -> int:
        """Every checkpoint alone, and all but the first with those that joined before."""
        return 2 * len(self.sources) - 1

    def check(self, inputs: Inputs, selection: Selection) -> None:
        """Nothing: any checkpoints can be scored."""

    def choose(self, context: ChooserContext, partial: PartialOutput | None, progress: Progress) -> Choice:
        """Score the candidates, and add one after the other while the score does not fall."""
        from monosoup_cli.pipeline.task import Choice

        assert partial is not None
        numbers = range(len(self.sources))
        if self.scores is None:
            scores = []
            for number, source in enumerate(self.sources):
                scores.append(self._score([number], context, partial))
                self.watch(source, scores[-1], 1)
        else:
            scores = [self.scores[source] for source in self.sources]
        order = best_first(scores)
        trials = []
        for trial in greedy(
            order, lambda members: self._score(members, context, partial), strict=self.is_strict
        ):
            trials.append(trial)
            self.watch(self.sources[trial.candidate], trial, len(trials))
        members = [trial.candidate for trial in trials if trial.joined]
        selection = {
            "scores": [{"source": self.sources[n], "score": scores[n]} for n in numbers],
            "order": [self.sources[number] for number in order],
            "trials": [
                {"candidate": self.sources[one.candidate], "score": one.score, "joined": one.joined}
                for one in trials
            ],
            "members": [self.sources[number] for number in members],
        }
        return Choice(members, selection)

    def _score(self, members: Sequence[int], context: ChooserContext, partial: PartialOutput) -> float:
        """The score of the uniform mean of some checkpoints; of a single one, as it is."""
        from monosoup_cli.pipeline.score_command import Scored, noted_score
        from monosoup_cli.pipeline.scoring import write_draft

        def scored() -> Scored:
            self.watch(self.sources[members[-1]], None, len(members))
            if len(members) == 1 and context.inputs.adapters[members[0]] is None:
                path = Path(context.inputs.finetuned[members[0]].files.place.path)
                return Scored(path, [], context.inputs.sources)
            return write_draft(context, partial, members)[0]  # an adapter is scored merged

        name = f"score {' '.join(str(number) for number in members)}"
        return noted_score(name, self.template, scored, partial)
