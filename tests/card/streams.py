"""Streams and events: queues of kernels, and places in them."""

from collections import deque
from contextlib import contextmanager

import torch

from tests.card.state import LOCK, STATE, current_device, index_of, set_device


class Stream:
    """What torch.cuda.Stream is: kernels run in order, when the host waits for them or before."""

    def __init__(self, device=None, priority=0):
        self.index = index_of(device)
        self.device = torch.device("cuda", self.index)
        STATE.fail_at("stream", self.index)
        self._kernels, self.queued, self.done = deque(), 0, 0
        STATE.cards[self.index].streams.append(self)
        STATE.touch(self.index)

    def enqueue(self, kernel):
        with LOCK:
            self._kernels.append(kernel)
            self.queued += 1
            STATE.count(launches=1)
            if STATE.when == "early":
                self.drain()
            elif STATE.when == "random":
                for _ in range(STATE.random.randrange(3)):
                    stream = STATE.random.choice([one for card in STATE.cards for one in card.streams])
                    stream.drain(stream.done + STATE.random.randrange(1, 5))

    def drain(self, place=None):
        """Run the kernels up to a place in the queue, or all of them."""
        with LOCK:
            while self._kernels and (place is None or self.done < place):
                kernel = self._kernels.popleft()
                self.done += 1
                kernel()

    def synchronize(self):
        STATE.count(syncs=1)
        self.drain()

    def query(self):
        return not self._kernels

    def record_event(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if event.stream is not None:
            stream, place = event.stream, event.place
            self.enqueue(lambda: stream.drain(place))

    def wait_stream(self, stream):
        self.wait_event(stream.record_event())


class Event:
    """What torch.cuda.Event is."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self.stream, self.place = None, 0

    def record(self, stream=None):
        self.stream = current_stream() if stream is None else stream
        self.place = self.stream.queued

    def wait(self, stream=None):
        (current_stream() if stream is None else stream).wait_event(self)

    def synchronize(self):
        STATE.count(syncs=1)
        if self.stream is not None:
            self.stream.drain(self.place)

    def query(self):
        return self.stream is None or self.stream.done >= self.place


def default_stream(device=None):
    return STATE.cards[index_of(device)].streams[0]


def current_stream(device=None):
    index = index_of(device)
    return getattr(STATE.local, "streams", {}).get(index) or default_stream(index)


def set_stream(stream):
    if stream.index != current_device():
        set_device(stream.index)
    STATE.local.__dict__.setdefault("streams", {})[stream.index] = stream


@contextmanager
def stream_context(stream):
    """Step by step what torch.cuda.StreamContext does, so that it touches the same cards."""
    before, before_there = current_stream(), current_stream(stream.index)
    set_stream(stream)
    try:
        yield stream
    finally:
        if before.index != stream.index:
            set_stream(before_there)
        set_stream(before)


@contextmanager
def device_context(device):
    before = current_device()
    STATE.local.device = index_of(device)
    try:
        yield
    finally:
        STATE.local.device = before


def synchronize(device=None):
    STATE.count(syncs=1)
    for stream in STATE.cards[index_of(device)].streams:
        stream.drain()
