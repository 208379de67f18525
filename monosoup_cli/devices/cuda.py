"""A graphics card as a device, through torch.cuda: NVIDIA's, and AMD's with a ROCm build of torch."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.scratch import Scratch
from monosoup_cli.formats.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice

__all__ = ["WORKERS_PER_CARD", "Cuda", "count_cards"]

WORKERS_PER_CARD = 3
"""One computes while another reads and a third writes."""


def count_cards() -> int:
    """How many cards this torch can use. Call it before anything else that uses CUDA."""
    # Several workers share a card. Without this setting, cuBLAS may sum in another order from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@dataclass(frozen=True)
class Cuda:
    """One card. Blocks are copied to it in their stored dtype, and upcast there.

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
        return {"cuda": torch.version.cuda, **({} if hip is None else {"hip": hip})}

    def model(self) -> str:
        import torch

        return str(torch.cuda.get_device_name(self.torch))

    def free_bytes(self) -> int | None:
        import torch

        return int(torch.cuda.mem_get_info(self.torch)[0])

    def new_scratch(self) -> Scratch:
        return Scratch(pinned=True)

    def stream(self) -> AbstractContextManager[object]:
        import torch

        stream = torch.cuda.Stream(self.torch)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(stream)

    def upcast(self, stored: Tensor, dtype: str, scratch: Scratch, purpose: str) -> Tensor:
        return stored.to(self.torch).to(torch_dtype(dtype))

    def buffer(self, scratch: Scratch, purpose: str, dtype: str, *shape: int) -> Tensor:
        import torch

        return torch.empty(shape, dtype=torch_dtype(dtype), device=self.torch)

    def warm_up(self) -> None:
        import torch

        torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=self.torch))
