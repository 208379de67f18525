"""What a call of a command asks for, before any input is opened."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from monosoup_cli.errors import NonfiniteError, ResultOverflowError
from monosoup_cli.options import NO_BASE, Call, RunOptions
from monosoup_cli.outputs.form import OutputKind
from monosoup_cli.outputs.whole import WHOLE
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.engine import Engine, Progress
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.tensors.method import Order
from monosoup_cli.tensors.plan import Selection

__all__ = [
    "Choice",
    "Chooser",
    "ChooserContext",
    "OnScore",
    "Task",
    "command_line",
    "command_words",
    "true_hints",
]


OnScore: TypeAlias = Callable[[str, Mapping[str, float] | None], None]
"""Called before and after a checkpoint is scored: with what it is called, and its scores by name (None before
they are known)."""


@dataclass(frozen=True)
class Choice:
    """What the output is made of.

    Attributes:
        members: Which fine-tuned checkpoints are averaged, in this order.
        selection: What the report says about it.
        task: What is made of them, on the same inputs; None for what the call asks for.
        search: What the report says of a search that has found it.
        scores: The scores of the output, by name, where they are known.
    """

    members: Sequence[int]
    selection: Mapping[str, Any]
    task: Task | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


class ChooserContext(Protocol):
    """What a chooser works with: the opened inputs, an engine, a way to write checkpoints that are scored.

    `output_bytes` is the size of the output, and of a checkpoint beside it.
    """

    inputs: Inputs
    selection: Selection
    engine: Engine
    on_score: OnScore
    output_bytes: int

    def draft(self, members: Sequence[int], output: Path, task: Task | None = None) -> Mapping[str, Any]:
        """Write what a task makes of some of the checkpoints to `output`, and return its report. The default
        is the task of the run."""
        ...


class Chooser(Protocol):
    """Chooses which fine-tuned checkpoints are averaged, before the work.

    `drafts` is how many checkpoints it writes beside the output at a time. A chooser that writes none can
    also choose in a dry run. `trials` is the largest number of times that it runs a score command, and
    `candidates` the largest number of candidates; 0 for one that chooses among the inputs alone.
    """

    @property
    def drafts(self) -> int: ...

    @property
    def trials(self) -> int: ...

    @property
    def candidates(self) -> int: ...

    def check(self, inputs: Inputs, selection: Selection) -> None:
        """Refuse inputs among which there is nothing to choose by.

        Raises:
            UsageError: The headers show that no choice can be made.
        """
        ...

    def choose(self, context: ChooserContext, partial: PartialOutput | None, progress: Progress) -> Choice:
        """Make the choice; `partial` keeps what a resumed run need not do again."""
        ...


@dataclass(frozen=True)
class Task:
    """What a call of a command asks for.

    Attributes:
        call: The command and its arguments.
        options: The options that all writing commands share.
        order: The method and the inputs.
        kind: What is written.
        chooser: Chooses the checkpoints that are averaged; None to average all.
        layers: The settings of layers, by globs over names, which the order's method has.
        notes: What the settings do that their names do not say.
        repeats: The report whose command this is, run again; None for a call of the user's own.
    """

    call: Call
    options: RunOptions
    order: Order
    kind: OutputKind = WHOLE
    chooser: Chooser | None = None
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    repeats: Mapping[str, Any] | None = None


def command_words(
    task: Task, base: str | None, finetuned: Sequence[str], output: str, arguments: Mapping[str, Any]
) -> list[str]:
    """The words of a task's shell command, whose inputs, output and arguments may be called otherwise."""
    order, call = task.order, task.call
    if order.kept == "first":  # ONTO, which is last in the shell
        finetuned = [*finetuned[1:], finetuned[0]]
    if order.base_is_option:
        of_base = [] if base is None else ["--base", base]
    else:
        of_base = [base] if base is not None else [NO_BASE] if order.method.needs_base else []
    return ["monosoup", call.command, *of_base, *finetuned, *call.words(arguments), "-o", output]


def command_line(task: Task) -> str:
    """The shell command of a task."""
    order = task.order
    return shlex.join(command_words(task, order.base, order.finetuned, order.output, task.call.arguments))


def drafts_of(task: Task) -> int:
    """How many checkpoints are written beside the output at a time, to be scored."""
    return 0 if task.chooser is None else task.chooser.drafts


@contextmanager
def true_hints(task: Task) -> Iterator[None]:
    """Correct the hint of a NonfiniteError where the output cannot keep a tensor as fine-tuned."""
    try:
        yield
    except NonfiniteError as error:
        if not (task.kind.keeps_finetuned or isinstance(error, ResultOverflowError)):
            error.hint = "without --as-adapter, --on-nonfinite keep writes a whole checkpoint that keeps it"
        raise
