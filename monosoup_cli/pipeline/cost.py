"""How long a run takes, from its own work on small made-up tensors.

The constants of a law (law.py) are fitted to samples, anew for every way in which the task makes tensors. So
a method need not state them, and they follow whatever becomes faster.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from monosoup_cli.pipeline.law import Law
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.samples import seconds_for
from monosoup_cli.pipeline.scoring import trials_of
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.ingredients import product_rank
from monosoup_cli.tensors.plan import Matrices, PlannedTensor

__all__ = ["Estimate", "estimate", "makespan"]

SMALL_SIDE = 256
SMALL_SHAPES = ((16, 16), (64, 64), (128, 128), (8192, 64))
SHAPES = ((16, 16), (512, 512), (2048, 512), (768, 768), (8192, 64))
"""The matrices of the samples, in their order, where all sides are small and where they are not:
decompositions are nearly cubic in the side from about 500 on. Square samples show what these cost, tall
ones what products and single elements cost."""

ELEMENTS = (16, 1 << 20)
"""The elements of samples that are not seen as matrices."""

MAX_ROW = 1 << 16
"""How many elements a row of such a sample has at most."""

REPEATED_ELEMENTS, MAX_REPEATS = 1 << 16, 256
"""Samples are made again until a worker has made so many elements, or has made the sample so many times."""

BUDGET = 0.6
"""Seconds of each worker's processor after which no further sample is begun."""


@dataclass(frozen=True)
class Estimate:
    """How long a run takes on the processor at hand, from start to end, if it never waits for a disk.

    Attributes:
        seconds: The estimate.
        calibration_seconds: How long the samples took.
        cores: How many cores it keeps busy.
    """

    seconds: float
    calibration_seconds: float
    cores: int


def estimate(ready: Ready, members: Sequence[int] | None = None) -> Estimate | None:
    """Estimate the time of a run that is ready. Reads and writes no file.

    What this process has done so far, such as importing torch, the run will do, too.

    Args:
        ready: The run.
        members: Which fine-tuned checkpoints are averaged; None for all.

    Returns:
        None where a score command runs, which may take any time, or where a card computes.
    """
    resources = ready.resources
    if trials_of(ready) or not all(device.is_host for device in resources.devices):
        return None
    workers = min(resources.workers, resources.devices[0].workers)
    so_far = _spent(workers)
    started, deadline = time.monotonic(), time.process_time() + BUDGET * workers
    inputs = ready.planned.inputs.finetuned
    finetuned = inputs if members is None else [inputs[number] for number in members]
    ways: dict[tuple[bool, bool, bool], list[PlannedTensor]] = {}
    for tensor in ready.share.tensors:
        ways.setdefault(_way(tensor, finetuned), []).append(tensor)
    laws = {way: Law.of(_samples(ready, finetuned, tensors, deadline)) for way, tensors in ways.items()}
    seconds = [laws[_way(tensor, finetuned)].seconds(tensor) for tensor in ready.share.tensors]
    in_turn = sum(laws[way].constants[0] * len(tensors) for way, tensors in ways.items())  # Python has a lock
    made = max(makespan(seconds, workers), in_turn)
    return Estimate(so_far + made, time.monotonic() - started, workers)


def _spent(workers: int) -> float:
    """The processor seconds of this process so far; those of other threads are spread over workers."""
    own = time.thread_time()
    return own + (time.process_time() - own) / workers


def _way(tensor: PlannedTensor, finetuned: Sequence[Source]) -> tuple[bool, bool, bool]:
    """How a tensor is made: whether it is edited, as matrices, and from factors of its update."""
    has_factors = tensor.is_edited and product_rank(finetuned, tensor.name) is not None
    return tensor.is_edited, tensor.matrices is not None, has_factors


def _samples(
    ready: Ready, finetuned: Sequence[Source], tensors: Sequence[PlannedTensor], deadline: float
) -> Iterator[tuple[PlannedTensor, float]]:
    """Yield samples of tensors that are made in one way, and the seconds that each takes.

    But for the first, none is larger than these tensors together, or has more than twice their largest side.
    """
    model = max(tensors, key=lambda tensor: tensor.elements)
    elements = sum(tensor.elements for tensor in tensors)
    for number, shape in enumerate(_shapes(model, tensors)):
        size = math.prod(shape)
        if number and (size > elements or time.process_time() > deadline):
            continue
        matrices = None if model.matrices is None else Matrices(Cut(*shape))
        sample = replace(model, shape=shape, matrices=matrices, shared_rows=None)
        repeats = min(max(REPEATED_ELEMENTS // size, 1), MAX_REPEATS)
        yield sample, seconds_for(ready, finetuned, sample, repeats)


def _shapes(model: PlannedTensor, tensors: Sequence[PlannedTensor]) -> Sequence[tuple[int, ...]]:
    if model.matrices is None:
        row = max(min(math.prod(model.shape[1:]), MAX_ROW), 1)
        return [(-(-count // row), row)[: len(model.shape)] for count in ELEMENTS]
    side = max(0 if tensor.matrices is None else tensor.matrices.cut.side for tensor in tensors)
    first, *others = SMALL_SHAPES if side < SMALL_SIDE else SHAPES
    return [first, *(shape for shape in others if shape[1] <= 2 * side)]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last tensor is made, if the first worker that is free begins the next one."""
    ends = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)
