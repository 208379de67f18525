"""Execute a task that is ready: choose, make every tensor, publish."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monosoup_cli.outputs.form import Target
from monosoup_cli.outputs.layout import plan_layout
from monosoup_cli.outputs.whole import whole_form
from monosoup_cli.outputs.workplace import finish_replacing
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.destination import Destination
from monosoup_cli.pipeline.engine import Engine, Progress, Threads, ignore
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.pipeline.planned import Planned, plan_on
from monosoup_cli.pipeline.publication import make_identity, make_reports, publish, seal
from monosoup_cli.pipeline.ready import Ready, known_doubts, lay_out, refuse_doubts
from monosoup_cli.pipeline.run import Work, run
from monosoup_cli.pipeline.scoring import ignore_scores, score_variants
from monosoup_cli.pipeline.shares import Share
from monosoup_cli.pipeline.task import Choice, OnScore, Task, true_hints
from monosoup_cli.sources.ties import check_copies
from monosoup_cli.sources.transfer import fetch
from monosoup_cli.tensors.ingredients import Ingredients
from monosoup_cli.tensors.plan import Selection

__all__ = ["choose", "execute", "make_tensors"]


def execute(ready: Ready, progress: Progress = ignore, on_score: OnScore = ignore_scores) -> dict[str, Any]:
    """Make the output and return its report; for a sweep, the report of all its checkpoints.

    The output appears when it is complete, and scored where the task asks for it; after an error there is
    none.

    Raises:
        MonosoupError: The output cannot be made.
    """
    planned = ready.planned
    finish_replacing(planned.destination.path)
    planned.destination.check_path(planned.inputs.sources)
    ready.check()
    fetch(ready.downloads)
    check_copies(planned.inputs.copies, planned.selection.leaves_out)
    destination = planned.destination
    looks = destination.options.strict or destination.report_path is None
    doubts = ready.doubts if looks else known_doubts(ready)
    if destination.options.strict:
        refuse_doubts(doubts)
    return _make(ready, progress, on_score, doubts=doubts)


def _make(
    ready: Ready,
    progress: Progress,
    on_score: OnScore = ignore_scores,
    members: Sequence[int] | None = None,
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the output of the fine-tuned checkpoints `members`, or of those that the task chooses."""
    planned, writing = ready.planned, ready.planned.destination.options
    started, identity = time.monotonic(), make_identity(ready)
    partial = PartialOutput(
        planned.destination.path,
        ready.form.layout,
        identity,
        folders=[variant.folder for variant in ready.variants],
        parts=ready.form.parts(),
        resume=writing.resume,
        overwrite=writing.overwrite,
    )
    with partial:
        choice = Choice(members, {}) if members is not None else choose(ready, partial, progress, on_score)
        if choice.task is not None:
            ready = _ready_for(ready.planned, choice.task)
            planned = ready.planned
        make_tensors(ready, choice, partial, progress)
        sealed = seal(ready, choice, partial, identity)
        scores = [choice.scores] if choice.scores else score_variants(ready, partial, on_score)
        whole, reports = make_reports(ready, choice, identity, partial, sealed, started, scores, doubts)
        return publish(ready, partial, whole, reports)


def make_tensors(ready: Ready, choice: Choice, partial: PartialOutput, progress: Progress) -> None:
    """Make every tensor, or those of a share."""
    planned, inputs = ready.planned, ready.planned.inputs
    ingredients = Ingredients(
        inputs.base if planned.method.needs_base else None,
        [inputs.finetuned[number] for number in choice.members],
        inputs.finetuned[0],
        planned.task.order.weights,
        inputs.base,
        planned.task.order.kept,
    )
    work = Work(
        ready.plan,
        planned.method,
        ready.form,
        Target(partial, ingredients, ready.variants),
        planned.task.options.selecting.on_nonfinite,
        ready.share.names,
    )
    with true_hints(planned.task):
        run(work, Threads(ready.resources.places, ready.resources.substitute), progress)
    for source in inputs.sources:
        source.check_unchanged()


def _ready_for(planned: Planned, task: Task) -> Ready:
    """Another task on the inputs of a run, which writes the same files."""
    return lay_out(plan_on(planned.inputs, task, planned.destination, planned.devices))


def choose(
    ready: Ready,
    partial: PartialOutput | None,
    progress: Progress = ignore,
    on_score: OnScore = ignore_scores,
) -> Choice:
    """The fine-tuned checkpoints that are averaged: all, unless the task chooses among them."""
    chooser = ready.planned.task.chooser
    if chooser is None:
        return Choice(range(len(ready.planned.inputs.finetuned)), {})
    return chooser.choose(_Context(ready, on_score), partial, progress)


class _Context:
    """What a chooser works with."""

    def __init__(self, ready: Ready, on_score: OnScore) -> None:
        self._ready = ready
        self.on_score = on_score
        self.output_bytes = ready.form.layout.nbytes
        self.inputs: Inputs = ready.planned.inputs
        self.selection: Selection = ready.planned.selection
        self.engine: Engine = Threads(ready.resources.places, ready.resources.substitute)

    def draft(self, members: Sequence[int], output: Path, task: Task | None = None) -> Mapping[str, Any]:
        """Write a checkpoint to `output`, in the layout of the first one, and return its report."""
        ready = self._ready if task is None else _ready_for(self._ready.planned, task)
        planned, plan = ready.planned, ready.plan
        writing = replace(
            planned.destination.options, report=None, overwrite=True, resume=False, push=None, public=False
        )
        shard_bytes = None if output.suffix == ".safetensors" else planned.task.options.storing.shard_bytes
        layout = plan_layout(ready.form.model, plan.dtypes, output.name, shard_bytes, plan.shapes)
        alone = replace(planned.task, chooser=None)
        draft = Ready(
            replace(planned, task=alone, destination=Destination(output, writing)),
            plan,
            whole_form(self.inputs.finetuned[0], layout, planned.task.options.storing.dtype),
            ready.resources,
            Share(plan.tensors, layout),
        )
        draft.check()
        return _make(draft, ignore, members=members)
