"""The one loop: read → compute → write → record, for every tensor of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from monosoup_cli.devices.device import Device
from monosoup_cli.errors import NonfiniteError
from monosoup_cli.formats.dtypes import BITS, FLOATING, bytes_of, check_finite, count_nonfinite
from monosoup_cli.outputs.writers import FlatWriter, MatrixWriter
from monosoup_cli.pipeline.adapter_output import AdapterOutput, FactorsOutput, OutputRows
from monosoup_cli.pipeline.engine import Progress, Threads
from monosoup_cli.pipeline.inputs import update_of
from monosoup_cli.pipeline.options import Strictness
from monosoup_cli.pipeline.plan import Plan, PlannedTensor
from monosoup_cli.report.records import LayerRecord, SliceRecord
from monosoup_cli.tensors.chunks import check_stored, stored_chunks
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import BLOCKS, MatrixLayer, Wanted, matrix_layer
from monosoup_cli.tensors.method import Edit, Variant
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.sources.checkpoint import Checkpoint, Factors

__all__ = ["Method", "Run", "run"]


Method: TypeAlias = "Callable[[Any], Edit | None]"
"""What a command does to one layer: a `MatrixLayer` or a `FlatLayer`, as the plan says. None: the
layer counts as unchanged and stays as fine-tuned."""


@dataclass(frozen=True)
class Run:
    """The whole job: the plan, how one layer is edited, and where bytes come from and go to.

    `finetuned`: those that are averaged, evenly or with `weights` that sum to 1. `first`: the one
    whose layout the output has. `measured`: the names of what `method` measures. `adapter`: how tensors are
    stored, where the output is an adapter.
    """

    plan: Plan
    method: Method
    measured: Sequence[str]
    base: Checkpoint | None
    finetuned: Sequence[Checkpoint]
    first: Checkpoint
    weights: Sequence[float] | None
    output: PartialOutput
    variants: Sequence[Variant]
    on_nonfinite: Strictness = "error"
    adapter: AdapterOutput | None = None

    def stored_as(self, tensor: PlannedTensor) -> str:
        """What a tensor that is written whole is called in the output."""
        return tensor.name if self.adapter is None else self.adapter.stored[tensor.name][0]

    def sources_of(self, tensor: PlannedTensor) -> Sequence[Checkpoint]:
        """The fine-tuned checkpoints that a tensor is the mean of."""
        return self.finetuned if tensor.is_shared else [self.copied_from(tensor)]

    def copied_from(self, tensor: PlannedTensor) -> Checkpoint:
        """Where a tensor, or the rows that not all inputs have, are taken from as they are: the first
        checkpoint that is averaged, or else the first of the layout."""
        stored = self.finetuned[0].tensors.get(tensor.name)
        if stored is None or stored.shape != tensor.shape:
            return self.first
        is_cast = tensor.is_shared  # as their mean is
        return self.finetuned[0] if is_cast or stored.dtype == tensor.dtype else self.first

    def read_for(self, tensor: PlannedTensor) -> list[Checkpoint]:
        """Every checkpoint whose tensor goes into the output's."""
        base = [self.base] if self.base is not None and tensor.has_base else []
        return [*base, *self.sources_of(tensor)]


def run(job: Run, devices: Sequence[Device], workers: int, progress: Progress) -> None:
    """Make every tensor of the plan that is not finished yet; records end in `job.output.finished`."""

    def make(tensor: PlannedTensor, worker: Worker) -> None:
        records = _Maker(job, worker).make(tensor)
        job.output.commit(tensor.name, [record.to_json(job.measured) for record in records])

    for tensor in job.plan.tensors:
        if tensor.name in job.output.finished:
            progress(tensor, True)
    waiting = [tensor for tensor in job.plan.tensors if tensor.name not in job.output.finished]
    Threads(devices, workers).each(waiting, make, reads=job.read_for, progress=progress)


