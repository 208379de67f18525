"""What an output can be: a whole checkpoint, or an adapter. Each kind is one file that implements these.

A task asks for an `OutputKind`. Once its inputs are open, the kind makes a `Draft`, which says what the plan
is made from and which tensors must be examined before the layout is known. The draft then becomes an
`OutputForm`, which gives the run a `Sink` for every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from monosoup_cli.adapters.lora import Adapter
from monosoup_cli.devices.held import Held
from monosoup_cli.outputs.layout import OutputLayout
from monosoup_cli.outputs.side_files import SideFiles
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.ingredients import Ingredients
from monosoup_cli.tensors.method import Edit, Layer, Paper, Variant, Wanted
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor
from monosoup_cli.tensors.worker import Worker

__all__ = [
    "AdapterDescription",
    "Description",
    "Draft",
    "OutputContext",
    "OutputForm",
    "OutputKind",
    "Sink",
    "Target",
]


@dataclass(frozen=True)
class OutputContext:
    """What an output kind knows of a task: its opened inputs and where it writes.

    Attributes:
        base: The base; None where there is none.
        finetuned: The fine-tuned checkpoints; adapters are merged into the base.
        adapters: For each fine-tuned checkpoint, the adapter it was merged from, or None.
        path: The path of the output.
        dtype: The dtype of written floating-point tensors in torch's words, or "keep".
        max_shard_bytes: The largest shard to write; None for the fine-tuned checkpoint's own shards.
        side_files: What the user said about side files: "all", "none", and globs.
        weights: The weights of the mean of the checkpoints, which sum to 1; None for an even mean.
        interpolates: Whether a tensor, where it is kept, is interpolated with the base.
    """

    base: Source | None
    finetuned: Sequence[Source]
    adapters: Sequence[Adapter | None]
    path: Path
    dtype: str = "keep"
    max_shard_bytes: int | None = None
    side_files: Sequence[str] = ()
    weights: Sequence[float] | None = None
    interpolates: Callable[[str], bool] = lambda name: False

    @property
    def first(self) -> Source:
        """The fine-tuned checkpoint whose names and layout the output has."""
        return self.finetuned[0]


@dataclass(frozen=True)
class Description:
    """What the model card says about the kind of an output.

    Attributes:
        library: The Hub's name of the library that loads the output; None to infer it from the files.
    """

    library: str | None = None

    def text(self, paper: Paper, steps: Set[float]) -> str:
        """What the output is, by the method that made it, and at which α the base is then mixed in."""
        if len(steps) > 1:
            return f"{paper.summary} Some layers are then interpolated with the base, as their settings say."
        then = f" The result is interpolated with the base at α = {max(steps):g}, biases and norms too."
        return paper.summary if steps == {1.0} else f"{paper.summary}{then}"


@dataclass(frozen=True)
class AdapterDescription(Description):
    """What the model card says about an adapter, which holds updates and not weights.

    Attributes:
        opening: The first sentence.
    """

    library: str | None = "peft"
    opening: str = "A LoRA adapter."

    def text(self, paper: Paper, steps: Set[float]) -> str:
        """What the adapter is, what its updates are, and what they are then multiplied by."""
        then = f" The result is multiplied by {max(steps):g}."
        if len(steps) > 1:
            then = " Some layers are then multiplied, as their settings say."
        return f"{self.opening} {paper.updates}{'' if steps == {1.0} else then}"


@dataclass(frozen=True)
class Target:
    """Where a run writes: the unfinished output, what goes into it, and the checkpoints it consists of."""

    output: PartialOutput
    ingredients: Ingredients
    variants: Sequence[Variant]


class Sink(Protocol):
    """Takes one tensor of the output, in every variant.

    `wanted` says whether a method must deliver blocks or factors. A kept tensor takes one call of `copy`.
    An edited tensor takes `put`, or `keep` where nothing changed, for every matrix, and then `finish`.
    """

    wanted: Wanted

    def put(self, index: int, edit: Edit) -> None:
        """Write what a method made of matrix `index`."""
        ...

    def keep(self, index: int, layer: Layer | None) -> None:
        """Write matrix `index` as fine-tuned; `layer` is what the method saw of it, if it saw a matrix."""
        ...

    def finish(self, *, is_edited: bool) -> None:
        """Write what is left; `is_edited` is False where no matrix of the tensor changed."""
        ...

    def copy(self) -> None:
        """Write a tensor that is not edited."""
        ...

    def restore(self) -> None:
        """Write the tensor exactly as fine-tuned, NaN and Inf included, after an edit that failed."""
        ...


class OutputForm(Protocol):
    """An output whose layout is final.

    Attributes:
        layout: The files and where each tensor lies in them.
        model: The files whose model card and configuration describe the output.
        side_files: The files that are carried beside the weights, and those that are left out.
        description: What the model card says about the output.
        lost: The names of tensors that changed and that the output cannot hold.
    """

    @property
    def layout(self) -> OutputLayout: ...

    @property
    def model(self) -> Files: ...

    @property
    def side_files(self) -> SideFiles: ...

    @property
    def description(self) -> Description: ...

    @property
    def lost(self) -> Sequence[str]: ...

    def parts(self) -> Mapping[str, Sequence[str]]:
        """For each planned tensor that is not stored as itself, the output's tensors that hold it."""
        ...

    def own_files(self) -> Mapping[str, bytes]:
        """Further files of the output, by name; they take the place of side files."""
        ...

    def wanted(self, tensor: PlannedTensor) -> Wanted:
        """Whether the tensor's sink takes blocks or factors."""
        ...

    def held(self, tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """How much memory the tensor's sink takes."""
        ...

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> Sink:
        """Where a tensor goes."""
        ...


class Draft(Protocol):
    """An output whose inputs are open, and whose layout may still depend on tensors that are not read yet.

    `is_foreseeable` is True if `form` gives a layout of at least the right size before anything is examined.
    """

    @property
    def is_foreseeable(self) -> bool: ...

    def headers(self) -> tuple[Headers | None, list[Headers]]:
        """The headers of the base and of the fine-tuned checkpoints that the plan is made from."""
        ...

    def stacked(self) -> Sequence[str]:
        """Further globs over the names of tensors that are stacks of matrices."""
        ...

    def examined(self, plan: Plan) -> Sequence[PlannedTensor]:
        """The tensors that `examine` must read before the layout is known; usually none.

        Raises:
            CheckpointError: The output cannot hold what the plan edits.
        """
        ...

    def examine(self, tensor: PlannedTensor, worker: Worker) -> None:
        """Read a tensor and remember what the layout depends on. Called from several threads."""
        ...

    def form(self, plan: Plan) -> tuple[Plan, OutputForm]:
        """The form, and the plan without the edits that it cannot hold."""
        ...


class OutputKind(Protocol):
    """What a task wants to be written.

    `takes_no_base` is True if an adapter alone is enough for this kind. `keeps_finetuned` is True if tensors
    can stay as fine-tuned in the output. `can_carry_base` is True if it can have
    tensors that only the base has.
    """

    takes_no_base: ClassVar[bool]
    can_carry_base: ClassVar[bool]

    @property
    def keeps_finetuned(self) -> bool: ...

    def draft(self, opened: OutputContext) -> Draft:
        """The output of these inputs.

        Raises:
            UsageError: The options do not fit the inputs or the path of the output.
            CheckpointError: The inputs cannot be written as this kind.
        """
        ...
