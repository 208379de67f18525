"""`search`: the best edit by the user's own scores."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.command import Request, WritingCommand, command
from monosoup_cli.api.edit import edit
from monosoup_cli.api.method_commands import METHODS
from monosoup_cli.errors import MonosoupError, ResumeError, UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.lines import BlockPattern, scales
from monosoup_cli.methods.monosoup import MonoSoup
from monosoup_cli.methods.score_option import SCORE_HELP, commands_by_name
from monosoup_cli.methods.search import Candidate, Goal, Trial, coarse, explore, front
from monosoup_cli.methods.shared_edit import SharedEdit
from monosoup_cli.methods.spectral_edit import SpectralEdit
from monosoup_cli.options import Base, Finetuned, Option, Output, SplitFused, Stacked, as_list, as_paths
from monosoup_cli.tensors.method import Order, Variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.inputs import Inputs
    from monosoup_cli.pipeline.score_command import Scored
    from monosoup_cli.pipeline.task import Choice, ChooserContext, Task
    from monosoup_cli.tensors.plan import Selection

__all__ = ["search"]

COMMANDS: Mapping[str, WritingCommand[...]] = {"edit": edit, **METHODS}
ALL = {"edit": ("stacked", "split_fused"), "lines": ("block_pattern",)}
"""The options of the search that a candidate's command has, too, besides the shared ones."""
MOST_SCORES = 2


@command("Edit")
def search(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    score: Annotated[
        str | Sequence[str],
        Option(
            f"{SCORE_HELP} Given twice, with two names, the search weighs one score against the other.",
            metavar="[NAME=]COMMAND",
            shell=list[str],
            changes_bytes=False,
            is_private=True,
        ),
    ],
    prefer: Annotated[
        str | None,
        Option(
            "Of two scores, the one that should be as high as can be.",
            metavar="NAME",
            shell=str,
            changes_bytes=False,
        ),
    ] = None,
    max_loss: Annotated[
        str | Sequence[str],
        Option(
            "Of two scores, how much of NAME may be lost against the fine-tuned model.",
            metavar="NAME=LOSS",
            shell=list[str],
            changes_bytes=False,
        ),
    ] = (),
    budget: Annotated[
        int, Option("Score at most N candidates.", metavar="N", shell=int, minimum=2, changes_bytes=False)
    ] = 60,
    final_score: Annotated[
        str | Sequence[str],
        Option(
            "A command for an honest score, on data that had no part in the choice. It scores the fine-tuned"
            " model and the choice, once.",
            metavar="[NAME=]COMMAND",
            shell=list[str],
            changes_bytes=False,
            is_private=True,
        ),
    ] = (),
    stacked: Stacked = (),
    split_fused: SplitFused = False,
    block_pattern: BlockPattern = None,
    **options: Unpack[RunKeywords],
) -> Request:
    """Find the best edit by scores of your own.

    Candidates of edit, wise, lines and stock are written, scored and removed, one after the other: first a
    coarse pass, then neighbours of the best. OUT is what the best of them makes. --resume scores nothing
    twice.

    Example: monosoup search base ft -o out --score 'python eval.py {}'
    """
    sources, where = as_paths(finetuned), os.fspath(output)
    scores, finals = commands_by_name(score), commands_by_name(final_score, "--final-score")
    stacks = as_list(stacked)
    if not 1 <= len(scores) <= MOST_SCORES:
        raise UsageError("--score is needed once or twice", found=f"{len(scores)} of them")
    if {*scores.values()} & {*finals.values()}:
        raise UsageError(
            "--final-score runs the same command as --score",
            expected="a score of data that had no part in the choice",
        )
    if prefer is None and len(scores) > 1:
        first, second = scores
        raise UsageError(
            "of two scores, one must be preferred",
            hint=f"add --prefer {second}, and for example --max-loss {first}=0.5",
        )
    if prefer is not None and prefer not in scores:
        raise UsageError("--prefer names no score", expected=" or ".join(scores), found=prefer)
    if budget < MOST_SCORES:
        raise UsageError("--budget is out of range", expected="at least 2", found=budget)
    preferred = prefer or next(iter(scores))
    losses = _losses(as_list(max_loss), scores, preferred)
    shared: Any = {name: value for name, value in options.items() if name != "progress"}

    def task(candidate: Candidate) -> Task:
        own = {name: given[name] for name in ALL.get(candidate.command, ())}
        return COMMANDS[candidate.command].task(base, sources, where, **candidate.options, **own, **shared)

    given: dict[str, Any] = {"stacked": stacks, "split_fused": split_fused, "block_pattern": block_pattern}
    # what reads and holds the most of all candidates
    method = SharedEdit([MonoSoup()], (0.5,), (Variant(wise=0.5),))
    order = Order(
        method,
        sources,
        where,
        os.fspath(base),
        stacked=stacks,
        split_fused=split_fused,
        arguments={"stacked": stacks},
    )
    return Request(
        order, chooser=_Search(scores, finals, preferred, losses, budget, task, sources, block_pattern)
    )


