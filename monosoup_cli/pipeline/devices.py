"""Which devices compute, how many tensors at once, and how much memory that takes.

One BLAS thread a worker: several single-threaded workers use the cores better than threads inside
BLAS, and the order of additions, hence every byte, does not depend on how many workers there are.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from monosoup_cli.errors import ResourceError, UsageError
from monosoup_cli.formats.header import BITS
from monosoup_cli.pipeline.blocks import FLAT_BYTES, MEAN_BYTES, RESIDENT_BYTES, Cut, Scratch
from monosoup_cli.pipeline.plan import Plan

if TYPE_CHECKING:
    import torch

__all__ = [
    "WorkerPlaces",
    "blas_threads_restored",
    "describe_device",
    "estimate_bytes",
    "find_devices",
    "plan_workers",
    "warm_up",
]

WORKERS_PER_CARD = 3
"""One computes while another reads and a third writes."""

RESERVED_SHARE = 0.9
"""Of the memory that is free, what a run may plan to use."""


def find_devices(name: str) -> list[torch.device]:
    """The devices that `--device` means: auto, cpu, cuda (all cards) or cuda:N. Raises UsageError."""
    if name == "cpu":
        return _devices(["cpu"])
    if name != "auto" and name != "cuda" and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", found=name)
    # two workers share a card: without this cuBLAS may add in another order from run to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not cards:
        return _devices(["cpu"])
    if name in ("auto", "cuda") and cards:
        return _devices([f"cuda:{number}" for number in range(cards)])
    if name.startswith("cuda:") and int(name[5:]) < cards:
        return _devices([name])
    if not cards:
        raise UsageError(f"device {name}: this torch sees no CUDA device")
    raise UsageError("no such CUDA device", expected=f"cuda:0 to cuda:{cards - 1}", found=name)


def _devices(names: Sequence[str]) -> list[torch.device]:
    import torch

    return [torch.device(name) for name in names]


def describe_device(device: torch.device) -> str:
    """The model of a processor or card: results may differ in the last bits between models."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had: on a card what is free; on the host without swapping and within the
    control group's limit. None where the system does not tell."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):  # the system's cache of files gives way
                used -= int(line.split()[1])
        limits.append(int((group / "memory.max").read_text()) - used)
    return min(limits, default=None)


def estimate_bytes(cut: Cut, itemsize: int, *, is_mean: bool, variants: int) -> int:
    """Memory that one worker takes for one matrix: buffers, blocks, Gram matrix and eigenvectors."""
    block = cut.block_length * cut.side
    resident = min(cut.elements, max(block, RESIDENT_BYTES // itemsize)) * itemsize
    buffers = (2 + (variants if cut.is_wide else 1)) * resident
    if is_mean:
        buffers += 8 * min(cut.elements, max(block, MEAN_BYTES // 8))
    # the Gram matrix, its eigenvectors, LAPACK's workspace of two matrices, the kept directions
    return buffers + 4 * 8 * block + 5 * 8 * cut.side**2


def plan_workers(
    plan: Plan,
    devices: Sequence[torch.device],
    asked: int | None,
    *,
    is_mean: bool,
    variants: int,
    kept_in_order: int,
) -> tuple[int, int]:
    """(workers, memory in bytes that they may take): as many as pay and fit, or as asked. Each may hold
    `kept_in_order` bytes beside what its tensor takes.

    Raises ResourceError where not even one worker's tensor fits into memory.
    """
    import torch

    needs = sorted(
        (
            kept_in_order + FLAT_BYTES
            if tensor.cut is None
            else kept_in_order
            + estimate_bytes(tensor.cut, BITS[tensor.dtype] // 8 or 1, is_mean=is_mean, variants=variants)
            for tensor in plan.tensors
        ),
        reverse=True,
    )
    at_once = count_cores() if devices[0].type == "cpu" else WORKERS_PER_CARD
    places = {torch.device("cpu"), *devices}  # a card's blocks pass through the host
    known = [free for free in map(free_bytes, places) if free is not None]
    if known:
        allowed = int(min(known) * RESERVED_SHARE)
        if needs and needs[0] > allowed:
            raise ResourceError(
                "the largest matrix does not fit into memory",
                expected=f"about {needs[0]:,} bytes",
                found=f"{min(known):,} free",
            )
        while at_once > 1 and sum(needs[:at_once]) > allowed:
            at_once -= 1
    workers = max(1, min(asked or at_once * len(devices), len(plan.tensors)))
    return workers, sum(needs[:workers])


def warm_up(devices: Sequence[torch.device]) -> None:
    """Have torch load its CUDA linear algebra, which it does at the first call and not thread-safely."""
    import torch

    for device in devices:
        if device.type == "cuda":
            torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=device))


@contextmanager
def blas_threads_restored() -> Iterator[None]:
    """Give the process back its number of threads, which workers set to one."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class WorkerPlaces:
    """A device, a stream and buffers for every worker thread, made when the thread first asks."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._local = threading.local()
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def mine(self) -> Iterator[tuple[torch.device, Scratch]]:
        """The calling thread's device and buffers, and its own stream on a card."""
        import torch

        if not hasattr(self._local, "device"):
            with self._lock:
                self._local.device = self._devices[self._count % len(self._devices)]
                self._count += 1
            is_card = self._local.device.type == "cuda"
            self._local.scratch = Scratch(pinned=is_card)
            self._local.stream = None
            if is_card:
                self._local.stream = torch.cuda.Stream(self._local.device)  # type: ignore[no-untyped-call]
            torch.set_num_threads(1)
        stream = self._local.stream
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            yield self._local.device, self._local.scratch
