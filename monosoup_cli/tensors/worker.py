"""What a thread computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monosoup_cli.devices.device import Device
    from monosoup_cli.devices.scratch import Scratch

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """One thread's device and buffers.

    Args:
        device: Where the thread computes.
        scratch: Its buffers, which no other thread uses.
        interrupt: Call it before every block or range. It raises when the thread has to stop.
    """

    device: Device
    scratch: Scratch
    interrupt: Callable[[], None]