class _Maker:
    """Makes one tensor, in every variant of the output."""

    def __init__(self, job: Run, worker: Worker) -> None:
        self.job, self.worker, self.scratch = job, worker, worker.scratch
        self._factors: list[FactorsOutput] = []

    def make(self, tensor: PlannedTensor) -> list[LayerRecord]:
        """Write it; returns a record for each variant."""
        try:
            return self._make(tensor)
        except NonfiniteError as error:
            is_of_one_variant = error.path is None and len(self.job.variants) > 1
            if self.job.on_nonfinite == "error" or is_of_one_variant:
                raise
            if self.job.adapter is None:
                self._copy(self.job.copied_from(tensor), tensor, is_checked=False)
            else:
                self._copy_stored(self.job.adapter, tensor, is_checked=False)
            return self._kept(tensor, "nonfinite")

    def _make(self, tensor: PlannedTensor) -> list[LayerRecord]:
        if self.job.adapter is not None and not tensor.is_edited:
            self._copy_stored(self.job.adapter, tensor)
            return self._kept(tensor, tensor.reason)
        if not tensor.is_edited:
            self._check_unread(tensor)
            self._keep(tensor, 0)
            self._copy_others(tensor)
            return self._kept(tensor, tensor.reason)
        if self.job.adapter is not None:
            self._factors = self._factors_outputs(self.job.adapter, tensor)
        slices: list[list[SliceRecord]] = [[] for _ in self.job.variants]
        for index in range(tensor.matrices):
            measures = self._edit(tensor, index)
            if measures is None and self.job.adapter is None:
                self._keep(tensor, index)
            for number, records in enumerate(slices):
                records.append(SliceRecord(index, None if measures is None else measures[number]))
        self._copy_others(tensor)
        if all(part.measures is None for part in slices[0]):
            if self.job.adapter is not None:
                self._copy_stored(self.job.adapter, tensor)
            return self._kept(tensor, "unchanged")
        for factors in self._factors:
            factors.finish()
        if self.job.adapter is not None and not self._factors:
            self._copy_to_twins(*self.job.adapter.stored[tensor.name])
        facts, rows = (tensor.name, tensor.shape, tensor.dtype, None), tensor.shared_rows
        known = update_of(self.job.sources_of(tensor), tensor.name)
        if tensor.stack is not None:
            return [
                LayerRecord(*facts, slices=tuple(records), shared_rows=rows, update_of=known)
                for records in slices
            ]
        return [
            LayerRecord(*facts, records[0].measures, shared_rows=rows, update_of=known) for records in slices
        ]

    def _kept(self, tensor: PlannedTensor, reason: str | None) -> list[LayerRecord]:
        return [LayerRecord(tensor.name, tensor.shape, tensor.dtype, reason) for _ in self.job.variants]

    def _edit(self, tensor: PlannedTensor, index: int) -> Sequence[Mapping[str, Any]] | None:
        """Write what the method makes of one layer; what it measured, None where it is unchanged."""
        if tensor.elements == 0:
            return None
        layer = self._flat(tensor) if tensor.cut is None else self._matrix(tensor, tensor.cut, index)
        try:
            edit = self.job.method(layer)
            if edit is None:
                if isinstance(layer, MatrixLayer) and layer.factors is not None:
                    self._put(index, tensor, [layer.factors] * len(self._factors))
                return None
            if self._factors:
                self._put(index, tensor, edit.factors)
                return edit.measures
            outputs = [self._output(tensor, index, variant) for variant in self.job.variants]
            for start, stop, results in edit.blocks:
                for output, result in zip(outputs, results, strict=True):
                    output.put(start, stop, result)
        except FloatingPointError:
            raise NonfiniteError("the update overflows float64", tensor=tensor.name) from None
        return edit.measures if layer.has_moved else None

    def _matrix(self, tensor: PlannedTensor, cut: Cut, index: int) -> MatrixLayer:
        wanted = BLOCKS
        if self._factors and self.job.adapter is not None:
            wanted = Wanted(factors=True, rank=self.job.adapter.pairs[tensor.name].rank)
        sources = self.job.sources_of(tensor)
        return matrix_layer(tensor.name, cut, index, self.job.base, sources, self.worker, wanted)

    def _flat(self, tensor: PlannedTensor) -> FlatLayer:
        sources = self.job.sources_of(tensor)
        weights = self.job.weights if len(sources) > 1 else None
        base = self.job.base if tensor.has_base else None
        return FlatLayer(tensor.name, tensor.shared_shape, base, sources, weights, self.worker)

    def _output(
        self, tensor: PlannedTensor, index: int, variant: Variant
    ) -> FlatWriter | MatrixWriter | OutputRows:
        if tensor.cut is None:
            return self._flat_output(tensor, variant)
        if self.job.adapter is not None and tensor.name in self.job.adapter.rows:
            numbers, name = self.job.adapter.rows[tensor.name], self.job.stored_as(tensor)
            return OutputRows(self.job.output, variant.folder, name, numbers, tensor.cut)
        return MatrixWriter(
            self.job.output,
            variant.folder,
            self.job.stored_as(tensor),
            tensor.stored_dtype,
            self.scratch,
            tensor.cut,
            index,
        )

    def _flat_output(self, tensor: PlannedTensor, variant: Variant) -> FlatWriter:
        name = self.job.stored_as(tensor)
        return FlatWriter(self.job.output, variant.folder, name, tensor.stored_dtype, self.scratch)

    def _keep(self, tensor: PlannedTensor, index: int) -> None:
        """Write a matrix of the tensor, or all of one that is not edited, as fine-tuned: the mean,
        interpolated with the variants' `wise`; or just the bytes. Of the rows that all inputs have."""
        sources = self.job.sources_of(tensor)
        wises = [variant.wise if tensor.has_base else None for variant in self.job.variants]
        if tensor.stack is None and len(sources) == 1 and all(wise is None for wise in wises):
            self._copy(sources[0], tensor, 0, None if tensor.shared_rows is None else tensor.elements)
            return
        import torch

        layer, size = self._flat(tensor), tensor.elements // tensor.matrices
        outputs = [self._flat_output(tensor, variant) for variant in self.job.variants]
        for start, stop in layer.ranges(index * size, (index + 1) * size):
            if all(wise is None for wise in wises):
                base = mean = layer.mean(start, stop)
            else:
                base, mean = layer.pair(start, stop)
            for output, wise in zip(outputs, wises, strict=True):
                result = mean
                if wise is not None:
                    result = torch.lerp(base, mean, wise, out=layer.memory.room("result", stop - start))
                output.put(start, stop, result)

    def _factors_outputs(self, adapter: AdapterOutput, tensor: PlannedTensor) -> list[FactorsOutput]:
        """Where the factors of a tensor go, in every variant; none of one that is stored whole."""
        pair = adapter.pairs.get(tensor.name)
        if pair is None:
            return []
        infos = [self.job.output.place(name) for name in (pair.a, pair.b)]
        return [FactorsOutput(self.job.output, each.folder, pair, *infos) for each in self.job.variants]

    def _put(self, index: int, tensor: PlannedTensor, updates: Sequence[Factors]) -> None:
        """Hand the updates of one matrix, as blocks see it, to where each variant's factors go."""
        for output, (left, right) in zip(self._factors, updates, strict=True):
            is_wide = tensor.cut is not None and tensor.cut.is_wide
            output.put(index, *((right.T, left.T) if is_wide else (left, right)))

    def _copy_stored(self, adapter: AdapterOutput, tensor: PlannedTensor, *, is_checked: bool = True) -> None:
        """Write what an adapter has of a tensor that is not edited: as it stands in the one that is read; or
        whole. The factors of a new adapter are zero already."""
        if adapter.source is not None:
            for name in adapter.stored[tensor.name]:
                dtype = self.job.output.place(name).dtype
                self._move(adapter.source, name, name, dtype, is_checked=is_checked)
        elif tensor.name not in adapter.pairs and adapter.stored[tensor.name]:
            self._keep(tensor, 0)

    def _copy_to_twins(self, written: str, *twins: str) -> None:
        """Write what is written of a tensor again, under the other names by which an adapter has it."""
        for folder, twin in product([variant.folder for variant in self.job.variants], twins):
            offset = 0
            for chunk in self.job.output.read(folder, written):
                self.job.output.write(twin, chunk, offset, folder)
                offset += len(chunk)

    def _copy_others(self, tensor: PlannedTensor) -> None:
        """Write the rows that not all inputs have."""
        if tensor.shared_rows is not None:
            self._copy(self.job.copied_from(tensor), tensor, tensor.elements)

    def _copy(
        self,
        source: Checkpoint,
        tensor: PlannedTensor,
        start: int = 0,
        stop: int | None = None,
        *,
        is_checked: bool = True,
    ) -> None:
        """Move a checkpoint's tensor, or its elements start:stop, to where it stands in the output."""
        stored = self.job.stored_as(tensor), tensor.stored_dtype
        self._move(source, tensor.name, *stored, start, stop, is_checked=is_checked)

    def _move(
        self,
        source: Checkpoint,
        name: str,
        stored_name: str,
        stored_dtype: str,
        start: int = 0,
        stop: int | None = None,
        *,
        is_checked: bool = True,
    ) -> None:
        """Write the bytes of a tensor, or of its elements start:stop, chunk by chunk; cast where another
        dtype is asked for.

        `is_checked`: NaN or Inf stops the run.
        """
        written, dtype = start * BITS[stored_dtype] // 8, source.read_dtype(name)
        for chunk in stored_chunks(source, name, self.worker, start, stop):
            if is_checked and dtype in FLOATING:
                check_finite(chunk, source.source, name)
            if stored_dtype != dtype:
                nonfinite = count_nonfinite(chunk)
                chunk = self.scratch.take("output", stored_dtype, len(chunk)).copy_(chunk)
                if count_nonfinite(chunk) > nonfinite:
                    raise NonfiniteError(f"overflows {stored_dtype}", tensor=name)
            for variant in self.job.variants:
                self.job.output.write(stored_name, bytes_of(chunk), written, variant.folder)
            written += len(bytes_of(chunk))

    def _check_unread(self, tensor: PlannedTensor) -> None:
        """Raise NonfiniteError for NaN or Inf in a kept tensor's namesakes that are not used."""
        used = self.job.read_for(tensor)
        if not all(checkpoint.changes(tensor.name) for checkpoint in used):
            return  # the base's own bytes, which are read
        for checkpoint in (self.job.base, *self.job.finetuned):
            if checkpoint is not None and checkpoint not in used and checkpoint.is_at_hand(tensor.name):
                check_stored(checkpoint, tensor.name, self.worker)
