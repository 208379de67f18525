"""Signals that wait until a step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

__all__ = ["hold_signals"]


@contextmanager
def hold_signals() -> Iterator[None]:
    """Have signals wait until the end. Blocking them in this thread is not enough: the system may deliver a
    signal to a thread of a library, and Python then still runs the handler here."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers only run in the main thread
        return
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        if callable(handler := signal.getsignal(number))  # others raise nothing, and may not be Python's
    }
    arrived: list[int] = []
    is_holding = True

    def hold(number: int, frame: FrameType | None) -> None:
        if is_holding:
            arrived.append(number)
        else:  # its own handler is not given back yet
            handlers[signal.Signals(number)](number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        with ExitStack() as steps:  # all of them are taken, although each may raise
            is_holding = False
            for arrival in reversed(arrived):
                steps.callback(signal.raise_signal, arrival)
            for number, handler in handlers.items():
                steps.callback(signal.signal, number, handler)
