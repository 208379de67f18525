"""Score the checkpoints of a complete output by the commands that the user names, before it appears."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monosoup_cli.errors import without_tokens
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.score_command import Scored, noted_score
from monosoup_cli.pipeline.task import ChooserContext, OnScore, Task

__all__ = ["ignore_scores", "remove_drafts", "score_by", "score_variants", "trials_of", "write_draft"]


def remove_drafts(partial: PartialOutput) -> None:
    """Remove the checkpoints that were written beside the output to be scored."""
    for old in partial.workplace.path.glob("draft-*"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def write_draft(
    context: ChooserContext, partial: PartialOutput, members: Sequence[int], task: Task | None = None
) -> tuple[Scored, Mapping[str, Any]]:
    """Write what a task makes of some checkpoints, in the form of the first one, and remove the last draft.

    Returns:
        The draft, and its report.
    """
    remove_drafts(partial)
    suffix = ".safetensors" if context.inputs.finetuned[0].model.place.folder is None else ""
    # a name of its own: what a killed run left may still read the one before
    path = partial.workplace.path / f"draft-{len(partial.notes)}{suffix}"
    report = context.draft(members, path, task)
    return Scored(path, [path] if suffix else _files_in(path), context.inputs.sources), report


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


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
        ScoreError: A command failed, printed no number, or changed a file.
    """
    commands, layout = ready.planned.task.order.scores, ready.form.layout
    if not commands:
        return [{} for _ in ready.variants]
    whole = partial.workplace.path / "files"
    own, scores = _files_in(whole), []
    for variant in ready.variants:
        label = variant.folder or ready.planned.destination.path.name
        path = whole / (layout.files[0].name if layout.is_single_file else variant.folder)

        @functools.cache
        def scored(label: str = label, path: Path = path) -> Scored:
            on_score(label, None)
            return Scored(path, own, ready.planned.inputs.sources)

        found, kept = score_by(commands, variant.folder, scored, partial)
        partial.workplace.open_files.prove_alone()
        on_score(f"{label}{kept}", found)
        scores.append(found)
    return scores


def score_by(
    commands: Mapping[str, str], name: str, scored: Callable[[], Scored], partial: PartialOutput
) -> tuple[dict[str, float], str]:
    """Score a checkpoint by every command.

    Each score is noted as soon as it is known, under the name of the checkpoint and the command, which may be
    another one when the run is resumed.

    Returns:
        The scores by name; and ", kept" where all were noted before, or "".
    """
    notes = {}
    for score, template in commands.items():
        version = hashlib.sha256(without_tokens(template).encode()).hexdigest()[:16]
        notes[score] = f"score {version} {name}"
    kept = ", kept" if partial.notes.keys() >= {*notes.values()} else ""
    scores = {score: noted_score(note, commands[score], scored, partial) for score, note in notes.items()}
    return scores, kept