def _losses(texts: Sequence[str], scores: Iterable[str], preferred: str) -> dict[str, float]:
    """Read how much of the scores that are not preferred may be lost.

    Raises:
        UsageError: A text is not NAME=LOSS, or names no such score.
    """
    losses, others = {}, [name for name in scores if name != preferred]
    for text in texts:
        name, _, amount = str(text).partition("=")
        if name not in (preferred, *others):
            raise UsageError("--max-loss names no score", expected=" or ".join(scores), found=name)
        try:
            losses[name] = float(amount)
        except ValueError:
            losses[name] = math.nan
        if not others:
            raise UsageError("--max-loss needs a second --score, which may lose so much", found=repr(text))
        if name not in others or not 0.0 <= losses[name] < math.inf:
            raise UsageError(
                "--max-loss does not say how much another score than the preferred one may lose",
                expected=" or ".join(f"{other}=0.5" for other in others),
                found=repr(text),
            )
    return losses


@dataclass(frozen=True)
class _Search:
    """Finds what makes the output. Every score is noted as soon as it is known, by the weights' checksum."""

    commands: Mapping[str, str]
    finals: Mapping[str, str]
    prefer: str
    losses: Mapping[str, float]
    candidates: int
    task: Callable[[Candidate], Task]
    sources: Sequence[str]
    block_pattern: str | None
    drafts: int = 1

    @property
    def trials(self) -> int:
        """Every candidate and each of several fine-tuned checkpoints; and the final scores."""
        alone = len(self.sources) if len(self.sources) > 1 else 0
        return (self.candidates + alone) * len(self.commands) + 2 * len(self.finals)

    def check(self, inputs: Inputs, selection: Selection) -> None:
        """Nothing: any candidate that can be written can be scored."""

    def choose(self, context: ChooserContext, partial: PartialOutput | None, progress: Progress) -> Choice:
        """Explore, and choose the best. What it is compared with gets its final score before the budget is
        spent, so that a command that fails does so at once."""
        assert partial is not None
        with _Trials(self, context, partial) as trials:
            return self._choose(context, partial, trials)

    def _choose(self, context: ChooserContext, partial: PartialOutput, trials: _Trials) -> Choice:
        from monosoup_cli.pipeline.task import Choice, command_line

        has_blocks = _has_blocks(list(context.inputs.finetuned[0].tensors), self.block_pattern)
        first = list(coarse(is_of_several=len(self.sources) > 1, has_blocks=has_blocks))
        plain = first[0]
        alone = (
            {self.sources[0]: trials.attempt(plain)}
            if len(self.sources) == 1
            else {source: trials.attempt_alone(plain, number) for number, source in enumerate(self.sources)}
        )
        goal = Goal.within(self.prefer, self.losses, [trial.scores for trial in alone.values()])
        best_alone = goal.best_first(list(alone.values()))[0]
        finetuned = [
            {
                "source": source,
                "scores": dict(trial.scores),
                **(
                    {"final_scores": trials.final_scores(plain, None if len(alone) == 1 else number)}
                    if self.finals and trial is best_alone
                    else {}
                ),
            }
            for number, (source, trial) in enumerate(alone.items())
        ]
        tried = explore(first, trials.attempt, goal, self.candidates)
        chosen = goal.best_first(tried)[0]
        final_scores = trials.final_scores(chosen.candidate) if self.finals else {}
        _note_choice(chosen.candidate.label, partial)
        made = self.task(chosen.candidate)
        search = {
            "scores": [*self.commands],
            "prefer": self.prefer,
            "max_loss": dict(self.losses),
            "budget": self.candidates,
            "finetuned": finetuned,
            "candidates": [
                {
                    "candidate": trial.candidate.label,
                    "scores": dict(trial.scores),
                    **({} if trial.same_as is None else {"same_as": trial.same_as}),
                }
                for trial in tried
            ],
            "front": [trial.candidate.label for trial in front(tried)],
            "chosen": chosen.candidate.label,
            "is_within": not goal.lack(chosen),
            "not_tried": [] if has_blocks else ["lines"],
            "command": command_line(made),
        }
        return Choice(range(len(self.sources)), {}, made, search, final_scores)


