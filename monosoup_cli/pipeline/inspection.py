"""Layers that are measured, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from monosoup_cli.devices.device import find_devices
from monosoup_cli.errors import NonfiniteError, mismatch_in
from monosoup_cli.formats.files import Advance
from monosoup_cli.pipeline.devices import plan_workers
from monosoup_cli.pipeline.engine import Progress, Threads
from monosoup_cli.pipeline.inputs import Inputs, open_inputs, update_of
from monosoup_cli.pipeline.options import RunOptions
from monosoup_cli.pipeline.plan import Plan, PlannedTensor, Selection, make_plan
from monosoup_cli.pipeline.provenance import environment, names_only_in_base, report_head, with_roles
from monosoup_cli.report.records import LayerRecord, SliceRecord
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.hub import fetch
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer, matrix_layer
from monosoup_cli.tensors.worker import Worker

__all__ = ["Compare", "Inspection", "Measure"]

Measure: TypeAlias = "Callable[[MatrixLayer], Mapping[str, Any] | None]"
"""What is measured of one matrix; None where it did not move."""

Compare: TypeAlias = "Callable[[FlatLayer], Mapping[str, Any]]"
"""What is measured of one tensor in several fine-tuned checkpoints."""


@dataclass
class Inspection:
    """A base and its fine-tunes, opened; a context manager, because it holds their files.

    The plan is that of `edit`: a layer is measured where `edit` would edit it. Of all other tensors
    the headers alone are read.
    """

    opened: Inputs
    plan: Plan
    options: RunOptions

    def __post_init__(self) -> None:
        assert self.opened.base is not None
        self.base: Checkpoint = self.opened.base
        self.finetuned: Sequence[Checkpoint] = self.opened.finetuned
        measured = [tensor.name for tensor in self.plan.edited]
        self.downloads = [each for source in self.opened.all for each in source.select(measured)]
        self.devices = find_devices(self.options.device)
        self.workers, _ = plan_workers(
            self.plan,
            self.devices,
            self.options.workers,
            count=len(self.finetuned),
            variants=1,
            kept_in_order=self.opened.kept_in_order,
        )

    @classmethod
    def open(
        cls, base: str, finetuned: Sequence[str], options: RunOptions, stacked: Sequence[str]
    ) -> Inspection:
        """Read the headers, and refuse what they tell; raises MonosoupError."""
        with ExitStack() as opened:
            inputs = opened.enter_context(open_inputs(base, finetuned, options.rename))
            selection = Selection(
                tuple(options.include),
                tuple(options.exclude),
                tuple(stacked),
                options.on_mismatch,
                include_option="layer",
            )
            assert inputs.base is not None
            with mismatch_in(finetuned[0]):
                headers = [each.tensors for each in inputs.finetuned]
                plan = make_plan(
                    inputs.base.tensors, headers, selection, hint=inputs.hint, unchanged=inputs.unchanged
                )
            inspection = cls(inputs, plan, options)
            opened.pop_all()
        return inspection

    @property
    def notices(self) -> list[str]:
        """What people should know of the inputs."""
        return self.opened.notices

    def fetch(self, advance: Advance | None = None) -> None:
        """Download what is measured and is not here; `advance` is told of bytes as they arrive."""
        fetch(self.downloads, advance)

    def run(
        self,
        measure: Measure,
        measured: Sequence[str],
        compare: Compare | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """The report's entries of all tensors, in the order of the (first) fine-tuned checkpoint."""
        self.fetch()
        records = {
            tensor.name: LayerRecord(tensor.name, tensor.shape, tensor.dtype, tensor.reason)
            for tensor in self.plan.tensors
        }

        def make(tensor: PlannedTensor, worker: Worker) -> None:
            try:
                records[tensor.name] = self._inspect(tensor, worker, measure, compare)
            except NonfiniteError:
                if self.options.on_nonfinite == "error":
                    raise
                records[tensor.name] = LayerRecord(tensor.name, tensor.shape, tensor.dtype, "nonfinite")
            records[tensor.name] = replace(
                records[tensor.name], update_of=update_of(self.finetuned, tensor.name)
            )

        Threads(self.devices, self.workers).each(
            self.plan.edited,
            make,
            reads=lambda tensor: [self.base, *self.finetuned],
            progress=progress or (lambda tensor, is_done: None),
        )
        for _, checkpoint in self.inputs:
            checkpoint.check_unchanged()
        return [record.to_json(measured) for record in records.values()]

    def _inspect(
        self, tensor: PlannedTensor, worker: Worker, measure: Measure, compare: Compare | None
    ) -> LayerRecord:
        facts = (tensor.name, tensor.shape, tensor.dtype)
        if tensor.elements == 0 or tensor.cut is None:
            return LayerRecord(*facts, "unchanged")
        together = None
        if compare is not None:
            together = compare(
                FlatLayer(tensor.name, tensor.shared_shape, self.base, self.finetuned, None, worker)
            )
        parts = []
        for index in range(tensor.matrices):
            layer = matrix_layer(tensor.name, tensor.cut, index, self.base, self.finetuned, worker)
            try:
                parts.append(SliceRecord(index, measure(layer)))
            except FloatingPointError:
                raise NonfiniteError("the update overflows float64", tensor=tensor.name) from None
        reason = "unchanged" if all(part.measures is None for part in parts) else None
        measures, slices = parts[0].measures, None
        if reason is None and tensor.stack is not None:
            measures, slices = None, tuple(parts)
        return LayerRecord(*facts, reason, measures, slices, together, tensor.shared_rows)

    @property
    def inputs(self) -> list[tuple[str, Checkpoint]]:
        """(role, checkpoint), in the order of the command line."""
        return with_roles(self.base, self.finetuned)

    def head(self, command: str, arguments: Mapping[str, Any], started: float) -> dict[str, Any]:
        """How the report begins."""
        resolved = {
            **arguments,
            "device": ", ".join(str(device.torch) for device in self.devices),
            "workers": self.workers,
        }
        return {
            **report_head(command, resolved, environment(self.devices), self.inputs, started, 0),
            "only_in_base": names_only_in_base(self.base, self.finetuned),
        }

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.__exit__()
