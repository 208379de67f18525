"""The cards, and what is counted on them."""

import os
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass

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
        self.handles, self.free_handles, self.workspaces = 0, [], {}

    def allocate(self, nbytes, stream):
        STATE.fail_at("allocate", self.index)
        nbytes = max(-(-nbytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
        with LOCK:
            blocks = self.free_blocks.get((stream, nbytes))
            if blocks:
                data = blocks.pop()
                self.cached -= nbytes
            else:
                self._reserve(nbytes)
                data = None
            self.live += nbytes
            self.peak = max(self.peak, self.live)
        return Allocation(self, stream, nbytes, data)

    def multiply_on(self, stream):
        """Take the workspace of cuBLAS for a stream, at its first matrix product.

        torch keeps one for every pair of a handle and a stream, and frees it only when it is told to. A
        thread has a handle, which another one inherits when it ends.
        """
        with LOCK:
            key = STATE.handle_on(self).number, stream
            if key not in self.workspaces:
                self.workspaces[key] = self.allocate(_blas_workspace(), stream)

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


def _blas_workspace():
    """What CUBLAS_WORKSPACE_CONFIG asks for, as in ":4096:8" (pairs of KiB and a count)."""
    pairs = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    return sum(int(size) * int(count) for size, count in pairs) << 10


class Allocation:
    """A block of memory that tensors share. It is free when the last of them is gone."""

    def __init__(self, card, stream, nbytes, data):
        self.card, self.stream, self.nbytes, self._data = card, stream, nbytes, data
        self.users = []  # further streams, from Tensor.record_stream

    @property
    def data(self):
        """The bytes on the host. They are made when they are first used: those of a workspace never are."""
        if self._data is None:  # NaN in every floating-point dtype
            self._data = torch.full((self.nbytes,), 0xFF, dtype=torch.uint8)
        return self._data

    def __del__(self):
        if LOCK is None:  # the interpreter exits
            return
        with LOCK:
            for stream in self.users:
                stream.drain()
            self.card.live -= self.nbytes
            self.card.cached += self.nbytes
            self.card.free_blocks.setdefault((self.stream, self.nbytes), []).append(self._data)


class Handle:
    """What a thread multiplies with on a card. Another thread inherits it when the thread ends."""

    def __init__(self, card):
        self.card = card
        if card.free_handles:
            self.number = card.free_handles.pop()
        else:
            self.number, card.handles = card.handles, card.handles + 1

    def __del__(self):
        self.card.free_handles.append(self.number)


@dataclass(eq=False)
class Fault:
    """Something that fails on purpose: see `tests.card.faults.failing`."""

    error: Exception
    places: tuple
    card: int | None
    after: int
    times: int | None
    raised: int = 0

    def raise_at(self, place, card):
        if place not in self.places or self.card not in (None, card) or self.raised == self.times:
            return
        if self.after:
            self.after -= 1
            return
        self.raised += 1
        raise type(self.error)(*self.error.args)  # a new one, which keeps no frames and their tensors


class State:
    """Everything about the installed cards.

    Attributes:
        cards: The cards.
        when: When queued work runs: "late", "early" or "random".
        stats: Counts of synchronisations, launches, and bytes and copies over the bus.
        contexts: The indices of the cards that were touched, in order.
        pinned: The first and last address of every pinned buffer, by its id.
        pinned_live: The bytes of pinned memory in use. A buffer takes a power of two, as torch's do.
        pinned_cached: How many pinned buffers of every size torch keeps for the next ones: it unpins none.
        pinned_peak: The most pinned memory at a time, in use or kept.
        faults: What fails on purpose.
    """

    def __init__(self):
        self.cards, self.when, self.random = [], "late", random.Random(0)
        self.stats, self.contexts, self.local = Counter(), [], threading.local()
        self.pinned, self.pinned_live, self.pinned_cached, self.pinned_peak = {}, 0, Counter(), 0
        self.faults = []

    def count_anew(self):
        """Forget what was counted, the contexts and all caches, so that peaks are those of what follows."""
        with LOCK:
            self.stats.clear()
            self.contexts.clear()
            self.pinned_cached.clear()
            self.pinned_peak = self.pinned_live
            for card in self.cards:
                card.empty_cache()
                card.peak = card.live

    def fail_at(self, place, card=None):
        """Raise the error of a fault that is to happen here."""
        with LOCK:
            for fault in self.faults:
                fault.raise_at(place, card)

    def handle_on(self, card):
        """The calling thread's handle for cuBLAS on a card."""
        handles = self.local.__dict__.setdefault("handles", {})
        if card.index not in handles:
            handles[card.index] = Handle(card)
        return handles[card.index]

    def pin(self, nbytes):
        """Count a pinned buffer.

        Returns:
            The bytes that it takes.
        """
        self.fail_at("pin")
        taken = 1 << (nbytes - 1).bit_length() if nbytes else 0
        with LOCK:
            self.pinned_cached[taken] -= self.pinned_cached[taken] > 0
            self.pinned_live += taken
            kept = sum(size * count for size, count in self.pinned_cached.items())
            self.pinned_peak = max(self.pinned_peak, self.pinned_live + kept)
        return taken

    def unpin(self, taken):
        """Count that a pinned buffer is free: it is kept for the next one of its size."""
        with LOCK:
            self.pinned_live -= taken
            self.pinned_cached[taken] += 1

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
