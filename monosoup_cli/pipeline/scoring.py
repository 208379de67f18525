"""Score the checkpoints of a complete output by the commands that the user names, before it appears."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from monosoup_cli.errors import without_tokens
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.score_command import noted_score
from monosoup_cli.pipeline.task import ChooserContext, OnScore

__all__ = ["ignore_scores", "new_draft", "remove_drafts", "score_by", "score_variants", "trials_of"]


def remove_drafts(partial: PartialOutput) -> None:
    """Remove the checkpoints that were written beside the output to be scored."""
    for old in partial.workplace.path.glob("draft-*"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def new_draft(context: ChooserContext, partial: PartialOutput) -> Path:
    """The path of the next draft, in the form of the first fine-tuned checkpoint; removes the last draft."""
    remove_drafts(partial)
    suffix = ".safetensors" if context.inputs.finetuned[0].model.place.folder is None else ""
    # a name of its own: what a killed run left may still read the one before
    return partial.workplace.path / f"draft-{len(partial.notes)}{suffix}"


def ignore_scores(label: str, scores: Mapping[str, float] | None) -> None:
    """Nothing."""


def trials_of(ready: Ready) -> int:
    """The largest number of times that score commands run."""
    task = ready.planned.task
    of_choice = 0 if task.chooser is None else task.chooser.trials
    return of_choice + len(task.order.scores) * len(ready.variants)


def score_variants(ready: Ready, partial: PartialOutput, on_score: OnScore) -> list[dict[str, float]]:
    """The scores of every checkpoint of the output, by name; empty where none are asked for.

    Raises:
        OutputError: A command left something in the checkpoint.
        ScoreError: A command failed, or printed no number.
    """
    commands, layout = ready.planned.task.order.scores, ready.form.layout

    def place(folder: str) -> Path:
        path = partial.workplace.path / "files" / folder
        return path / layout.files[0].name if layout.is_single_file else path

    scores = []
    for variant in ready.variants if commands else ():
        label = variant.folder or ready.planned.destination.path.name
        on_score(label, None)
        path = functools.partial(place, variant.folder)
        scores.append(score_by(commands, variant.folder, path, partial))
        partial.workplace.open_files.prove_alone()
        on_score(label, scores[-1])
    return scores or [{} for _ in ready.variants]


def score_by(
    commands: Mapping[str, str], name: str, path: Callable[[], Path], partial: PartialOutput
) -> dict[str, float]:
    """The score of a checkpoint by every command. Each is noted as soon as it is known, under the name of
    the checkpoint and the command, which may be another one when the run is resumed."""
    scores = {}
    for score, template in commands.items():
        version = hashlib.sha256(without_tokens(template).encode()).hexdigest()[:16]
        scores[score] = noted_score(f"score {version} {name}", template, path, partial)
    return scores
