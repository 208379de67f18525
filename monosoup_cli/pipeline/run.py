"""The one loop: read → compute → write → record, for every tensor of the plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from monosoup_cli.checkpoints.header import BITS, FLOATING
from monosoup_cli.errors import NonfiniteError, ResourceError
from monosoup_cli.pipeline.blocks import (
    InputMatrix,
    Layer,
    OutputMatrix,
    Scratch,
    bytes_of,
    check_finite,
    count_nonfinite,
)
from monosoup_cli.pipeline.devices import WorkerPlaces, blas_threads_restored, warm_up
from monosoup_cli.pipeline.plan import Plan, PlannedTensor
from monosoup_cli.report.records import LayerRecord, SliceRecord

if TYPE_CHECKING:
    import torch

    from monosoup_cli.checkpoints.locate import Checkpoint
    from monosoup_cli.checkpoints.writer import PartialOutput

__all__ = ["Apply", "Method", "Progress", "Run", "run"]

Apply = Callable[["torch.Tensor"], "torch.Tensor"]
Method = Callable[[Layer], "tuple[Mapping[str, Any], Apply] | None"]
"""What a command does to one matrix: what it measured, and the map from blocks of the update to
blocks of the edited update. None: the matrix counts as unchanged and stays as fine-tuned."""

Progress = Callable[[PlannedTensor, bool], None]
"""Called from any thread when a tensor is begun (False) and when it is finished (True)."""

CHUNK_BYTES = 8 << 20


class Stopped(Exception):
    """Another worker failed, or the user interrupted: the tensor in hand is dropped."""


@dataclass(frozen=True)
class Run:
    """The whole job: the plan, how one matrix is edited, and where bytes come from and go to.

    `wise`: afterwards W0 + wise·(W − W0), on kept tensors too; None for not. `measured`: the
    names of what `method` measures.
    """

    plan: Plan
    method: Method
    measured: Sequence[str]
    base: Checkpoint
    finetuned: Sequence[Checkpoint]
    output: PartialOutput
    wise: float | None = None
    on_nonfinite: Literal["error", "keep"] = "error"


def run(job: Run, devices: Sequence[torch.device], workers: int, progress: Progress) -> None:
    """Make every tensor of the plan that is not finished yet; records end in `job.output.finished`.

    After an error, or an interrupt of the calling thread, the workers leave the tensors in hand
    and the exception goes on.
    """
    places, stop = WorkerPlaces(devices), threading.Event()
    waiting = []
    for tensor in job.plan.tensors:
        if tensor.name in job.output.finished:
            progress(tensor, True)
        else:
            waiting.append(tensor)

    def make(number: int) -> None:
        tensor = waiting[number]
        progress(tensor, False)
        if number + workers < len(waiting):
            _prefetch(job, waiting[number + workers])
        with places.mine() as (device, scratch):
            record = _Worker(job, device, scratch, stop).make(tensor)
        job.output.commit(tensor.name, record.to_json(job.measured))
        progress(tensor, True)

    warm_up(devices)
    with blas_threads_restored(), ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        try:
            futures = [pool.submit(make, number) for number in range(len(waiting))]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for checkpoint in (job.base, *job.finetuned):
        checkpoint.check_unchanged()


def _prefetch(job: Run, tensor: PlannedTensor) -> None:
    if tensor.has_base:
        job.base.prefetch(tensor.name)
    for checkpoint in job.finetuned[: tensor.sources]:
        checkpoint.prefetch(tensor.name)


class _Worker:
    """Makes one tensor: with a device, buffers, and the sign to stop."""

    def __init__(self, job: Run, device: torch.device, scratch: Scratch, stop: threading.Event) -> None:
        self.job, self.device, self.scratch, self.stop = job, device, scratch, stop

    def make(self, tensor: PlannedTensor) -> LayerRecord:
        import torch

        try:
            return self._make(tensor)
        except (MemoryError, torch.OutOfMemoryError):
            raise ResourceError(
                "no memory left on the way",
                tensor=tensor.name,
                hint="--resume with --workers 1, or with --device cpu, needs less",
            ) from None
        except NonfiniteError:
            if self.job.on_nonfinite == "error":
                raise
            self._keep_as_finetuned(tensor, is_checked=False)
            return self._record(tensor, "nonfinite")

    def _make(self, tensor: PlannedTensor) -> LayerRecord:
        if not tensor.is_edited:
            self._check_unread(tensor)
            if tensor.is_copied:
                self._keep_as_finetuned(tensor)
            else:
                self._store_as_finetuned(tensor, 0)
            return self._record(tensor, tensor.reason)
        slices = []
        for index in range(tensor.matrices):
            layer = self._layer(tensor, index, with_base=True)
            edit = self._edit(tensor, layer)
            if edit is not None:
                self._store(tensor, index, layer, edit[1])
            elif tensor.stack is None and self._is_plain(tensor):
                self._keep_as_finetuned(tensor)
            else:
                self._store_as_finetuned(tensor, index)
            slices.append(SliceRecord(index, edit and edit[0]))
        if all(part.measures is None for part in slices):
            return self._record(tensor, "unchanged")
        if tensor.stack is not None:
            return LayerRecord(tensor.name, tensor.shape, tensor.dtype, None, slices=tuple(slices))
        return LayerRecord(tensor.name, tensor.shape, tensor.dtype, None, slices[0].measures)

    def _record(self, tensor: PlannedTensor, reason: str | None) -> LayerRecord:
        return LayerRecord(tensor.name, tensor.shape, tensor.dtype, reason)

    def _is_plain(self, tensor: PlannedTensor) -> bool:
        """Whether "as fine-tuned" means the bytes of the fine-tuned checkpoint."""
        return self.job.wise is None and tensor.sources == 1 and tensor.stored_dtype == tensor.dtype

    def _edit(self, tensor: PlannedTensor, layer: Layer) -> tuple[Mapping[str, Any], Apply] | None:
        if tensor.cut.elements == 0:
            return None
        try:
            return self.job.method(layer)
        except FloatingPointError:
            raise NonfiniteError("the update overflows float64", tensor=tensor.name) from None

    def _layer(self, tensor: PlannedTensor, index: int, *, with_base: bool) -> Layer:
        def matrix(checkpoint: Checkpoint, purpose: str) -> InputMatrix:
            return InputMatrix(checkpoint, tensor.name, tensor.cut, self.scratch, purpose, index)

        finetuned = [
            matrix(checkpoint, f"finetuned {number}")
            for number, checkpoint in enumerate(self.job.finetuned[: tensor.sources])
        ]
        base = matrix(self.job.base, "base") if with_base else None
        return Layer(base, finetuned, self.device, self.scratch, self._interrupt)

    def _store_as_finetuned(self, tensor: PlannedTensor, index: int) -> None:
        """Write the fine-tuned mean, interpolated with `wise`, in the dtype asked for."""
        with_base = tensor.has_base and self.job.wise is not None
        self._store(tensor, index, self._layer(tensor, index, with_base=with_base), None)

    def _store(self, tensor: PlannedTensor, index: int, layer: Layer, apply: Apply | None) -> None:
        """Write W0 + wise · apply(Δ) block by block; without a base, Δ is the mean itself."""
        wise = 1.0 if self.job.wise is None else self.job.wise
        result = OutputMatrix(
            self.job.output, tensor.name, tensor.stored_dtype, tensor.cut, self.scratch, index
        )
        for start, stop, base, update in layer.pairs():
            edited = update if apply is None else apply(update)
            result.put(start, stop, edited if base is None else base.add_(edited, alpha=wise))

    def _keep_as_finetuned(self, tensor: PlannedTensor, *, is_checked: bool = True) -> None:
        """Move the (first) fine-tuned checkpoint's bytes, chunk by chunk; cast where asked to.

        `is_checked`: NaN or Inf stops the run.
        """
        source, written = self.job.finetuned[0], 0
        for chunk in self._chunks(source, tensor.name):
            if is_checked and tensor.dtype in FLOATING:
                check_finite(chunk, source.source, tensor.name)
            if tensor.stored_dtype != tensor.dtype:
                nonfinite = count_nonfinite(chunk)
                chunk = self.scratch.take("output", tensor.stored_dtype, len(chunk)).copy_(chunk)
                if count_nonfinite(chunk) > nonfinite:
                    raise NonfiniteError(f"overflows {tensor.stored_dtype}", tensor=tensor.name)
            self.job.output.write(tensor.name, bytes_of(chunk), written)
            written += len(bytes_of(chunk))

    def _check_unread(self, tensor: PlannedTensor) -> None:
        """Raise NonfiniteError for NaN or Inf in a kept tensor's namesakes that are not used."""
        for checkpoint in (self.job.base, *self.job.finetuned[tensor.sources :]):
            namesake = checkpoint.tensors.get(tensor.name)
            if namesake is not None and namesake.dtype in FLOATING:
                for chunk in self._chunks(checkpoint, tensor.name):
                    check_finite(chunk, checkpoint.source, tensor.name)

    def _chunks(self, checkpoint: Checkpoint, name: str) -> Iterator[torch.Tensor]:
        """A stored tensor piece by piece, flat: in its dtype where that is edited, else as bytes."""
        stored = checkpoint.tensors[name]
        dtype = stored.dtype if stored.dtype in FLOATING else "U8"
        for offset in range(0, stored.nbytes, CHUNK_BYTES):
            self._interrupt()
            count = min(CHUNK_BYTES, stored.nbytes - offset) * 8 // BITS[dtype]
            chunk = self.scratch.take("kept", dtype, count)
            checkpoint.read_into(name, bytes_of(chunk), offset)
            yield chunk

    def _interrupt(self) -> None:
        if self.stop.is_set():
            raise Stopped
