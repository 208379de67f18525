"""The whole checkpoint: every tensor of the fine-tuned one, edited or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from monosoup_cli.devices.held import Held
from monosoup_cli.outputs.form import Description, OutputContext, Target
from monosoup_cli.outputs.layout import OutputLayout, plan_layout
from monosoup_cli.outputs.side_files import side_files
from monosoup_cli.outputs.tensor_sink import TensorSink
from monosoup_cli.sources.files import Files
from monosoup_cli.tensors.method import Wanted
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor
from monosoup_cli.tensors.together import group_held
from monosoup_cli.tensors.worker import Worker

__all__ = ["WHOLE", "WholeForm", "WholeKind"]

DESCRIPTION = Description()


@dataclass(frozen=True)
class WholeForm:
    """A checkpoint laid out as the (first) fine-tuned one, with its side files."""

    layout: OutputLayout
    model: Files
    lost: Sequence[str] = ()
    description: Description = DESCRIPTION

    def parts(self) -> Mapping[str, Sequence[str]]:
        """Nothing: every tensor is stored as itself."""
        return {}

    def side_files(self) -> list[str]:
        """The side files of the fine-tuned checkpoint; none beside a single file."""
        place = self.model.place
        if place.folder is None or self.layout.is_single_file:
            return []
        taken = self.layout.names
        return [name for name in side_files(place.folder, place.inner) if name not in taken]

    def own_files(self) -> Mapping[str, bytes]:
        """Nothing."""
        return {}

    def wanted(self, tensor: PlannedTensor) -> Wanted:
        """Blocks."""
        return Wanted()

    def held(self, tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """The buffers of the tensor's writers, and of the group that it may be in."""
        return TensorSink.held(tensor, variants, resident_bytes) + group_held(tensor)

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> TensorSink:
        """The tensor's place in the checkpoint."""
        return TensorSink(tensor, target, worker)


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
        opened, model = self.opened, self.opened.first.model
        layout = plan_layout(model, plan.dtypes, opened.path.name, opened.max_shard_bytes)
        return plan, WholeForm(layout, model)


@dataclass(frozen=True)
class WholeKind:
    """Asks for a whole checkpoint."""

    takes_no_base: ClassVar[bool] = False
    keeps_finetuned: ClassVar[bool] = True

    def draft(self, opened: OutputContext) -> WholeDraft:
        """The draft of a whole checkpoint; nothing stands against one."""
        return WholeDraft(opened)


WHOLE = WholeKind()