class _Trials:
    """Writes candidates, one at a time, and scores them unless their weights were scored before.

    A context manager that removes what candidates share, and when all is well the last candidate, too."""

    def __init__(self, search: _Search, context: ChooserContext, partial: PartialOutput) -> None:
        self._search, self._context, self._partial = search, context, partial
        self._tried: dict[str, Trial] = {}
        self._first: dict[str, tuple[str, str]] = {}
        self._draft: tuple[str, Scored] | None = None
        self._eigenvectors = partial.workplace.path / "eigenvectors"
        self._eigenvectors.mkdir()  # a killed run's may be torn, and are gone: see Workplace.clear
        self._told = ""

    def attempt(self, candidate: Candidate) -> Trial:
        """The scores of a candidate."""
        if candidate.label not in self._tried:
            number = 1 + sum(trial.same_as is None for trial in self._tried.values())
            now = f"{candidate.label}, {number} of at most {self._search.candidates}"
            self._tried[candidate.label] = self._trial(candidate, None, now)
        return self._tried[candidate.label]

    def attempt_alone(self, candidate: Candidate, number: int) -> Trial:
        """The scores of what a candidate makes of one of several fine-tuned checkpoints."""
        return self._trial(candidate, number, self._label(candidate, number))

    def _trial(self, candidate: Candidate, alone: int | None, now: str) -> Trial:
        label, name = self._label(candidate, alone), _weights_of(candidate, alone)
        scores, kept = self._scores(self._search.commands, candidate, alone, now)
        first, first_label = self._first.setdefault(self._partial.notes[name], (name, label))
        same_as = None if first == name else first_label
        self._context.on_score(f"{label}, the same weights as {same_as}" if same_as else label + kept, scores)
        return Trial(candidate, scores, same_as)

    def final_scores(self, candidate: Candidate, alone: int | None = None) -> dict[str, float]:
        """The final scores of what was tried."""
        label = self._label(candidate, alone)
        scores, kept = self._scores(self._search.finals, candidate, alone, f"{label} with --final-score")
        finals = {f"final {name}": score for name, score in scores.items()}
        self._context.on_score(f"{label}{kept}", finals)
        return scores

    def _label(self, candidate: Candidate, alone: int | None) -> str:
        return candidate.label if alone is None else self._search.sources[alone]

    def __enter__(self) -> _Trials:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        from monosoup_cli.pipeline.scoring import remove_drafts

        shutil.rmtree(self._eigenvectors, ignore_errors=True)
        if error is None:
            remove_drafts(self._partial)

    def _scores(
        self, commands: Mapping[str, str], candidate: Candidate, alone: int | None, now: str
    ) -> tuple[dict[str, float], str]:
        """The scores by some commands, and whether an interrupted run has kept them all: ", kept" or ""."""
        from monosoup_cli.pipeline.scoring import score_by

        name, partial = _weights_of(candidate, alone), self._partial
        if name not in partial.notes:
            self._written(candidate, alone, now)
        return score_by(commands, partial.notes[name], lambda: self._written(candidate, alone, now), partial)

    def _written(self, candidate: Candidate, alone: int | None, now: str) -> Scored:
        """The candidate on the disk; its checksum is noted. `now` tells what is scored, where any is."""
        from monosoup_cli.pipeline.scoring import write_draft

        if now != self._told:
            self._context.on_score(now, None)
            self._told = now
        name = _weights_of(candidate, alone)
        if self._draft is None or self._draft[0] != name:
            members = range(len(self._search.sources)) if alone is None else [alone]
            draft, report = write_draft(self._context, self._partial, members, self._task(candidate))
            self._draft = name, draft
            sums = "".join(file["sha256"] for file in report["output"]["files"])
            if name not in self._partial.notes:
                self._partial.note(name, hashlib.sha256(sums.encode()).hexdigest())
        return self._draft[1]

    def _task(self, candidate: Candidate) -> Task:
        """The candidate's task. Its edits share decompositions, as far as the disk has room for them."""
        from monosoup_cli.spectral.kept import KeptEigenvectors

        task = self._search.task(candidate)
        if not isinstance(task.order.method, SpectralEdit):
            return task
        reserve = (self._search.drafts + 1) * self._context.output_bytes
        method = SharedEdit(**vars(task.order.method), solve=KeptEigenvectors(self._eigenvectors, reserve))
        return replace(task, order=replace(task.order, method=method))


def _weights_of(candidate: Candidate, alone: int | None) -> str:
    """Under which name the checksum of the weights is noted."""
    return f"weights of {candidate.label}" if alone is None else f"weights of number {alone}"


def _note_choice(label: str, partial: PartialOutput) -> None:
    """Note what the output is made by: its bytes depend on no other answer of the search.

    Raises:
        ResumeError: Some of the output has been made by another choice.
    """
    before = partial.notes.get("chosen", label)
    if before != label and partial.finished:
        raise ResumeError(
            "the interrupted run had made another choice, and has begun to write it",
            path=partial.workplace.path,
            expected=before,
            found=label,
            hint="rerun with the same arguments, or start over with --overwrite",
        )
    partial.note("chosen", label)


def _has_blocks(names: Sequence[str], pattern: str | None) -> bool:
    """Whether `lines` can be tried."""
    try:
        scales(names, 0.0, 1.0, pattern=pattern)
    except MonosoupError:
        if pattern is not None:
            raise
        return False
    return True
