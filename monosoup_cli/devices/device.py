"""What a device can do, and which devices `--device` means."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.cuda import Cuda, count_cards
from monosoup_cli.devices.held import Sizes
from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice

__all__ = ["Channel", "Device", "find_devices"]

CARD = re.compile(r"cuda:(0|[1-9][0-9]{0,8})", re.ASCII)


class Channel(Protocol):
    """One worker's memory on a device, and the way of bytes from the host to it and back.

    Attributes:
        device: The device for torch.
        host: Buffers on the host, for bytes that nothing is computed on.
        sizes: How much the worker holds.
    """

    @property
    def device(self) -> TorchDevice: ...

    @property
    def host(self) -> Scratch: ...

    @property
    def sizes(self) -> Sizes: ...

    def buffer(self, purpose: str, dtype: str, *shape: int) -> Tensor:
        """An uninitialized tensor on the device, in memory that the next call for `purpose` may reuse."""
        ...

    def upcast(self, stored: Tensor, dtype: str, purpose: str) -> Tensor:
        """A copy of a tensor on the device in a wider dtype.

        Args:
            stored: The tensor as it was read.
            dtype: "F64" or "F32".
            purpose: What the copy is for; the next call with the same purpose may reuse its memory.
        """
        ...

    def fill(self, target: Tensor, read: Callable[[memoryview, int], None]) -> None:
        """Fill a tensor on the device with bytes.

        Args:
            target: A contiguous tensor of a stored dtype.
            read: Fills a buffer with the tensor's bytes from an offset on. It is called for consecutive
                parts of the tensor.
        """
        ...

    def upload(self, values: Tensor) -> Tensor:
        """Copy a tensor on the host to the device. Return it itself if that is the host."""
        ...

    def download(self, values: Tensor) -> Tensor:
        """Copy a contiguous tensor on the device to the host. Return it itself if that is the host."""
        ...

    def store(
        self, part: Tensor, write: Callable[[memoryview, int], None], refuse: Callable[[int], None]
    ) -> None:
        """Hand the bytes of a tensor on the device to the host, inside of `storing`.

        `write` and `refuse` may be called later, at the latest when `storing` ends.

        Args:
            part: A contiguous tensor of a floating-point dtype.
            write: Takes consecutive parts of the bytes, each with its offset. A part is overwritten after
                the call.
            refuse: Raises an error. It is called with the number of elements that are NaN or Inf, if there
                are any.
        """
        ...

    def storing(self) -> AbstractContextManager[None]:
        """A context at whose end everything is written that was handed to `store`. If it is left by an
        exception, nothing more is written."""
        ...


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
        """What the last bits of its results depend on, by the keys in the report's environment."""

    @property
    def sizes(self) -> Sizes:
        """How much a worker holds."""

    def model(self) -> str:
        """Its model; results may differ in the last bits between models."""

    def free_bytes(self) -> int | None:
        """How much memory can be allocated on it now, None where the system does not say.

        Raises:
            ResourceError: The device cannot be used.
        """

    def float64_rate(self) -> float:
        """About how many float64 operations it does in a second, with all of its workers."""

    def channel(self, number: int) -> Channel:
        """The channel of worker `number` of this device; call it in the worker's own thread."""

    def warm_up(self) -> None:
        """Load the libraries that torch loads at the first call, which is not safe in several threads.

        Raises:
            ResourceError: The device cannot be used.
        """


def find_devices(name: str) -> list[Device]:
    """The devices that `--device` means.

    Args:
        name: "auto" (every card, and the processor where there is none or where cards cannot be used),
            "cpu", "cuda" (every card) or "cuda:N".

    Returns:
        The devices in the order of their preference. The processor, if it is among them, is the last.

    Raises:
        UsageError: The name is unknown, or there is no such card.
    """
    if name == "cpu":
        return [Cpu()]
    if name == "mps":
        raise UsageError("--device mps: it has no float64, which spectra need", hint="use --device cpu")
    if name not in ("auto", "cuda") and not CARD.fullmatch(name):
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", found=name)
    cards = count_cards()
    if name == "auto":
        return [*map(Cuda, range(cards)), Cpu()]
    if not cards:
        raise UsageError(f"device {name}: this torch sees no CUDA device")
    if name == "cuda":
        return [Cuda(number) for number in range(cards)]
    number = int(name.removeprefix("cuda:"))
    if number >= cards:
        raise UsageError("no such CUDA device", expected=f"cuda:0 to cuda:{cards - 1}", found=name)
    return [Cuda(number)]
