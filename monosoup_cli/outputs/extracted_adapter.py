"""A new adapter that holds the edited updates of whole checkpoints in factors of low rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, ClassVar

from monosoup_cli.adapters.file_names import as_file
from monosoup_cli.adapters.layout import AdapterLayout, factor_shapes, lay_out_adapter
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import CheckpointError, UsageError, masked
from monosoup_cli.formats.dtypes import BITS
from monosoup_cli.formats.header import Header, build_header
from monosoup_cli.names import FileForm
from monosoup_cli.outputs.factor_sink import FactorSink
from monosoup_cli.outputs.form import AdapterDescription, Description, OutputContext, Sink, Target
from monosoup_cli.outputs.layout import OutputFile, OutputLayout
from monosoup_cli.outputs.side_files import SideFiles, side_files
from monosoup_cli.outputs.tensor_sink import TensorSink
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.library_files import ADAPTER_CONFIG
from monosoup_cli.sources.locate import parts_of
from monosoup_cli.sources.source import Source, are_unchanged
from monosoup_cli.tensors.chunks import are_equal
from monosoup_cli.tensors.matrix import matrix_layer
from monosoup_cli.tensors.method import AdapterOrder, Edit, Layer, Wanted, overflow_in
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor, Reason, output_dtype
from monosoup_cli.tensors.ranks import FactorBytes, RankRule
from monosoup_cli.tensors.worker import Worker

__all__ = ["ExtractedAdapterDraft", "ExtractedAdapterForm", "ExtractedAdapterKind"]


WEIGHTS = "adapter_model.safetensors"
LONGER = 16
"""How many bytes longer a factor's entry in the header is at a high rank than at rank 1, at most."""

DESCRIPTION = AdapterDescription(
    opening="A LoRA adapter extracted from the edited updates of a whole checkpoint."
)


@dataclass(frozen=True)
class ExtractedAdapterKind:
    """Asks for a new adapter of the updates of the inputs, which are whole checkpoints or adapters.

    Attributes:
        ranks: The rank of all factors, or what finds the rank of each.
        description: What the model card says.
        form: None for a folder for peft, or whose names a single file has.
        holds_excluded: Whether it stores what is left out, as fine-tuned, if that changed.
    """

    ranks: int | RankRule
    description: AdapterDescription = DESCRIPTION
    form: FileForm | None = None
    holds_excluded: bool = True
    takes_no_base: ClassVar[bool] = False
    can_carry_base: ClassVar[bool] = False
    keeps_finetuned: ClassVar[bool] = False

    @classmethod
    def of(cls, asked: AdapterOrder) -> ExtractedAdapterKind:
        """The kind that an order of an adapter asks for."""
        description = AdapterDescription(opening=asked.opening)
        return cls(asked.ranks, description, asked.form, asked.holds_excluded)

    def draft(self, opened: OutputContext) -> ExtractedAdapterDraft:
        """The draft of the adapter.

        Raises:
            UsageError: The output is a single file, and should be a folder, or the reverse.
        """
        assert opened.base is not None
        is_file = opened.path.suffix == ".safetensors"
        if is_file and self.form is None:
            raise UsageError("an adapter needs a folder as output", path=opened.path)
        if self.form is not None and not is_file:
            raise UsageError(
                f"an adapter with the names of {self.form} is a file",
                expected=f"{opened.path}.safetensors",
                found=opened.path,
            )
        return ExtractedAdapterDraft(opened, opened.base, self)


