"""The whole checkpoint: every tensor of the fine-tuned one, edited or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from monosoup_cli.devices.held import Held
from monosoup_cli.outputs.facts import true_facts
from monosoup_cli.outputs.form import Description, OutputContext, Target
from monosoup_cli.outputs.layout import OutputLayout, plan_layout
from monosoup_cli.outputs.side_files import SideFiles, side_files
from monosoup_cli.outputs.tensor_sink import TensorSink
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.method import Wanted
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor
from monosoup_cli.tensors.together import group_held
from monosoup_cli.tensors.worker import Worker

__all__ = ["WHOLE", "WholeForm", "WholeKind", "whole_form"]

DESCRIPTION = Description()
NO_SIDE_FILES = SideFiles()


@dataclass(frozen=True)
class WholeForm:
    """A checkpoint laid out as the (first) fine-tuned one, with its side files.

    `rewritten` has those of them that say what is no longer true.
    """

    layout: OutputLayout
    model: Files
    side_files: SideFiles = NO_SIDE_FILES
    rewritten: Mapping[str, bytes] = field(default_factory=dict)
    lost: Sequence[str] = ()
    description: Description = DESCRIPTION
    _held: dict[object, Held] = field(default_factory=dict, init=False)
    """What was answered before: models have few kinds of matrices."""

    def parts(self) -> Mapping[str, Sequence[str]]:
        """Nothing: every tensor is stored as itself."""
        return {}

    def own_files(self) -> Mapping[str, bytes]:
        """The side files that are not copied as they are."""
        return self.rewritten

    def wanted(self, tensor: PlannedTensor) -> Wanted:
        """Blocks."""
        return Wanted()

    def held(self, tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """The buffers of the tensor's writers, and of the group that it may be in."""
        kind = tensor.matrices, tensor.stored_dtype, variants, resident_bytes
        if kind not in self._held:
            self._held[kind] = TensorSink.held(tensor, variants, resident_bytes)
        return self._held[kind] + group_held(tensor)

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> TensorSink:
        """The tensor's place in the checkpoint."""
        return TensorSink(tensor, target, worker)


def whole_form(first: Source, layout: OutputLayout, dtype: str, wanted: Sequence[str] = ()) -> WholeForm:
    """A whole checkpoint with the side files that belong to it; a single file has none.

    Args:
        first: The (first) fine-tuned checkpoint.
        layout: The files of weights.
        dtype: The dtype of written floating-point tensors in torch's words, or "keep".
        wanted: What the user said about side files.
    """
    model = first.model
    if layout.is_single_file:
        return WholeForm(layout, model)
    adapter = None if first.files is model else first.files
    beside = side_files(model, wanted, adapter=adapter, taken=layout.names)
    return WholeForm(layout, model, beside, true_facts(model, layout, beside, dtype))


@dataclass(frozen=True)
class WholeDraft:
    """A whole checkpoint, whose layout follows from the headers."""

    opened: OutputContext
    is_foreseeable: ClassVar[bool] = True

    def headers(self) -> tuple[Headers | None, list[Headers]]:
        """The headers of the inputs as they are."""
        base = self.opened.base
        return None if base is None else base.tensors, [source.tensors for source in self.opened.finetuned]

    def stacked(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def examined(self, plan: Plan) -> Sequence[PlannedTensor]:
        """Nothing: the layout follows from the headers."""
        return ()

    def examine(self, tensor: PlannedTensor, worker: Worker) -> None:
        """Never called."""
        raise AssertionError("the layout of a whole checkpoint follows from the headers")

    def form(self, plan: Plan) -> tuple[Plan, WholeForm]:
        """The layout of the (first) fine-tuned checkpoint, one file, or shards of the size asked for."""
        opened, first = self.opened, self.opened.first
        layout = plan_layout(first.model, plan.dtypes, opened.path.name, opened.max_shard_bytes, plan.shapes)
        return plan, whole_form(first, layout, opened.dtype, opened.side_files)


@dataclass(frozen=True)
class WholeKind:
    """Asks for a whole checkpoint."""

    takes_no_base: ClassVar[bool] = False
    can_carry_base: ClassVar[bool] = True
    keeps_finetuned: ClassVar[bool] = True

    def draft(self, opened: OutputContext) -> WholeDraft:
        """The draft of a whole checkpoint; nothing stands against one."""
        return WholeDraft(opened)


WHOLE = WholeKind()
