"""A graphics card as a device, through torch.cuda: NVIDIA's, and AMD's with a ROCm build of torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from monosoup_cli.devices.held import Held, Sizes
from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.errors import ResourceError
from monosoup_cli.formats.dtypes import as_bytes, bytes_of, mark_nonfinite, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice
    from torch.cuda import Stream

__all__ = ["WORKERS_PER_CARD", "Cuda", "count_cards", "first_line", "is_fault", "lacks_memory"]

WORKERS_PER_CARD = 3
"""One computes while another reads and a third writes."""

PINNED_BYTES = 8 << 20
"""The size of a page-locked buffer: a power of two, to which torch rounds it up."""

STAGED_BYTES = PINNED_BYTES - 512
"""How many bytes cross the bus at a time; behind them is room for a count."""

STAGINGS = 2
"""One is read or written by the host while the other is on the bus."""

RESIDENT_BYTES = 1 << 30
"""A stored matrix up to this size is copied to a card whole and once."""

CUBLAS_BYTES = 8 * 4096 << 10
"""The workspace of cuBLAS for every stream, by CUBLAS_WORKSPACE_CONFIG."""

FLOAT64_PER_CLOCK = {(6, 0): 32, (7, 0): 32, (8, 0): 32, (9, 0): 64, (10, 0): 64}
"""Fused float64 multiplications and additions of a multiprocessor, for each clock cycle, by compute
capability (CUDA C++ Programming Guide, "Arithmetic Instructions"). Other cards have 2 to 4."""

CLOCK = 1.5e9
"""Cycles in a second, as a round figure."""


def count_cards() -> int:
    """How many cards this torch can use. Call it before anything else that uses CUDA."""
    # Several workers share a card. Without this setting, cuBLAS may sum in another order from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def lacks_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory of a card, or memory for its copies, ran out."""
    import torch

    words = ("out of memory", "ALLOC_FAILED")  # of CUDA, of cuBLAS and cuSOLVER
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def is_fault(error: RuntimeError) -> bool:
    """Whether an error of torch comes from a card or its libraries, and not from a wrong call."""
    import torch

    libraries = ("CUDA error", "cusolver error", "cublas error", "HIP error")
    return isinstance(error, torch.AcceleratorError) or str(error).startswith(libraries)


def first_line(error: Exception) -> str:
    """The first line of an error of torch; advice for programmers follows it."""
    return str(error).partition("\n")[0]


def _clear_workspaces() -> None:
    """Give back what cuBLAS keeps for every stream of every thread that has been: threads of later runs take
    their places in another order, and would have it allocate more."""
    import torch

    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # torch has no public name for it
    if clear is not None:
        clear()


@cache
def _stream(card: int, worker: int) -> Stream:
    """The stream of a worker, the same in every run: cuBLAS keeps a workspace for each that it has seen."""
    import torch

    return torch.cuda.Stream(torch.device("cuda", card))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Cuda:
    """One card. Bytes are copied to it as they are stored, and upcast there.

    Args:
        number: Its index, counted from 0.
    """

    number: int

    @property
    def torch(self) -> TorchDevice:
        import torch

        return torch.device("cuda", self.number)

    @property
    def is_host(self) -> bool:
        return False

    @property
    def workers(self) -> int:
        return WORKERS_PER_CARD

    @property
    def versions(self) -> dict[str, str | None]:
        import torch

        hip: str | None = torch.version.hip
        emulation = os.environ.get("CUBLAS_EMULATE_DOUBLE_PRECISION")
        return {
            "cuda": torch.version.cuda,
            **({} if hip is None else {"hip": hip}),
            **({} if emulation is None else {"cublas_emulate_double_precision": emulation}),
        }

    @property
    def sizes(self) -> Sizes:
        """A worker holds two stored matrices and the result, each up to a 32nd of the card. Its ranges have
        some MiB, which outweigh the start of a kernel and of a copy."""
        import torch

        memory = int(torch.cuda.get_device_properties(self.torch).total_memory)
        masks = 4 * STAGED_BYTES  # by which a part that is on its way to the host is looked through for NaN
        blocks = 48 << 20  # those of one kind of tensor, that are kept for the next one of its kind
        overhead = Held(host=STAGINGS * PINNED_BYTES, device=CUBLAS_BYTES + masks + blocks)
        return Sizes(min(RESIDENT_BYTES, memory // 32), 16, overhead)

    def model(self) -> str:
        import torch

        return str(torch.cuda.get_device_name(self.torch))

    def free_bytes(self) -> int | None:
        import torch

        with self._usable():
            _clear_workspaces()
            free = int(torch.cuda.mem_get_info(self.torch)[0])
            # what torch has cached from earlier runs counts as taken there
            cached = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)
            return free + int(cached)

    def float64_rate(self) -> float:
        import torch

        card = torch.cuda.get_device_properties(self.torch)
        of_one = 64 if torch.version.hip else FLOAT64_PER_CLOCK.get((card.major, card.minor), 2)
        return 2.0 * of_one * int(card.multi_processor_count) * CLOCK

    def channel(self, number: int) -> CardChannel:
        import torch

        # A thread's device and stream are set once. Contexts that restore them would touch the first card.
        torch.cuda.set_device(self.torch)
        torch.cuda.set_stream(_stream(self.number, number))
        return CardChannel(self)

    def warm_up(self) -> None:
        import torch

        with self._usable():
            torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=self.torch))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn torch's errors about a card into one line."""
        try:
            yield
        except RuntimeError as error:  # out of memory, busy, in exclusive mode, lost
            raise ResourceError(
                f"{self.torch} cannot be used: {first_line(error)}", hint="--device cpu computes without it"
            ) from None


