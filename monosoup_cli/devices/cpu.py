"""The processor of the host as a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices import host
from monosoup_cli.devices.scratch import Scratch

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice

__all__ = ["Cpu"]


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

    def model(self) -> str:
        return host.processor_model()

    def free_bytes(self) -> int | None:
        return host.free_bytes()

    def new_scratch(self) -> Scratch:
        return Scratch()

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def upcast(self, stored: Tensor, dtype: str, scratch: Scratch, purpose: str) -> Tensor:
        return scratch.take(purpose, dtype, *stored.shape).copy_(stored)

    def buffer(self, scratch: Scratch, purpose: str, dtype: str, *shape: int) -> Tensor:
        return scratch.take(purpose, dtype, *shape)

    def warm_up(self) -> None:
        pass
