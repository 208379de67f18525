"""Measure layers and write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from monosoup_cli.devices.device import Device, find_devices
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import CheckpointError, NonfiniteError, UsageError, mismatch_in
from monosoup_cli.formats.files import Download
from monosoup_cli.options import ComputeOptions, SelectionOptions
from monosoup_cli.outputs.edited_adapter import adapter_headers, stacked_patterns
from monosoup_cli.pipeline.engine import Progress, Threads, ignore
from monosoup_cli.pipeline.inputs import Inputs, open_inputs
from monosoup_cli.pipeline.kinship import check_names, doubts_of_names
from monosoup_cli.pipeline.memory import Resources, allot, needs_of
from monosoup_cli.pipeline.provenance import environment, names_only_in_base, report_head, with_roles
from monosoup_cli.pipeline.splitting import split_fused
from monosoup_cli.report.records import LayerRecord, slice_record
from monosoup_cli.sources.ties import check_copies
from monosoup_cli.sources.transfer import fetch
from monosoup_cli.tensors.factors import check_merged
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.ingredients import update_facts
from monosoup_cli.tensors.matrix import MatrixLayer, matrix_layer
from monosoup_cli.tensors.method import Method, overflow_in
from monosoup_cli.tensors.plan import Plan, PlannedTensor, Selection, make_plan
from monosoup_cli.tensors.stacks import expert_counts
from monosoup_cli.tensors.worker import Worker

__all__ = ["Compare", "Inspection", "MeasureLayer"]

MeasureLayer: TypeAlias = "Callable[[MatrixLayer, Sequence[str]], Mapping[str, Any] | None]"
"""Measures one matrix, whose fine-tuned checkpoints have these dtypes; returns None where it did not move."""

Compare: TypeAlias = "Callable[[FlatLayer], Mapping[str, Any]]"
"""Compares one tensor in several fine-tuned checkpoints."""


@dataclass
class Inspection:
    """A base and its fine-tunes on opened files; a context manager, because it holds them.

    The plan is that of `edit`: a layer is measured where `edit` would edit it. Of every other tensor only the
    header is read. An adapter needs no base: its factors are its update.

    Attributes:
        inputs: The opened inputs.
        selection: Which tensors the user wants measured.
        plan: Which tensors are measured.
        resources: The devices, and how many tensors are measured at once.
        downloads: What has to be downloaded first.
        on_nonfinite: What to do with a tensor that has NaN or Inf.
    """

    inputs: Inputs
    selection: Selection
    plan: Plan
    resources: Resources
    downloads: list[Download]
    on_nonfinite: str

    @classmethod
    def open(
        cls,
        base: str | None,
        finetuned: Sequence[str],
        selecting: SelectionOptions,
        computing: ComputeOptions,
        method: Method,
        stacked: Sequence[str] = (),
        is_split: bool = False,
    ) -> Inspection:
        """Open the inputs, and refuse everything that their headers show to be wrong.

        Raises:
            MonosoupError: The inputs cannot be read, or do not belong together.
        """
        with ExitStack() as opened:
            inputs = opened.enter_context(
                open_inputs(
                    base,
                    finetuned,
                    selecting.rename,
                    state_dict=selecting.state_dict,
                    parts=selecting.parts,
                    alone=True,
                    leaves_out=Selection(tuple(selecting.include), tuple(selecting.exclude)).leaves_out,
                )
            )
            adapter = inputs.adapters[0]
            if inputs.base is None and adapter is None:
                raise UsageError(
                    "a whole checkpoint needs a base; only an adapter has none", path=finetuned[0]
                )
            of_base = None if inputs.base is None else inputs.base.tensors
            of_finetuned = [source.tensors for source in inputs.finetuned]
            if inputs.base is None and adapter is not None:
                if adapter.dora is not None:
                    raise CheckpointError(
                        "a DoRA update depends on the base",
                        path=finetuned[0],
                        tensor=adapter.dora.name,
                        hint="give the base instead of -",
                    )
                of_base, of_finetuned[0] = adapter_headers(adapter, None)
                stacked = (*stacked, *stacked_patterns(adapter))
            selection = Selection(
                tuple(selecting.include),
                tuple(selecting.exclude),
                tuple(stacked),
                expert_counts(inputs.finetuned[0].model.config),
                selecting.on_mismatch,
                include_option="layer",
            )
            with mismatch_in(finetuned[0]):
                if inputs.base is not None:
                    check_merged(of_base, of_finetuned, selection)
                plan = make_plan(
                    of_base,
                    of_finetuned,
                    selection,
                    hint=inputs.hint,
                    unchanged=inputs.unchanged,
                    left_out=[copy.name for copy in inputs.copies],
                )
                if inputs.parent is not None:
                    check_names(plan, inputs.parent.tensors, inputs.hint, partial=selecting.partial)
                    inputs.notices += doubts_of_names(plan, inputs.parent.tensors)
            if is_split:
                plan = split_fused(plan, inputs)
            names = [tensor.name for tensor in plan.edited]
            downloads = [download for source in inputs.sources for download in source.select(names)]

            def needs(device: Device) -> list[Held]:
                compared = FlatLayer.held(device.sizes.range_factor) if len(inputs.finetuned) > 1 else Held()
                needs = needs_of(plan.tensors, method, inputs.sources, device)
                return [need + compared for need in needs]

            resources = allot(needs, find_devices(computing.device), computing.workers)
            inputs.notices += resources.notes
            opened.pop_all()
        return cls(inputs, selection, plan, resources, downloads, selecting.on_nonfinite)

    def run(
        self,
        measure: MeasureLayer,
        measured: Sequence[str],
        compare: Compare | None = None,
        progress: Progress = ignore,
    ) -> list[dict[str, Any]]:
        """Measure every layer.

        Args:
            measure: Measures one matrix.
            measured: The names of what it measures, for the report.
            compare: Compares a tensor in several checkpoints; None to compare nothing.
            progress: Called when a tensor is begun and when it is finished.

        Returns:
            The report's entries of all tensors, in the order of the (first) fine-tuned checkpoint.
        """
        fetch(self.downloads)
        check_copies(self.inputs.copies, self.selection.leaves_out)
        records = {
            tensor.name: LayerRecord(tensor.name, tensor.shape, tensor.dtype, tensor.reason)
            for tensor in self.plan.tensors
        }

        def make(tensor: PlannedTensor, worker: Worker) -> None:
            try:
                record = self._inspect(tensor, worker, measure, compare)
            except NonfiniteError:
                if self.on_nonfinite == "error":
                    raise
                record = LayerRecord(tensor.name, tensor.shape, tensor.dtype, "nonfinite")
            update = update_facts(self.inputs.finetuned, tensor.name)
            records[tensor.name] = replace(record, update_of=update)

        engine = Threads(self.resources.places, self.resources.substitute, is_resumable=False)
        engine.each(self.plan.edited, make, reads=lambda tensor: self.inputs.sources, progress=progress)
        for source in self.inputs.sources:
            source.check_unchanged()
        return [record.to_json(measured) for record in records.values()]

    def _inspect(
        self, tensor: PlannedTensor, worker: Worker, measure: MeasureLayer, compare: Compare | None
    ) -> LayerRecord:
        unchanged = LayerRecord(tensor.name, tensor.shape, tensor.dtype, "unchanged")
        if tensor.elements == 0 or tensor.matrices is None:
            return unchanged
        base, finetuned = self.inputs.base, self.inputs.finetuned
        together = None
        if compare is not None:
            together = compare(FlatLayer(tensor.name, tensor.shared_shape, base, finetuned, None, worker))
        dtypes = [source.reader(tensor.name).dtype for source in finetuned]
        parts = []
        for index in range(tensor.matrices.count):
            part = tensor.matrices.part(index)
            layer = matrix_layer(tensor.name, part.cut, index, base, finetuned, worker, first=part.first)
            with overflow_in(layer, tensor.name):
                parts.append(slice_record(tensor.matrices, index, measure(layer, dtypes)))
        record = replace(unchanged, together=together, shared_rows=tensor.shared_rows)
        if all(part.measures is None for part in parts):
            return record
        if tensor.matrices.is_several:
            return replace(record, reason=None, slices=tuple(parts))
        return replace(record, reason=None, measures=parts[0].measures)

    def head(self, command: str, arguments: Mapping[str, Any], started: float) -> dict[str, Any]:
        """How the report begins; `started` is by `time.monotonic`."""
        inputs = self.inputs
        resolved = {**arguments, "device": self.resources.names, "workers": self.resources.workers}
        machine = environment(self.resources.devices)
        sources = with_roles(inputs)
        return {
            **report_head(command, resolved, machine, sources, started, 0),
            "only_in_base": names_only_in_base(inputs.base, inputs.finetuned, self.plan),
            "notes": inputs.notices,
        }

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.inputs.__exit__()
