"""How much memory something takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Held", "Sizes"]


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


@dataclass(frozen=True)
class Sizes:
    """How much a worker of a device holds at a time.

    Args:
        resident_bytes: A stored matrix up to this size is read whole and once. A larger one is read block by
            block, again for every pass.
        range_factor: How many times longer ranges of elements are than those that suit a processor's caches.
        overhead: What its libraries and its channel take.
    """

    resident_bytes: int
    range_factor: int
    overhead: Held
