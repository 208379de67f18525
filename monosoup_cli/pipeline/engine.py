"""How many tensors are made at once, and where: the engine that the loop over tensors runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, TypeAlias

from monosoup_cli.devices.cpu import lacks_host_memory
from monosoup_cli.devices.cuda import first_line, is_fault, lacks_memory
from monosoup_cli.devices.device import Channel, Device
from monosoup_cli.errors import ResourceError
from monosoup_cli.signals import hold_signals
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.plan import PlannedTensor
from monosoup_cli.tensors.worker import Worker

__all__ = ["Engine", "Make", "Progress", "Stopped", "Threads", "ignore"]

PREFETCHED_BYTES = 16 << 20
"""How many bytes of the next tensor to prefetch, summed over all checkpoints."""

Make: TypeAlias = Callable[[PlannedTensor, Worker], None]
"""Makes one tensor of the output."""

Progress: TypeAlias = Callable[[PlannedTensor, bool], None]
"""Called from any thread when a tensor is started (False) and when it is finished (True)."""


def ignore(tensor: PlannedTensor, is_done: bool) -> None:
    """Progress that nobody watches."""


class Stopped(Exception):
    """The thread drops its tensor, because another thread failed or the user interrupted the run."""


class Engine(Protocol):
    """What makes the tensors of a plan."""

    def each(
        self,
        tensors: Sequence[PlannedTensor],
        make: Make,
        *,
        reads: Callable[[PlannedTensor], Sequence[Source]],
        progress: Progress,
    ) -> None:
        """Call `make` once for every tensor. Return when all of them are made.

        Args:
            tensors: The tensors, in the order in which they are started.
            make: Makes one of them. It may be called from several threads at once, each with its own
                `Worker`.
            reads: The checkpoints that `make` will read for a tensor.
            progress: Called before and after each call of `make`.

        Raises:
            ResourceError: A call of `make` ran out of memory.
            BaseException: The first exception that a call of `make` raised. The other calls end early.
        """


@dataclass(frozen=True)
class Threads:
    """The engine for one machine: some threads, each on one of the devices.

    Linear algebra gets one thread for each worker. So the order of additions, and every byte of the
    output, is the same for any number of workers.

    Args:
        places: The device of every thread.
        substitute: Makes the tensors for which a card has no memory, one at a time; None to fail there.
        is_resumable: Whether the command can be resumed after an error.
    """

    places: Sequence[Device]
    substitute: Device | None = None
    is_resumable: bool = True

    def each(
        self,
        tensors: Sequence[PlannedTensor],
        make: Make,
        *,
        reads: Callable[[PlannedTensor], Sequence[Source]],
        progress: Progress,
    ) -> None:
        """Call `make` once for every tensor; see `Engine.each`."""
        numbers, lock, stop = iter(range(len(tensors))), threading.Lock(), threading.Event()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        substituting = threading.Lock()
        workers = len(self.places)

        def prefetch(tensors: Sequence[PlannedTensor]) -> None:
            for tensor in tensors:
                sources = reads(tensor)
                for source in sources:
                    source.prefetch(tensor.name, PREFETCHED_BYTES // len(sources))

        def interrupt() -> None:
            if stop.is_set():
                raise Stopped

        def make_one(tensor: PlannedTensor, worker: Worker) -> None:
            with _one_line(tensor, worker, is_resumable=self.is_resumable):
                try:
                    make(tensor, worker)
                    return
                except RuntimeError as error:
                    if self.substitute is None or not lacks_memory(error):
                        raise
            with substituting:
                other = Worker(self.substitute.channel(0), interrupt, is_substitute=True)
                with _one_line(tensor, other, is_resumable=self.is_resumable):
                    make(tensor, other)

        def make_all(channel: Channel) -> None:
            worker = Worker(channel, interrupt)
            while not stop.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                progress(tensors[number], False)
                prefetch(tensors[number + workers : number + workers + 1])
                make_one(tensors[number], worker)
                progress(tensors[number], True)

        def work(number: int) -> None:
            try:
                _use_one_thread()
                place = self.places[number]
                make_all(place.channel(self.places[:number].count(place)))
            except BaseException as error:
                ended.put(error)
                stop.set()
            else:
                ended.put(None)

        prefetch(tensors[:workers])
        with _keep_blas_threads(), ThreadPoolExecutor(workers, "worker") as pool:
            try:
                # A signal raises in this thread. Inside of the pool it could leave a lock taken for ever, so
                # it has to wait there. It is safe to raise out of the queue.
                with hold_signals():
                    for number in range(workers):
                        pool.submit(work, number)
                for _ in range(workers):
                    error = ended.get()
                    if error is not None:
                        raise error
            except BaseException:
                stop.set()
                raise


@contextmanager
def _one_line(tensor: PlannedTensor, worker: Worker, *, is_resumable: bool) -> Iterator[None]:
    """Turn a lack of memory, and what fails in torch's libraries, into errors of one line."""
    import torch

    resume = f"{'--resume and ' if is_resumable else ''}"
    again = f"rerun with {resume}--workers 1, or with --device cpu, to need less"
    try:
        yield
    except MemoryError:
        raise ResourceError("ran out of memory on the host", tensor=tensor.name, hint=again) from None
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        reason = f"a decomposition failed: {first_line(error)}"
        keeps = "--exclude keeps the tensor as fine-tuned"
        raise ResourceError(reason, tensor=tensor.name, hint=keeps) from None
    except RuntimeError as error:
        device = worker.channel.device
        if lacks_host_memory(error):
            reason = "ran out of memory on the host"
        elif lacks_memory(error):
            reason = f"ran out of memory on {device}"
        elif is_fault(error):
            reason, again = f"{device} failed: {first_line(error)}", f"rerun with {resume}--device cpu"
        else:
            raise
        raise ResourceError(reason, tensor=tensor.name, hint=again) from None


def _use_one_thread() -> None:
    """Have torch compute with one thread where the calling thread computes."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def _keep_blas_threads() -> Iterator[None]:
    """Give the process back its number of threads, which `_use_one_thread` changes."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
