"""The one loop: read → compute → write → record, for every tensor of the plan."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from monosoup_cli.errors import NonfiniteError, ResultOverflowError
from monosoup_cli.formats.dtypes import bytes_of, count_nonfinite
from monosoup_cli.outputs.form import OutputForm, Sink, Target
from monosoup_cli.pipeline.engine import Engine, Progress
from monosoup_cli.report.records import LayerRecord, slice_record
from monosoup_cli.tensors.ingredients import update_facts
from monosoup_cli.tensors.method import Method, overflow_in
from monosoup_cli.tensors.plan import Matrices, Plan, PlannedTensor
from monosoup_cli.tensors.together import group, read_group
from monosoup_cli.tensors.worker import Worker

__all__ = ["Work", "run"]


@dataclass(frozen=True)
class Work:
    """Everything that the loop needs: which tensors, what is computed, and where it goes.

    `names` are the tensors that are made: all of the plan, or a share.
    """

    plan: Plan
    method: Method
    form: OutputForm
    target: Target
    on_nonfinite: Literal["error", "keep"]
    names: Container[str]

    def is_wanted(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor is to be made."""
        return tensor.name in self.names

    def waits(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor is still to be made."""
        return self.is_wanted(tensor) and tensor.name not in self.target.output.finished


def run(work: Work, engine: Engine, progress: Progress) -> None:
    """Make every tensor of the plan that is not finished yet, and journal a record of it."""
    output, ingredients = work.target.output, work.target.ingredients
    measured = [measure.name for measure in work.method.measures if measure.is_stored]
    groups = [
        (wanted, some)
        for some in group(work.plan.tensors, ingredients, work.form.parts())
        if (wanted := [*filter(work.is_wanted, some)])
    ]
    led_by = {wanted[0].name: (wanted, some) for wanted, some in groups}

    def make(tensor: PlannedTensor, worker: Worker) -> None:
        (_, *others), some = led_by[tensor.name]
        for other in others:
            progress(other, False)
        records = _make_group(work, some, worker)
        if worker.is_substitute:
            for of_one in records.values():
                of_one[:] = [replace(record, is_substituted=True) for record in of_one]
        output.commit(
            {name: [record.to_json(measured) for record in of_one] for name, of_one in records.items()}
        )
        for other in others:
            progress(other, True)

    waiting = []
    for wanted, _ in groups:
        if any(map(work.waits, wanted)):
            waiting.append(wanted[0])
            continue
        for tensor in wanted:
            progress(tensor, True)
    engine.each(waiting, make, reads=ingredients.read_for, progress=progress)


def _make_group(work: Work, tensors: Sequence[PlannedTensor], worker: Worker) -> dict[str, list[LayerRecord]]:
    """Write those tensors of a group that are not finished, and return their records: together those that the
    method can edit together, the others one by one."""
    waiting = [tensor for tensor in tensors if work.waits(tensor)]
    records = _edit_together(work, tensors, worker) if len(tensors) > 1 else {}
    for tensor in waiting:
        if tensor.name not in records:
            worker.interrupt()
            records[tensor.name] = _make(work, tensor, worker)
    return records


def _edit_together(
    work: Work, tensors: Sequence[PlannedTensor], worker: Worker
) -> dict[str, list[LayerRecord]]:
    """Edit a group, all of it so that the arithmetic is the same after an interruption, and write what is not
    finished.

    Returns:
        The records of what was written: nothing where a tensor is not as it should be, which `_make` then
        finds.
    """
    worker.interrupt()
    output, dtype = work.target.output, tensors[0].stored_dtype
    read = read_group(tensors, work.target.ingredients, worker)
    edit = None if read is None else work.method.edit_together(*read, [tensor.name for tensor in tensors])
    if edit is None:
        return {}
    members = [tensors[number] for number in edit.numbers]
    waiting = [number for number, tensor in enumerate(members) if work.waits(tensor)]
    names = [members[number].name for number in waiting]
    for variant, results in zip(work.target.variants, edit.results, strict=True):
        stored = worker.channel.download(
            worker.channel.buffer("output", dtype, *results.shape).copy_(results)
        )
        if count_nonfinite(stored):
            return {}
        if len(waiting) < len(members):
            stored = stored[waiting]
        output.write_together(names, bytes_of(stored), variant.folder)
    return {
        tensor.name: [
            LayerRecord(tensor.name, tensor.shape, tensor.dtype, None, one, update_of={}) for one in measures
        ]
        for tensor, measures in zip(members, edit.measures, strict=True)
        if work.waits(tensor)
    }


def _make(work: Work, tensor: PlannedTensor, worker: Worker) -> list[LayerRecord]:
    """Write one tensor to every variant of the output, and return a record for each."""
    sink = work.form.sink(tensor, work.target, worker)
    try:
        if tensor.is_edited:
            return _edit(work, tensor, sink, worker)
        sink.copy()
        return _kept(work, tensor, tensor.reason)
    except NonfiniteError as error:
        is_overflow = isinstance(error, ResultOverflowError)
        may_be_so = not tensor.reads.is_checked and not is_overflow
        is_of_one_variant = is_overflow and len(work.target.variants) > 1
        if not may_be_so and (work.on_nonfinite == "error" or is_of_one_variant):
            raise
        sink.restore()
        return _kept(work, tensor, tensor.reason if may_be_so else "nonfinite")


def _edit(work: Work, tensor: PlannedTensor, sink: Sink, worker: Worker) -> list[LayerRecord]:
    count = 1 if tensor.matrices is None else tensor.matrices.count
    measures = [_edit_layer(work, tensor, index, sink, worker) for index in range(count)]
    is_edited = any(of_one is not None for of_one in measures)
    sink.finish(is_edited=is_edited)
    if not is_edited:
        return _kept(work, tensor, "unchanged")
    update = update_facts(work.target.ingredients.sources_of(tensor), tensor.name)
    whole = LayerRecord(
        tensor.name, tensor.shape, tensor.dtype, None, shared_rows=tensor.shared_rows, update_of=update
    )
    return [
        _record(whole, [None if one is None else one[number] for one in measures], tensor.matrices)
        for number in range(len(work.target.variants))
    ]


def _record(
    whole: LayerRecord, measures: Sequence[Mapping[str, Any] | None], matrices: Matrices | None
) -> LayerRecord:
    """The record of a tensor in one variant, from the measures of its matrices."""
    if matrices is None or not matrices.is_several:
        return replace(whole, measures=measures[0])
    return replace(
        whole, slices=tuple(slice_record(matrices, index, one) for index, one in enumerate(measures))
    )


def _edit_layer(
    work: Work, tensor: PlannedTensor, index: int, sink: Sink, worker: Worker
) -> Sequence[Mapping[str, Any]] | None:
    """Write what the method makes of one layer; return its measures, None where the layer is unchanged."""
    if tensor.elements == 0:
        sink.keep(index, None)
        return None
    layer = work.target.ingredients.layer(tensor, index, worker, sink.wanted)
    with overflow_in(layer, tensor.name):
        edit = work.method.edit(layer)
        if edit is not None:
            sink.put(index, edit)
    if edit is not None and layer.has_moved:
        return edit.measures
    sink.keep(index, layer)
    return None


def _kept(work: Work, tensor: PlannedTensor, reason: str | None) -> list[LayerRecord]:
    return [LayerRecord(tensor.name, tensor.shape, tensor.dtype, reason) for _ in work.target.variants]