class CardChannel:
    """The channel of a worker that computes on a card: two page-locked buffers, in turn.

    Everything that a worker does on a card is in one stream, so memory that is freed can be given out again
    at once. Copies overlap with the kernels of other workers.

    Args:
        card: The card.
    """

    def __init__(self, card: Cuda) -> None:
        self.device, self.host, self.sizes = card.torch, Scratch(), card.sizes
        self._upcast = Scratch(self.device)  # blocks: whoever asks for one still holds the one before
        self._stagings = [_Staging() for _ in range(STAGINGS)]

    def buffer(self, purpose: str, dtype: str, *shape: int) -> Tensor:
        import torch

        return torch.empty(shape, dtype=torch_dtype(dtype), device=self.device)

    def upcast(self, stored: Tensor, dtype: str, purpose: str) -> Tensor:
        return self._upcast.take(purpose, dtype, *stored.shape).copy_(stored)

    def fill(self, target: Tensor, read: Callable[[memoryview, int], None]) -> None:
        to = as_bytes(target)
        for start in range(0, len(to), STAGED_BYTES):
            staging = self._next()
            data = staging.data[: min(STAGED_BYTES, len(to) - start)]
            read(bytes_of(data), start)
            to[start : start + len(data)].copy_(data, non_blocking=True)
            staging.is_on_the_bus()

    def upload(self, values: Tensor) -> Tensor:
        import torch

        values = values.contiguous()
        target, source = torch.empty_like(values, device=self.device), bytes_of(values)

        def read(buffer: memoryview, offset: int) -> None:
            buffer[:] = source[offset : offset + len(buffer)]

        self.fill(target, read)
        return target

    def download(self, values: Tensor) -> Tensor:
        import torch

        host = torch.empty_like(values, device="cpu")
        target = bytes_of(host)

        def write(data: memoryview, offset: int) -> None:
            target[offset : offset + len(data)] = data

        with self.storing():
            self.store(values, write, lambda nonfinite: None)
        return host

    def store(
        self, part: Tensor, write: Callable[[memoryview, int], None], refuse: Callable[[int], None]
    ) -> None:
        import torch

        offset = 0
        step = STAGED_BYTES // part.element_size()
        for elements in torch.split(part.view(-1), step):
            staging, source, count = self._next(), as_bytes(elements), mark_nonfinite(elements).sum()
            data = staging.data[: len(source)]
            data.copy_(source, non_blocking=True)
            staging.count.copy_(count, non_blocking=True)

            def deliver(staging: _Staging = staging, data: Tensor = data, offset: int = offset) -> None:
                if nonfinite := int(staging.count):
                    refuse(nonfinite)
                write(bytes_of(data), offset)

            offset += len(source)

            staging.is_on_the_bus(deliver)

    @contextmanager
    def storing(self) -> Iterator[None]:
        try:
            yield
            for staging in self._stagings:  # the one that was used first is the first
                staging.wait()
        finally:
            for staging in self._stagings:
                staging.drop()

    def _next(self) -> _Staging:
        """The buffer that was used first, once its bytes have arrived."""
        staging = self._stagings.pop(0)
        self._stagings.append(staging)
        staging.wait()
        return staging


class _Staging:
    """Page-locked memory through which bytes pass on their way to a card or back.

    Attributes:
        data: The bytes.
        count: One int64 beside them.
    """

    def __init__(self) -> None:
        import torch

        try:
            buffer = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system lets a process lock only so much; copies then wait
            buffer = torch.empty(PINNED_BYTES, dtype=torch.uint8)
        self.data = buffer[:STAGED_BYTES]
        self.count = buffer[STAGED_BYTES : STAGED_BYTES + 8].view(torch.int64)[0]
        self._arrival: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._then: Callable[[], None] | None = None

    def is_on_the_bus(self, then: Callable[[], None] | None = None) -> None:
        """Call `then` once everything has arrived that the thread has queued."""
        self._arrival.record()
        self._then = then

    def wait(self) -> None:
        """Wait until the bytes have arrived, and do what was to follow."""
        if not self._arrival.query():
            self._arrival.synchronize()
        then, self._then = self._then, None
        if then is not None:
            then()

    def drop(self) -> None:
        """Forget what was to follow."""
        self._then = None