@dataclass(frozen=True)
class ExtractedAdapterForm:
    """A LoRA adapter for peft, with factors of the ranks asked for; tensors that have no factors are stored
    whole, as far as peft can load them."""

    adapter: AdapterLayout
    stored: Mapping[str, tuple[str, ...]]
    layout: OutputLayout
    model: Files
    side_files: SideFiles
    lost: Sequence[str] = ()
    description: Description = DESCRIPTION

    def parts(self) -> Mapping[str, Sequence[str]]:
        """The factors, the tensor of another name, or nothing, for every planned tensor."""
        return self.stored

    def own_files(self) -> Mapping[str, bytes]:
        """The configuration of the adapter; a single file has none."""
        if self.layout.is_single_file:
            return {}
        text = json.dumps(masked(self.adapter.config), indent=1, allow_nan=False)
        return {ADAPTER_CONFIG: text.encode() + b"\n"}

    def wanted(self, tensor: PlannedTensor) -> Wanted:
        """Factors for what is stored as factors, otherwise blocks."""
        pair = self.adapter.pairs.get(tensor.name)
        return Wanted() if pair is None else Wanted(factors=True, rank=pair.rank)

    def held(self, tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """The factors, or the buffers of a tensor that is stored whole."""
        pair = self.adapter.pairs.get(tensor.name)
        if pair is not None:
            return FactorSink.held(factor_shapes(pair), variants)
        if tensor.name not in self.adapter.carried:
            return Held()
        return TensorSink.held(tensor, variants, resident_bytes)

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> Sink:
        """The factors of a tensor, all of it under another name, or nothing."""
        pair = self.adapter.pairs.get(tensor.name)
        if pair is not None:  # factors are zero where nothing is written
            return FactorSink(tensor, pair, target, lambda is_checked: None)
        stored = self.adapter.carried.get(tensor.name)
        return _Nothing() if stored is None else _CarriedSink(tensor, target, worker, stored)


class _CarriedSink(TensorSink):
    """A tensor that the adapter stores whole; where it is not edited, it is the mean of the inputs."""

    def copy(self) -> None:
        self.keep(0)
        super().finish(is_edited=False)

    def finish(self, *, is_edited: bool) -> None:
        if is_edited:
            super().finish(is_edited=True)
        else:
            self.copy()


class _Nothing:
    """Drops a tensor that the adapter does not hold."""

    wanted = Wanted()

    def put(self, index: int, edit: Edit) -> None:
        raise AssertionError("the plan edits no tensor that the adapter does not hold")

    def keep(self, index: int, layer: Layer | None) -> None:
        pass

    def finish(self, *, is_edited: bool) -> None:
        pass

    def copy(self) -> None:
        pass

    def restore(self) -> None:
        pass


@dataclass(frozen=True)
class ExtractedAdapterDraft:
    """An adapter whose layout depends on which tensors moved, and on ranks that may follow from the updates.

    Attributes:
        opened: The inputs.
        base: The base that the updates are taken from.
        kind: What the user asked for.
    """

    opened: OutputContext
    base: Source
    kind: ExtractedAdapterKind
    _measured: dict[str, Any] = field(default_factory=dict)
    _moved: dict[str, bool] = field(default_factory=dict)

    @property
    def ranks(self) -> int | RankRule:
        """The rank of all factors, or what finds the rank of each."""
        return self.kind.ranks

    @property
    def is_foreseeable(self) -> bool:
        """Whether all ranks are given. Then the largest adapter is one in which every tensor moved."""
        return isinstance(self.ranks, int)

    def headers(self) -> tuple[Headers | None, list[Headers]]:
        """The headers of the inputs as they are."""
        return self.base.tensors, [source.tensors for source in self.opened.finetuned]

    def stacked(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def examined(self, plan: Plan) -> Sequence[PlannedTensor]:
        """All layers where ranks follow from an energy; and every tensor that may not get factors, to know
        whether it moved."""
        pairs = self._lay_out(plan, {}, lambda name: True).pairs
        return [
            tensor
            for tensor in plan.tensors
            if tensor.name not in pairs or (not self.is_foreseeable and _can_be_factored(tensor))
        ]

    def examine(self, tensor: PlannedTensor, worker: Worker) -> None:
        """Find the rank of a layer, or whether another tensor moved."""
        if not isinstance(self.ranks, int) and _can_be_factored(tensor):
            assert tensor.matrices is not None
            cut, opened = tensor.matrices.cut, self.opened
            layer = matrix_layer(
                tensor.name, cut, 0, self.base, opened.finetuned, worker, weights=opened.weights
            )
            with overflow_in(layer, tensor.name):
                measured = self.ranks.measure(layer)
            self._moved[tensor.name] = measured is not None
            if measured is not None:
                self._measured[tensor.name] = measured
        else:
            self._moved[tensor.name] = self._has_moved(tensor, worker)

    def _has_moved(self, tensor: PlannedTensor, worker: Worker) -> bool:
        """Whether a tensor differs from the base's in one of the checkpoints.

        Raises:
            NonfiniteError: It has NaN or Inf in one of them, and is checked.
        """
        # all are compared, to see every NaN
        equals = [
            are_equal(self.base, source, tensor.name, worker, is_checked=tensor.reads.is_checked)
            for source in self.opened.finetuned
        ]
        return not all(equals)

    def _may_have_moved(self, name: str) -> bool:
        """Whether a tensor was found to have moved; before it is examined, as headers tell."""
        found = self._moved.get(name)
        return not are_unchanged(name, self.opened.finetuned) if found is None else found

    def _lay_out(
        self, plan: Plan, ranks: Mapping[str, int], has_moved: Callable[[str], bool]
    ) -> AdapterLayout:
        """The adapter's tensors, for these ranks and these tensors that moved. A layer that has no rank there
        gets the one that is given, or 1."""
        given = self.ranks if isinstance(self.ranks, int) else 1
        ranks = {
            tensor.name: min(ranks.get(tensor.name, given), tensor.matrices.cut.side)
            for tensor in plan.edited
            if _can_be_factored(tensor) and tensor.matrices is not None
        }
        others = [
            tensor.name
            for tensor in plan.tensors
            if tensor.name not in ranks
            and (tensor.is_edited or has_moved(tensor.name))
            and (self.kind.holds_excluded or tensor.reason != "excluded")
        ]
        shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
        place = self.base.files.place
        name = place.repository or PurePath(place.source).name
        config = self.opened.first.model.config or self.base.model.config
        adapter = lay_out_adapter(shapes, ranks, others, config, name)
        if self.kind.form is not None:
            adapter = as_file(adapter, *self._part(), form=self.kind.form)
        if not adapter.pairs:
            path = self.opened.first.path
            raise CheckpointError("peft can give LoRA factors to none of the layers that changed", path=path)
        return adapter

    def form(self, plan: Plan) -> tuple[Plan, ExtractedAdapterForm]:
        """The adapter for the ranks and the moved tensors that were found; before, as if all had moved."""
        adapter = self._lay_out(plan, self._found_ranks(plan), self._may_have_moved)
        stored: dict[str, tuple[str, ...]] = {tensor.name: () for tensor in plan.tensors}
        stored |= {name: (pair.a, pair.b) for name, pair in adapter.pairs.items()}
        stored |= {name: (own,) for name, own in adapter.carried.items()}
        tensors = tuple(
            tensor
            if not tensor.is_edited or stored[tensor.name]
            else replace(tensor, reason=self._why_left(tensor.name), matrices=None)
            for tensor in plan.tensors
        )
        is_file = self.kind.form is not None
        name = self.opened.path.name if is_file else WEIGHTS
        layout = OutputLayout((OutputFile(name, self._header(plan, adapter)),), None, is_file)
        lost = [name for name in adapter.left if self._may_have_moved(name)]
        model, wanted = self.opened.first.model, self.opened.side_files
        asked = side_files(
            model, ["none", *wanted] if "all" not in wanted else wanted, taken=(WEIGHTS, ADAPTER_CONFIG)
        )
        return Plan(tensors), ExtractedAdapterForm(
            adapter, stored, layout, model, SideFiles(asked.carried), lost, self.kind.description
        )

    def _why_left(self, name: str) -> Reason:
        """Why a tensor has no part in the adapter."""
        if not self._may_have_moved(name):
            return "unchanged"
        return "no_room" if name in self._measured else "excluded"

    def _part(self) -> tuple[str, bool]:
        """The part of a pipeline that the adapter changes, and whether that has a second text encoder.

        Raises:
            UsageError: It is no part of a pipeline.
        """
        place = self.base.files.place
        part = place.inner.rstrip("/")
        if place.folder is None or not part:
            raise UsageError(
                f"a file with the names of {self.kind.form} is for a part of a pipeline's folder",
                path=self.base.path,
                hint="without --form, it is a folder for peft",
            )
        return part, "text_encoder_2" in parts_of(place.folder)

    def _found_ranks(self, plan: Plan) -> Mapping[str, int]:
        """The ranks that the updates were found to take; empty where all are given."""
        if isinstance(self.ranks, int):
            return {}
        unmoved = {name: 0 for name, has_moved in self._moved.items() if not has_moved}

        def least(names: Collection[str]) -> tuple[AdapterLayout, Header]:
            """The adapter with factors of rank 1 for these layers alone."""
            ranks = dict.fromkeys(self._measured, 0) | dict.fromkeys(names, 1) | unmoved
            adapter = self._lay_out(plan, ranks, self._may_have_moved)
            return adapter, self._header(plan, adapter)

        def others(names: Collection[str]) -> int:
            adapter, header = least(names)
            stored = sum(header.tensors[name].nbytes for name in adapter.carried.values())
            return len(header.raw) + LONGER * len(header.tensors) + stored

        adapter, header = least(self._measured)
        by_rank = {
            name: sum(header.tensors[one].nbytes for one in (pair.a, pair.b))
            for name, pair in adapter.pairs.items()
        }
        measured = {name: one for name, one in self._measured.items() if name in by_rank}
        return unmoved | dict(self.ranks.ranks(measured, FactorBytes(by_rank, others)))

    def _header(self, plan: Plan, adapter: AdapterLayout) -> Header:
        """The header of the adapter's file; wide elements first, so that every tensor is aligned."""
        dtype = output_dtype("F32", self.opened.dtype)
        shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
        tensors: list[tuple[str, str, tuple[int, ...]]] = []
        for pair in adapter.pairs.values():
            names, of_factors = (pair.a, pair.b), factor_shapes(pair)
            tensors += [(name, dtype, shape) for name, shape in zip(names, of_factors, strict=True)]
        tensors += [(stored, plan.dtypes[name], shapes[name]) for name, stored in adapter.carried.items()]
        return build_header(sorted(tensors, key=lambda tensor: -BITS[tensor[1]]), {"format": "pt"})


def _can_be_factored(tensor: PlannedTensor) -> bool:
    """Whether factors can approximate the tensor's update: it is edited as one matrix, and whole."""
    matrices = tensor.matrices
    return matrices is not None and not matrices.is_stack and tensor.shared_rows is None
