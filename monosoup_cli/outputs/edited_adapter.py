"""An adapter written as an adapter again: the same tensors, configuration and ranks, with edited updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from typing import TYPE_CHECKING, ClassVar

from monosoup_cli.adapters.lora import Adapter
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.formats.dtypes import BITS, bytes_of, cast
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.outputs.factor_sink import FactorSink
from monosoup_cli.outputs.form import AdapterDescription, Description, OutputContext, Sink, Target
from monosoup_cli.outputs.layout import OutputLayout, plan_layout
from monosoup_cli.outputs.side_files import SideFiles, side_files
from monosoup_cli.outputs.tensor_sink import TensorSink, copy_within, move
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.method import Edit, Layer, Wanted
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor, output_dtype
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

__all__ = ["EditedAdapterDraft", "EditedAdapterForm", "adapter_headers", "stacked_patterns"]

DESCRIPTION = AdapterDescription(opening="A LoRA adapter with edited updates.")


@dataclass(frozen=True)
class EditedAdapterForm:
    """The files of the adapter that was read, with edited tensors in their places.

    `stored` maps every planned tensor to the tensors of the adapter that hold it.
    """

    adapter: Adapter
    stored: Mapping[str, tuple[str, ...]]
    layout: OutputLayout
    side_files: SideFiles
    lost: Sequence[str] = ()
    description: Description = DESCRIPTION

    @property
    def model(self) -> Files:
        """The adapter's own files."""
        return self.adapter.own.files

    def parts(self) -> Mapping[str, Sequence[str]]:
        """The tensors of the adapter that hold each planned tensor."""
        return self.stored

    def own_files(self) -> Mapping[str, bytes]:
        """Nothing: the adapter's configuration is among its side files."""
        return {}

    def wanted(self, tensor: PlannedTensor) -> Wanted:
        """Factors for what is stored as factors, otherwise blocks."""
        pair = self.adapter.pairs.get(tensor.name)
        return Wanted() if pair is None else Wanted(factors=True, rank=pair.rank)

    def held(self, tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """The factors, the rows, or the buffers of a tensor that is stored whole."""
        pair = self.adapter.pairs.get(tensor.name)
        if pair is not None:
            own = self.adapter.own.tensors
            return FactorSink.held((own[pair.a].shape, own[pair.b].shape), variants)
        if tensor.name in self.adapter.rows:
            stored = self.adapter.own.tensors[self.stored[tensor.name][0]]
            return Held(host=8 * stored.elements * (variants + 1))
        return TensorSink.held(tensor, variants, resident_bytes)

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> Sink:
        """The factors of a tensor, some of its rows, or all of it."""
        pair = self.adapter.pairs.get(tensor.name)
        copy = partial(self._copy, tensor, target, worker)
        if pair is not None:
            return FactorSink(tensor, pair, target, lambda is_checked: copy(is_checked=is_checked))
        return _StoredSink(self, tensor, target, worker)

    def _copy(self, tensor: PlannedTensor, target: Target, worker: Worker, *, is_checked: bool) -> None:
        """Write what the adapter has of a tensor, as it is."""
        for name in self.stored[tensor.name]:
            dtype = target.output.place(name).dtype
            move(self.adapter.own, name, target, worker, name, dtype, is_checked=is_checked)


class _StoredSink(TensorSink):
    """A tensor, or some rows of it, that the adapter stores whole."""

    def __init__(
        self, form: EditedAdapterForm, tensor: PlannedTensor, target: Target, worker: Worker
    ) -> None:
        super().__init__(tensor, target, worker, form.stored[tensor.name][0])
        self._form = form

    def put(self, index: int, edit: Edit) -> None:
        tensor, target = self._tensor, self._target
        if tensor.name not in self._form.adapter.rows:
            super().put(index, edit)
            return
        _, numbers = self._form.adapter.rows[tensor.name]
        rows = [_Rows(tensor, numbers) for _ in target.variants]
        for start, stop, results in edit.blocks:
            for part, result in zip(rows, results, strict=True):
                part.put(start, stop, result)
        info = target.output.place(self._stored_name)
        for part, variant in zip(rows, target.variants, strict=True):
            data = cast(part.values, info.dtype, info.name)
            target.output.write(info.name, bytes_of(data), 0, variant.folder)

    def keep(self, index: int, layer: Layer | None = None) -> None:
        """Write a matrix of a stack; `finish` copies a tensor of which nothing changed."""
        if self._tensor.matrices is not None and self._tensor.matrices.is_stack:
            super().keep(index, layer)

    def finish(self, *, is_edited: bool) -> None:
        if is_edited:
            written, *twins = self._form.stored[self._tensor.name]
            copy_within(self._target, written, twins)
        else:
            self.copy()

    def copy(self) -> None:
        self._form._copy(self._tensor, self._target, self._worker, is_checked=True)

    def restore(self) -> None:
        self._form._copy(self._tensor, self._target, self._worker, is_checked=False)


class _Rows:
    """Some rows of an edited matrix; the update has no others, so the rest of the rows are the base's."""

    def __init__(self, tensor: PlannedTensor, numbers: Sequence[int]) -> None:
        import torch

        assert tensor.matrices is not None
        self._cut, self._numbers = tensor.matrices.cut, torch.tensor(numbers)
        self.values = torch.zeros(len(numbers), self._cut.columns, dtype=torch.float64)

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Take from a block (stop − start, side) the values that belong to the rows."""
        block = block.cpu()
        if self._cut.is_wide:
            self.values[:, start:stop] = block.T[self._numbers]
        else:
            is_here = (start <= self._numbers) & (self._numbers < stop)
            self.values[is_here] = block[self._numbers[is_here] - start]


@dataclass(frozen=True)
class EditedAdapterDraft:
    """An adapter that is written again, whose layout is its own."""

    opened: OutputContext
    adapter: Adapter
    stored: Mapping[str, tuple[str, ...]]
    is_foreseeable: ClassVar[bool] = True

    @classmethod
    def of(cls, opened: OutputContext, adapter: Adapter) -> EditedAdapterDraft:
        """The draft for one adapter.

        Raises:
            UsageError: The output is a folder where the adapter is a file, or the reverse.
            CheckpointError: It is a DoRA adapter, whose edited updates would be none.
        """
        is_file, output = adapter.own.files.place.folder is None, opened.path
        if (output.suffix == ".safetensors") != is_file:
            expected = f"{output}.safetensors" if is_file else f"a folder, such as {output.with_suffix('')}"
            raise UsageError(
                "an adapter is written in the form it was given", expected=expected, found=output
            )
        if adapter.dora is not None:
            raise CheckpointError(
                "an edited DoRA update is not a DoRA update of the same rank",
                path=opened.first.path,
                tensor=adapter.dora.name,
                hint="without --as-adapter it is merged into the base",
            )
        joined = next((pair.name for pair in adapter.pairs.values() if pair.pieces), None)
        if joined is not None:
            raise CheckpointError(
                "the base joins layers that the adapter has apart, or the reverse: it cannot be written so",
                path=opened.first.path,
                tensor=joined,
                hint="without --as-adapter it is merged into the base",
            )
        if opened.base is not None:
            _check_alone(adapter, opened.first.path)
        return cls(opened, adapter, _stored(adapter))

    def headers(self) -> tuple[Headers | None, list[Headers]]:
        """The headers of what the adapter changes, under the base's names."""
        of_base, of_adapter = adapter_headers(self.adapter, self.opened.base)
        return of_base, [of_adapter]

    def stacked(self) -> Sequence[str]:
        """The tensors that are stacks of experts to the adapter."""
        return stacked_patterns(self.adapter)

    def examined(self, plan: Plan) -> Sequence[PlannedTensor]:
        """Nothing; but every tensor must be edited as the matrices that its factors make."""
        for tensor in plan.edited:
            pair = self.adapter.pairs.get(tensor.name)
            is_stack = tensor.matrices is not None and tensor.matrices.is_stack
            if pair is not None and is_stack != pair.layout.is_stack:
                raise CheckpointError(
                    "the adapter updates it as one matrix, and it would be edited as a stack",
                    path=self.opened.first.path,
                    tensor=tensor.name,
                    hint="--exclude leaves it as it is",
                )
        self._check_interpolated(plan)
        return ()

    def _check_interpolated(self, plan: Plan) -> None:
        """Raise UsageError for a tensor that the adapter changes, and that is not edited: it has no base."""
        adapter = self.adapter
        given = "" if self.opened.base is not None else ", and with BASE in place of -"
        changed = {*adapter.pairs, *adapter.replaced, *adapter.rows, *adapter.biases}
        for tensor in plan.tensors:
            is_kept = tensor.reason not in (None, "unchanged")
            if is_kept and tensor.name in changed and self.opened.interpolates(tensor.name):
                raise UsageError(
                    "--wise interpolates with the base, and the adapter keeps this tensor as it is",
                    path=self.opened.first.path,
                    tensor=tensor.name,
                    hint=f"without --as-adapter{given}, --wise interpolates the merged model",
                )

    def examine(self, tensor: PlannedTensor, worker: Worker) -> None:
        """Never called."""
        raise AssertionError("the layout follows from the adapter")

    def form(self, plan: Plan) -> tuple[Plan, EditedAdapterForm]:
        """The adapter's own layout."""
        own, output = self.adapter.own, self.opened.path
        dtypes = {name: output_dtype(info.dtype, self.opened.dtype) for name, info in own.tensors.items()}
        layout = plan_layout(own.files, dtypes, output.name, None)
        beside = side_files(own.files, self.opened.side_files, taken=layout.names)
        return plan, EditedAdapterForm(self.adapter, self.stored, layout, beside)


def _check_alone(adapter: Adapter, path: str) -> None:
    """Raise CheckpointError for an adapter that has an update of which the base lacks the tensor or rows."""
    name = next((name for name in adapter.pairs if name in adapter.twins), None)
    problem = "the adapter has the same update again, for a tensor that the base ties to this one"
    if name is None:
        name = next((name for name in adapter.rows if name in adapter.fit.shapes), None)
        problem = "the adapter replaces rows of a resized vocabulary, which the base does not have"
    if name is not None:
        hint = "give - in place of BASE, with which they are no matter"
        raise CheckpointError(problem, path=path, tensor=name, hint=hint)


def adapter_headers(
    adapter: Adapter, base: Source | None
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The headers of what an adapter changes, under the base's names.

    Returns:
        Two mappings. The first takes the place of the base's: the tensors that the adapter has an update of,
        and with a base all that it changes. The second has what the adapter stores, in place of the
        fine-tuned checkpoint's.
    """
    of_base: dict[str, TensorInfo] = {}
    of_adapter: dict[str, TensorInfo] = {}
    for name, names in _stored(adapter).items():
        stored = adapter.own.tensors[names[0]]
        shape = adapter.pairs[name].shape if name in adapter.pairs else stored.shape
        if name in adapter.rows and base is not None:
            shape = adapter.fit.shapes.get(name, base.tensors[name].shape)
        nbytes = math.prod(shape) * BITS[stored.dtype] // 8
        of_adapter[name] = info = TensorInfo(name, stored.dtype, shape, 0, nbytes)
        if name in adapter.pairs or len(shape) <= 1:
            of_base[name] = info
        elif base is not None and name in base.tensors:
            of_base[name] = base.tensors[name]
    return of_base, of_adapter


def stacked_patterns(adapter: Adapter) -> list[str]:
    """Globs over the names of the tensors that are stacks of experts to an adapter."""
    return [escape(name) for name, pair in adapter.pairs.items() if pair.layout.is_stack]


def _stored(adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """Every tensor that the adapter changes, and its own tensors that hold it."""
    stored: dict[str, tuple[str, ...]] = {name: (pair.a, pair.b) for name, pair in adapter.pairs.items()}
    stored |= {name: (own,) for name, own in adapter.replaced.items()}
    stored |= {name: (own,) for name, (own, _) in adapter.rows.items()}
    for name, twins in adapter.twins.items():
        stored[name] = (*stored[name], *twins)
    for name, (own, _) in adapter.biases.items():
        stored[name] = (*stored.get(name, ()), own)
    held = {own for names in stored.values() for own in names}
    return stored | {own: (own,) for own in adapter.own.tensors if own not in held}
