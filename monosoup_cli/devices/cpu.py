"""The processor of the host as a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices import host
from monosoup_cli.devices.held import Held, Sizes
from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.formats.dtypes import bytes_of, count_nonfinite

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice

__all__ = ["Cpu", "lacks_host_memory"]

RESIDENT_BYTES = 32 << 20
"""A stored matrix up to this size is read whole and once; a larger one comes again from the cache of the
operating system."""

TIMED_SIDE = 512
"""The side of the products by which `float64_rate` is measured: large enough for BLAS's full speed."""


@dataclass(frozen=True)
class Cpu:
    """The host's processor: tensors are computed where they are read."""

    @property
    def torch(self) -> TorchDevice:
        import torch

        return torch.device("cpu")

    @property
    def is_host(self) -> bool:
        return True

    @property
    def workers(self) -> int:
        """One for each core: several single-threaded workers are faster than threads inside BLAS."""
        return host.count_cores()

    @property
    def versions(self) -> dict[str, str | None]:
        return {"cuda": None}

    @property
    def sizes(self) -> Sizes:
        return Sizes(RESIDENT_BYTES, 1, Held())

    def model(self) -> str:
        return host.processor_model()

    def free_bytes(self) -> int | None:
        return host.free_bytes()

    def float64_rate(self) -> float:
        import torch

        matrix = torch.full((TIMED_SIDE, TIMED_SIDE), 0.5, dtype=torch.float64)
        seconds = []
        for _ in range(3):
            started = time.thread_time()
            torch.mm(matrix, matrix)
            seconds.append(time.thread_time() - started)
        threads = torch.get_num_threads()  # of which all computed, and the time is that of one
        return self.workers / threads * 2.0 * TIMED_SIDE**3 / max(min(seconds), 1e-9)

    def channel(self, number: int) -> HostChannel:
        return HostChannel()

    def warm_up(self) -> None:
        pass


class HostChannel:
    """The channel of a worker that computes on the host: bytes stay where they are read."""

    def __init__(self) -> None:
        self.device, self.host, self.sizes = Cpu().torch, Scratch(), Cpu().sizes

    def buffer(self, purpose: str, dtype: str, *shape: int) -> Tensor:
        return self.host.take(purpose, dtype, *shape)

    def upcast(self, stored: Tensor, dtype: str, purpose: str) -> Tensor:
        return self.host.take(purpose, dtype, *stored.shape).copy_(stored)

    def fill(self, target: Tensor, read: Callable[[memoryview, int], None]) -> None:
        read(bytes_of(target), 0)

    def upload(self, values: Tensor) -> Tensor:
        return values

    def download(self, values: Tensor) -> Tensor:
        return values

    def store(
        self, part: Tensor, write: Callable[[memoryview, int], None], refuse: Callable[[int], None]
    ) -> None:
        if count := count_nonfinite(part):
            refuse(count)
        write(bytes_of(part), 0)

    def storing(self) -> AbstractContextManager[None]:
        return nullcontext()


def lacks_host_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the host's memory ran out; it has no type of its own."""
    return any(words in str(error) for words in ("can't allocate memory", "bad_alloc"))
