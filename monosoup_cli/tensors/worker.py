"""What a thread computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monosoup_cli.devices.device import Channel

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """One thread's memory on the device where it computes.

    Args:
        channel: Its memory, and the way of bytes there and back.
        interrupt: Call it before every block or range. It raises when the thread has to stop.
        is_substitute: Whether it computes on the host what a card had no memory for.
    """

    channel: Channel
    interrupt: Callable[[], None]
    is_substitute: bool = False
