"""The model card of a run's output."""

from __future__ import annotations

import os
import shlex
from pathlib import PurePath

from monosoup_cli.outputs.model_card import Parent, library_of, model_card
from monosoup_cli.pipeline.provenance import with_roles
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.task import Choice, command_words
from monosoup_cli.report.words import ROLES, updates_words
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.hub_ids import HubId
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.method import Variant

__all__ = ["make_card"]


def make_card(ready: Ready, variant: Variant, choice: Choice) -> bytes:
    """The model card of a variant, which has the command that makes it again."""
    task, inputs = ready.planned.task, ready.planned.inputs
    name = task.options.writing.push or PurePath(task.order.output).name
    chosen = [inputs.base, *(inputs.finetuned[number] for number in choice.members)]
    parents = [
        Parent(ROLES[role], source.path, source.files.place.repository, source.files.place.revision)
        for role, source in with_roles(inputs)
        if any(source is one for one in chosen)
    ]
    if inputs.base is None:
        parents[:0] = _base_named_by(inputs.finetuned[0].files)
    model = ready.form.model
    names = [] if model.place.folder is None else model.place.folder.names()
    return model_card(
        f"{name} {variant.folder}".strip(),
        _method(ready, variant, choice),
        shlex.join(_command(ready, variant)),
        parents,
        task.order.method.paper.citation,
        inherited=ready.metadata.accepted,
        library=ready.form.description.library or library_of(model.config, names),
        updates=updates_words(
            task.call.command,
            task.call.arguments,
            [role for role, _ in with_roles(inputs)].count("finetuned"),
        ),
        layers=task.layers,
    )


def _method(ready: Ready, variant: Variant, choice: Choice) -> str:
    """What was done, in words."""
    count = len(ready.planned.inputs.finetuned)
    if len(choice.members) == 1 < count:
        return f"The weights of one of {count} fine-tuned checkpoints. No other one joined it in a soup."
    return ready.form.description.text(ready.planned.task.order.method.paper, _steps(variant))


def _steps(variant: Variant) -> set[float]:
    """How far from the base layers then go."""
    return {1.0 if step is None else step for step in (variant.wise, *variant.wise_of.values())}


def _command(ready: Ready, variant: Variant) -> list[str]:
    """The words of the command that makes the variant again. Paths are named by their last component."""
    task, inputs = ready.planned.task, ready.planned.inputs
    return command_words(
        task,
        None if inputs.base is None else _name(inputs.base),
        [_name(source) for source in inputs.finetuned],
        f"{PurePath(task.order.output).name}/{variant.folder}".rstrip("/"),
        {**task.call.arguments, **variant.arguments},
    )


def _name(source: Source) -> str:
    """What to call a checkpoint in a command that others repeat: its id and commit on the Hub, or the last
    component of its path."""
    place = source.files.place
    if place.repository is None:
        return PurePath(source.path).name
    hub_id = HubId.parse(source.path)
    return HubId(place.repository, inner="" if hub_id is None else hub_id.inner).at(place.revision)


def _base_named_by(files: Files) -> list[Parent]:
    """The base of an adapter that is read without one, where the adapter names one on the Hub."""
    name = (files.kind.settings or {}).get("base_model_name_or_path")
    is_name = isinstance(name, str) and not os.path.lexists(name)  # org/name may be a folder here
    hub_id = HubId.parse(str(name)) if is_name else None
    return [Parent("base", hub_id.repository, hub_id.repository, None)] if hub_id else []
