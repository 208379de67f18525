"""What the commands have in common: how they run, what their model card says, what they are called with."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import PurePath
from typing import Any, ParamSpec, Protocol, TypeAlias

from monosoup_cli.adapters.merged import MergedCheckpoint
from monosoup_cli.errors import UsageError
from monosoup_cli.outputs.model_card import (
    CARD_NAME,
    Parent,
    has_card,
    library_of,
    model_card,
    read_card_metadata,
)
from monosoup_cli.pipeline.engine import Progress
from monosoup_cli.pipeline.job import Choice, Job
from monosoup_cli.pipeline.options import RunOptions
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.hub import HubId
from monosoup_cli.tensors.method import Variant

__all__ = ["Paper", "StrPath", "card", "paths", "running"]

StrPath: TypeAlias = "str | os.PathLike[str]"
P = ParamSpec("P")


class Prepared(Protocol):
    """A command that only `run` is missing to; a context manager, because it holds files."""

    def run(self, progress: Progress | None = None) -> dict[str, Any]: ...

    def __enter__(self) -> Prepared: ...

    def __exit__(self, *_: object) -> None: ...


def running(prepare: Callable[P, Prepared]) -> Callable[P, dict[str, Any]]:
    """From a function that prepares a command, the one that runs it and returns the report."""

    @wraps(prepare)
    def command(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        progress: Any = kwargs.pop("progress", None)
        with prepare(*args, **kwargs) as job:
            report = job.run(progress)
            if isinstance(job, Job) and job.options.push is not None:
                job.push()
            return report

    command.__name__ = command.__qualname__ = prepare.__name__.removeprefix("prepare_")
    return command


def paths(sources: StrPath | Sequence[StrPath], *, at_least: int = 1) -> list[str]:
    """The fine-tuned checkpoints as strings; raises UsageError where there are too few."""
    names = [os.fspath(s) for s in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if len(names) < at_least:
        raise UsageError("too few fine-tuned checkpoints", expected=f"at least {at_least}", found=len(names))
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise UsageError("a fine-tuned checkpoint is given twice", path=twice[0])
    return names


@dataclass(frozen=True)
class Paper:
    """What a model card says of a method: a sentence or two, and what to cite."""

    summary: str
    citation: str


def card(
    prepare: Callable[..., Job], arguments: Mapping[str, Any], options: RunOptions, paper: Paper
) -> Callable[[Job, Variant, Choice], bytes]:
    """The maker of a command's model cards, which name the options that are not the defaults."""
    command = prepare.__name__.removeprefix("prepare_")
    defaults = {name: each.default for name, each in inspect.signature(prepare).parameters.items()}
    defaults |= asdict(RunOptions())

    def make(job: Job, variant: Variant, choice: Choice) -> bytes:
        given = {**arguments, **asdict(options), **variant.arguments}
        words = ["monosoup", command, *_inputs(job)]
        for name, value in given.items():
            if name not in SHOWN_OTHERWISE and value != defaults[name]:
                words += _option(name, value)
        output = PurePath(given["output"])
        words += ["-o", f"{output.name}/{variant.folder}".rstrip("/")]
        used = [*([("base", job.base)] if job.base else [])]
        used += [("fine-tuned", job.finetuned[number]) for number in choice.members]
        parents = [Parent(role, each.source, each.repository, each.revision) for role, each in used]
        parents[:0] = [] if job.base else _named_base(job.finetuned[0])
        first = job.model
        names = [] if first.folder is None else first.folder.names()
        library = "peft" if job.adapter is not None else library_of(first.config, names)
        return model_card(
            f"{options.push or output.name} {variant.folder}".strip(),
            paper.summary,
            shlex.join(words),
            parents,
            paper.citation,
            inherited=_own_card(first),
            library=library,
        )

    return make


def _named_base(finetuned: Checkpoint) -> list[Parent]:
    """The base of an adapter that is read without one, where it names one on the Hub."""
    config = finetuned.adapter.config if isinstance(finetuned, MergedCheckpoint) else {}
    name = config.get("base_model_name_or_path")
    where = HubId.parse(name) if isinstance(name, str) else None
    return [Parent("base", where.repository, where.repository, None)] if where else []


def _inputs(job: Job) -> list[str]:
    """The checkpoints, as they stand on a command line."""
    finetuned = [_pinned(checkpoint) for checkpoint in job.finetuned]
    if "base" not in job.recipe.arguments:
        return finetuned
    base = "-" if job.base is None else _pinned(job.base)
    if job.recipe.base_is_option:
        return finetuned if job.base is None else ["--base", base, *finetuned]
    return [base, *finetuned]


def _pinned(checkpoint: Checkpoint) -> str:
    """What to call a checkpoint in a command that others repeat: on the Hub by its commit, on a disk by the
    last component of its path."""
    if checkpoint.repository is None:
        return PurePath(checkpoint.source).name
    where = HubId.parse(checkpoint.source)
    pinned = f"{checkpoint.repository}@{checkpoint.revision}"
    return pinned if where is None or not where.inner else f"hf://{pinned}/{where.inner}"


def _own_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint's own model card hands on."""
    folder = checkpoint.folder
    if folder is None or not has_card(folder):
        return {}
    file = folder.open(CARD_NAME)
    try:
        return read_card_metadata(file.read(file.nbytes).decode(errors="replace"))
    finally:
        file.close()


SHOWN_OTHERWISE = {
    "base",
    "finetuned",
    "output",
    "device",
    "workers",
    "report",
    "overwrite",
    "resume",
    "max_shard_size",
    "push",
    "public",
}


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{name}"]
    if name in LISTED:
        return [flag, ",".join(str(each) for each in value)]
    if name in PRIVATE:
        return [flag, "…"]
    return [word for each in (value if isinstance(value, list) else [value]) for word in (flag, str(each))]


LISTED = {"weights"}
PRIVATE = {"score_command", "scores"}
"""What may name places, or hold secrets, that a published model card should not."""
