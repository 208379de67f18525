"""Buffers that a worker uses again for every tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from monosoup_cli.formats.dtypes import BITS, torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["Scratch"]


class Scratch:
    """One worker's buffers, one for each purpose, which grow to the largest size needed.

    Args:
        device: Where they are; None is the host.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._buffers: dict[str, torch.Tensor] = {}
        self._taken: dict[str, tuple[tuple[object, ...], torch.Tensor]] = {}

    def take(self, purpose: str, dtype: str, *shape: int) -> torch.Tensor:
        """An uninitialized tensor of a stored dtype; the next call for `purpose` reuses its memory."""
        wanted = (dtype, shape)
        last, taken = self._taken.get(purpose, (None, None))
        if taken is not None and last == wanted:  # the same as for the previous range: no new views
            return taken
        import torch

        nbytes = math.prod(shape) * BITS[dtype] // 8
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.numel() < nbytes:
            # free the old one, which its last view holds too, before the new one is allocated
            taken = buffer = None
            self._taken.pop(purpose, None)
            self._buffers.pop(purpose, None)
            buffer = self._buffers[purpose] = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        taken = buffer[:nbytes].view(torch_dtype(dtype)).view(shape)
        self._taken[purpose] = wanted, taken
        return taken
