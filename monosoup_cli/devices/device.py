"""What a device can do, and which devices `--device` means."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.cuda import Cuda, count_cards
from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice

__all__ = ["Device", "find_devices"]

CARD = re.compile(r"cuda:(0|[1-9][0-9]{0,8})", re.ASCII)


class Device(Protocol):
    """A processor or a card on which tensors are computed."""

    @property
    def torch(self) -> TorchDevice:
        """The same device for torch."""

    @property
    def is_host(self) -> bool:
        """Whether it computes in the memory of the host."""

    @property
    def workers(self) -> int:
        """How many workers at once keep it busy."""

    @property
    def versions(self) -> dict[str, str | None]:
        """Versions of the libraries that compute on it, by their keys in the report's environment."""

    def model(self) -> str:
        """Its model; results may differ in the last bits between models."""

    def free_bytes(self) -> int | None:
        """How much memory can be allocated on it now, None where the system does not say."""

    def new_scratch(self) -> Scratch:
        """Buffers for one worker, from which this device can be fed."""

    def stream(self) -> AbstractContextManager[object]:
        """A context in which one worker's operations are independent of those of other workers."""

    def upcast(self, stored: Tensor, dtype: str, scratch: Scratch, purpose: str) -> Tensor:
        """A copy of a CPU tensor, on this device and in a wider dtype.

        Args:
            stored: The tensor as it was read.
            dtype: "F64" or "F32".
            scratch: The worker's buffers.
            purpose: What the copy is for; the next call with the same purpose may reuse its memory.
        """

    def buffer(self, scratch: Scratch, purpose: str, dtype: str, *shape: int) -> Tensor:
        """An uninitialized tensor on this device, in memory that the next call for `purpose` may reuse."""

    def warm_up(self) -> None:
        """Load the libraries that torch loads at the first call, which is not safe in several threads."""


def find_devices(name: str) -> list[Device]:
    """The devices that `--device` means.

    Args:
        name: "auto" (every card, or the processor where there is none), "cpu", "cuda" (every card) or
            "cuda:N".

    Raises:
        UsageError: The name is unknown, or there is no such card.
    """
    if name == "cpu":
        return [Cpu()]
    if name not in ("auto", "cuda") and not CARD.fullmatch(name):
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", found=name)
    cards = count_cards()
    if name == "auto" and not cards:
        return [Cpu()]
    if name in ("auto", "cuda") and cards:
        return [Cuda(number) for number in range(cards)]
    if not cards:
        raise UsageError(f"device {name}: this torch sees no CUDA device")
    number = int(name.removeprefix("cuda:"))
    if number >= cards:
        raise UsageError("no such CUDA device", expected=f"cuda:0 to cuda:{cards - 1}", found=name)
    return [Cuda(number)]
