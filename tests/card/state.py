"""The cards, and what is counted on them."""

import random
import threading
from collections import Counter

import torch

BLOCK_BYTES = 512
"""Memory on a card is allocated in multiples of this."""

LOCK = threading.RLock()


class Card:
    """One card: its streams and its memory.

    Memory that is freed goes back to the stream that it was allocated on, and is given out again at once,
    while kernels of other streams may still use it.
    """

    def __init__(self, index, capacity, name):
        self.index, self.capacity, self.name = index, capacity, name
        self.streams, self.free_blocks = [], {}
        self.live = self.peak = self.cached = 0

    def allocate(self, nbytes, stream):
        nbytes = max(-(-nbytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
        with LOCK:
            blocks = self.free_blocks.get((stream, nbytes))
            if blocks:
                data = blocks.pop()
                self.cached -= nbytes
            else:
                self._reserve(nbytes)
                data = torch.full((nbytes,), 0xFF, dtype=torch.uint8)  # NaN in every floating-point dtype
            self.live += nbytes
            self.peak = max(self.peak, self.live)
        return Allocation(self, stream, data)

    def _reserve(self, nbytes):
        if self.live + self.cached + nbytes > self.capacity:
            self.empty_cache()
        if self.live + nbytes > self.capacity:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory: {nbytes:,} bytes are too many for card {self.index}, of whose"
                f" {self.capacity:,} bytes {self.live:,} are taken (emulated)"
            )

    def empty_cache(self):
        with LOCK:
            self.free_blocks.clear()
            self.cached = 0


class Allocation:
    """A block of memory that tensors share. It is free when the last of them is gone."""

    def __init__(self, card, stream, data):
        self.card, self.stream, self.data = card, stream, data
        self.users = []  # further streams, from Tensor.record_stream

    @property
    def nbytes(self):
        return self.data.numel()

    def __del__(self):
        if LOCK is None:  # the interpreter exits
            return
        with LOCK:
            for stream in self.users:
                stream.drain()
            self.card.live -= self.nbytes
            self.card.cached += self.nbytes
            self.card.free_blocks.setdefault((self.stream, self.nbytes), []).append(self.data)


class State:
    """Everything about the installed cards.

    Attributes:
        cards: The cards.
        when: When queued work runs: "late", "early" or "random".
        stats: Counts of synchronisations, launches, and bytes and copies over the bus.
        contexts: The indices of the cards that were touched, in order.
        pinned: The first and last address of every pinned buffer, by its id.
        pinned_peak: The most pinned memory at a time. A buffer takes a power of two, as torch's do.
        failures: The error that the next call of an operator raises, by the operator.
    """

    def __init__(self):
        self.cards, self.when, self.random = [], "late", random.Random(0)
        self.stats, self.contexts, self.local = Counter(), [], threading.local()
        self.pinned, self.pinned_live, self.pinned_peak = {}, 0, 0
        self.failures = {}

    def touch(self, index):
        """Note that the card has a context now."""
        if index not in self.contexts:
            self.contexts.append(index)

    def count(self, **counts):
        with LOCK:
            self.stats.update(counts)


STATE = State()


def index_of(device):
    """The index of a card, given as torch takes it; None and "cuda" are the current one."""
    if device is None:
        return current_device()
    index = device if isinstance(device, int) else torch.device(device).index
    index = current_device() if index is None else index
    if index >= len(STATE.cards):
        raise torch.AcceleratorError(f"CUDA error: there is no card {index} (emulated)")
    return index


def current_device():
    return getattr(STATE.local, "device", 0)


def set_device(device):
    STATE.local.device = index_of(device)
    STATE.touch(STATE.local.device)
