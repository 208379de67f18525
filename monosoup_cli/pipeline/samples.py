"""A task's own run on made-up tensors of small sizes, in memory: how fast this machine is at it."""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from monosoup_cli.formats import dtypes
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.outputs.form import Target
from monosoup_cli.outputs.journal import finished_line
from monosoup_cli.outputs.tensor_sink import TensorSink
from monosoup_cli.pipeline.engine import Threads
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.run import Work, run
from monosoup_cli.report.files import as_text
from monosoup_cli.sources.source import DENSE, LowRank, Reader, Source, Update
from monosoup_cli.tensors.ingredients import Ingredients
from monosoup_cli.tensors.method import Edit, Wanted
from monosoup_cli.tensors.plan import Plan, PlannedTensor
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

    from monosoup_cli.formats.files import Download

__all__ = ["seconds_for"]

STRONG, STRENGTH = 64, 0.4
"""How many directions of a made-up update stand out of the noise, and how far. A split by entropy then has
about a quarter of all directions in its smaller part, which is multiplied out. In real updates it has
anything between none and half of them, which is the most expensive."""


def seconds_for(ready: Ready, finetuned: Sequence[Source], sample: PlannedTensor, repeats: int = 1) -> float:
    """Measure how long one worker takes for a tensor while the others are as busy.

    Returns:
        Seconds of the processor, so that other programs do not count.

    Args:
        ready: The task.
        finetuned: The fine-tuned checkpoints that are averaged.
        sample: A tensor of the plan, in a small shape.
        repeats: How many times each worker makes it.
    """
    planned, resources = ready.planned, ready.resources
    inputs = planned.inputs
    places = resources.places[: resources.devices[0].workers]  # more than there are cores share them
    before, after = _values(sample)
    samples = [sample] * (len(places) * repeats)
    if sample.matrices is not None:  # under names of their own, those that are small are edited together
        samples = [replace(sample, name=f"{sample.name} {number}") for number in range(len(samples))]
    base = None if inputs.base is None else _MadeUp(inputs.base, sample, samples, before)
    ingredients = Ingredients(
        base if planned.method.needs_base else None,
        [_MadeUp(source, sample, samples, after) for source in finetuned],
        _MadeUp(inputs.finetuned[0], sample, samples, after),
        planned.task.order.weights,
        base,
        planned.task.order.kept,
    )
    clock = _Clock()
    plan = Plan(tuple(samples))
    target = Target(cast(Any, _Nowhere()), ingredients, ready.variants)
    work = Work(
        plan,
        planned.method,
        cast(Any, _Form(ready.form.wanted(sample))),
        target,
        "error",
        {one.name for one in samples},
    )
    run(work, Threads(places), clock)
    return clock.median


def _values(sample: PlannedTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after fine-tuning, float32: an update with some strong directions over noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    before, update = (torch.randn(sample.shape, generator=generator) for _ in range(2))
    if sample.matrices is not None:
        left, right = (torch.randn(size, STRONG, generator=generator) for size in sample.shape)
        update += STRENGTH * (left * 0.95 ** torch.arange(STRONG)) @ right.T
    return before, before + 0.01 * update


class _MadeUp:
    """A source with made-up values of samples, stored as another source stores a tensor of the plan."""

    def __init__(
        self, source: Source, sample: PlannedTensor, samples: Sequence[PlannedTensor], values: torch.Tensor
    ) -> None:
        import torch

        self.path, self.files, self.model, self.held_bytes = source.path, source.files, source.model, 0
        self.tensors: Mapping[str, TensorInfo] = {}
        self._update: Update = DENSE
        info = source.tensors.get(sample.name)
        if info is None:
            return
        nbytes = values.numel() * dtypes.BITS[info.dtype] // 8
        self._stored = torch.zeros(nbytes, dtype=torch.uint8)  # codes are only copied
        if info.dtype in dtypes.FLOATING:
            self._stored = dtypes.cast(values, info.dtype, info.name)
        self._bytes = dtypes.bytes_of(self._stored)
        self._reader = Reader(info.dtype, self._read_into)
        stored = TensorInfo(info.name, info.dtype, sample.shape, 0, nbytes)
        self.tensors = {one.name: replace(stored, name=one.name) for one in samples}
        update = source.update(sample.name)
        if isinstance(update, LowRank) and sample.matrices is not None:
            rows, columns = sample.shape
            rank = min(update.rank, rows, columns)
            left, right = (torch.randn(*of, dtype=torch.float64) for of in ((rows, rank), (rank, columns)))
            self._update = replace(update, rank=rank, factors=lambda *_: (left, right))

    def update(self, name: str) -> Update:
        """As that of the other source."""
        return self._update

    def reader(self, name: str) -> Reader:
        """Copies the values, as the system does from its cache."""
        return self._reader

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._bytes[offset : offset + len(buffer)]

    def prefetch(self, name: str, limit: int) -> None:
        """Nothing: the values are in memory."""

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """Nothing."""
        return []

    def is_at_hand(self, name: str) -> bool:
        """Whether there are values."""
        return name in self.tensors

    def forget(self) -> None:
        """Nothing."""

    def check_unchanged(self) -> None:
        """Nothing: there is no file."""


class _Nowhere:
    """What `PartialOutput` does with the bytes and records of a tensor, except for writing them."""

    def __init__(self) -> None:
        self.finished: dict[str, Any] = {}

    def write(self, tensor: str, data: memoryview, offset: int = 0, folder: str = "") -> None:
        """Copy the bytes, as the system does into its cache, and take both checksums."""
        written = bytes(data)
        zlib.crc32(data)
        hashlib.sha256(written)

    def write_together(self, tensors: Sequence[str], data: memoryview, folder: str = "") -> None:
        """The same for several tensors."""
        self.write("", data)

    def commit(self, records: Mapping[str, list[dict[str, Any]]]) -> None:
        """Format lines of the journal, and parts of the report, as it is written and returned."""
        for tensor, of_one in records.items():
            finished_line(tensor, [0], of_one)
            for _ in range(2):
                as_text({"layers": of_one})


class _Form:
    """Has a sink for any tensor, which takes blocks or factors."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def parts(self) -> Mapping[str, Sequence[str]]:
        """Nothing."""
        return {}

    def sink(self, tensor: PlannedTensor, target: Target, worker: Worker) -> _Sink:
        sink = _Sink(tensor, target, worker)
        if self._wanted.rank is not None and tensor.matrices is not None:
            rank = min(self._wanted.rank, tensor.matrices.cut.side)
            sink.wanted = replace(self._wanted, rank=rank)
        return sink


class _Sink(TensorSink):
    """Takes the blocks of a tensor. Factors are few bytes, which are dropped."""

    def put(self, index: int, edit: Edit) -> None:
        if not self.wanted.factors:
            super().put(index, edit)


class _Clock:
    """Progress that notes the processor time of each tensor; of those that are made together, their mean."""

    def __init__(self) -> None:
        self._thread = threading.local()
        self._seconds: list[float] = []

    def __call__(self, tensor: PlannedTensor, is_done: bool) -> None:
        thread = self._thread
        if is_done:
            thread.waiting -= 1
            if not thread.waiting:
                self._seconds.append((time.thread_time() - thread.started) / thread.count)
            return
        if not getattr(thread, "waiting", 0):
            thread.started, thread.count, thread.waiting = time.thread_time(), 0, 0
        thread.count += 1
        thread.waiting += 1

    @property
    def median(self) -> float:
        # the first one may load libraries; a coarse clock may say 0
        return max(statistics.median(self._seconds), 1e-6)
