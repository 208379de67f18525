"""`soup`: uniform, weighted and greedy model soups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from monosoup_cli.api.command import Paper, StrPath, card, paths, running
from monosoup_cli.api.scores import check_template, run_score_command, scores_of
from monosoup_cli.errors import UsageError
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.engine import Progress
from monosoup_cli.pipeline.job import Choice, Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions
from monosoup_cli.tensors.method import Edit

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.methods.model_soup import Trial
    from monosoup_cli.tensors.flat import FlatLayer

__all__ = ["Accept", "average", "prepare_soup", "soup"]

Accept = Literal["ge", "gt"]

Watch: TypeAlias = "Callable[[str, Trial | None, int], None]"
"""Told of the greedy soup's steps: a source and the number of checkpoints that are being scored,
then the same with the trial that came of it."""

MODEL_SOUP = Paper(
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


def average(layer: FlatLayer) -> Edit | None:
    """The (weighted) mean of the checkpoints; of one alone there is nothing to do."""
    if layer.count == 1:
        return None

    def blocks() -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop in layer.ranges():
            yield start, stop, [layer.mean(start, stop)]

    return Edit([{}], blocks())


def prepare_soup(
    finetuned: Sequence[StrPath],
    output: StrPath,
    *,
    base: StrPath | None = None,
    weights: Sequence[float] | None = None,
    greedy: bool = False,
    score_command: str | None = None,
    scores: StrPath | Mapping[str, float] | None = None,
    accept: Accept = "ge",
    watch: Watch | None = None,
    **options: Unpack[RunKeywords],
) -> Job:
    """A model soup: the uniform mean, a weighted mean, or the greedy soup.

    The command `monosoup soup` (docs/cli.md). `base`: of LoRA adapters. `weights`: one for each
    checkpoint, scaled to sum 1. `greedy`: candidates are added, best first, while the score of the mean
    does not fall; `score_command` is run through the shell with {} replaced by a checkpoint's path, and
    the last line it prints is the score, higher is better. `scores` (a mapping or a JSON file, path →
    number) gives the order, which else takes a run of the command for each. `accept`: "gt" wants the score
    to rise. `watch` is told of every trial. Returns the report; raises
    `monosoup_cli.errors.MonosoupError`.
    """
    from monosoup_cli.methods.model_soup import normalised

    sources = paths(finetuned, at_least=2)
    if weights is not None and len(weights) != len(sources):
        raise UsageError("weights do not fit", expected=f"{len(sources)} of them", found=len(weights))
    if accept not in get_args(Accept):
        raise UsageError("unknown accept", expected=", ".join(get_args(Accept)), found=accept)
    if greedy:
        if score_command is None:
            raise UsageError("--greedy needs --score-command: it scores every trial")
        if weights is not None:
            raise UsageError("weights and greedy exclude each other: the greedy soup is uniform")
        check_template(score_command)
    elif score_command is not None or scores is not None or accept != "ge":
        raise UsageError("--score-command, --scores and --accept are for --greedy")
    run_options = RunOptions.given(**options)
    arguments: dict[str, Any] = {
        "base": None if base is None else os.fspath(base),
        "finetuned": sources,
        "output": os.fspath(output),
        "weights": None if weights is None else list(weights),
        "greedy": greedy,
        "score_command": score_command,
        "scores": None if scores is None else scores_of(scores, sources),
        "accept": accept,
    }
    recipe = Recipe(
        command="soup",
        verb="average",
        arguments=arguments,
        method=average,
        card=card(prepare_soup, arguments, run_options, MODEL_SOUP),
        needs_base=False,
        base_is_option=True,
        weights=None if weights is None else normalised(weights),
        choose=_Greedy(arguments, watch or _ignore) if greedy else None,
        drafts=int(greedy),
    )
    return prepare(recipe, run_options)


soup = running(prepare_soup)


def _ignore(source: str, trial: object, count: int) -> None:
    pass


class _Greedy:
    """Chooses the members of the greedy soup; every score is noted as soon as it is known."""

    def __init__(self, arguments: Mapping[str, Any], watch: Watch) -> None:
        self.sources: list[str] = arguments["finetuned"]
        self.template: str = arguments["score_command"]
        self.given: Mapping[str, float] | None = arguments["scores"]
        self.is_strict = arguments["accept"] == "gt"
        self.watch = watch

    def __call__(self, job: Job, partial: PartialOutput | None, progress: Progress) -> Choice:
        from monosoup_cli.methods.model_soup import best_first, greedy

        assert partial is not None
        numbers = range(len(self.sources))
        if self.given is None:
            scores = [self._score([number], job, partial) for number in numbers]
        else:
            scores = [self.given[source] for source in self.sources]
        order = best_first(scores)
        trials = []
        for trial in greedy(order, lambda members: self._score(members, job, partial), strict=self.is_strict):
            trials.append(trial)
            self.watch(self.sources[trial.candidate], trial, len(trials))
        members = [trial.candidate for trial in trials if trial.joined]
        selection = {
            "scores": [{"source": self.sources[n], "score": scores[n]} for n in numbers],
            "order": [self.sources[number] for number in order],
            "trials": [
                {"candidate": self.sources[each.candidate], "score": each.score, "joined": each.joined}
                for each in trials
            ],
            "members": [self.sources[number] for number in members],
        }
        return Choice(members, selection)

    def _score(self, members: Sequence[int], job: Job, partial: PartialOutput) -> float:
        """The score of the uniform mean of some checkpoints, of one alone where it is."""
        name = f"score {' '.join(str(number) for number in members)}"
        if name not in partial.notes:
            self.watch(self.sources[members[-1]], None, len(members))
            first = job.finetuned[members[0]]
            is_whole = len(members) == 1 and first.model is first  # an adapter is scored merged
            path: StrPath = first.place if is_whole else self._draft(members, job, partial)
            partial.note(name, run_score_command(self.template, path))
        return float(partial.notes[name])

    def _draft(self, members: Sequence[int], job: Job, partial: PartialOutput) -> Path:
        """The mean of some checkpoints, in the form in which they were given; only one at a time."""
        for old in partial.workplace.glob("draft-*"):
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
        suffix = ".safetensors" if job.model.folder is None else ""
        # a name of its own: what a killed run left may still read the one before
        draft = partial.workplace / f"draft-{len(partial.notes)}{suffix}"
        job.draft(members, draft)
        return draft
