"""How much memory something takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Held"]


@dataclass(frozen=True)
class Held:
    """Memory that something holds: on the host, and on the device that computes.

    Args:
        host: Bytes on the host.
        device: Bytes on the device; where the CPU computes, this is the host's memory, too.
    """

    host: int = 0
    device: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.host + other.host, self.device + other.device)
