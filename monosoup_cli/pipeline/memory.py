"""Which devices compute, and how many tensors at once, from what each consumer says that it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TypeAlias

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.device import Device
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import ResourceError
from monosoup_cli.formats.dtypes import BITS
from monosoup_cli.outputs.form import OutputForm
from monosoup_cli.report.words import size
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.ingredients import product_rank
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import Access, Method, Wanted
from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["Needs", "Resources", "allot", "host_bytes", "needs_of"]

RESERVED_SHARE = 0.9
"""The share of the free memory that a run may plan to use."""

Needs: TypeAlias = "Callable[[Device], Sequence[Held]]"
"""What each tensor takes on the host and on a device that computes it."""


@dataclass(frozen=True)
class Resources:
    """What a run works with.

    Attributes:
        places: The device of every worker; a worker computes one tensor at a time.
        host_bytes: The memory of the host that the workers may take together.
        device_bytes: The memory that the workers of one card may take together; 0 where the CPU computes.
        substitute: The device that computes what a card turns out to have no memory for; None if nothing
            does.
        notes: Sentences about devices that are not used.
    """

    places: Sequence[Device]
    host_bytes: int
    device_bytes: int = 0
    substitute: Device | None = None
    notes: Sequence[str] = ()

    @classmethod
    def none(cls) -> Resources:
        """Nothing, for what computes nothing."""
        return cls((), 0)

    @property
    def devices(self) -> Sequence[Device]:
        """The devices, each once."""
        return tuple(dict.fromkeys(self.places))

    @property
    def workers(self) -> int:
        """How many tensors are computed at once, over all devices."""
        return len(self.places)

    @property
    def names(self) -> str:
        """The devices as the report has them."""
        return ", ".join(str(device.torch) for device in self.devices)


def allot(
    needs: Needs, candidates: Sequence[Device], wanted_workers: int | None, access: Access = "matrix"
) -> Resources:
    """Choose devices, and as many workers as pay and fit, or as many as the user asks for.

    A card holds what its own workers compute, the host what all workers read and write. Cards that cannot be
    used are left out. So are cards of another model than the first one: a tensor is computed by whichever
    worker is free, and models differ in the last bits. The CPU takes over if it is a candidate, and no card
    is left or all of them together are slower in float64.

    Args:
        needs: What each tensor takes.
        candidates: The devices in the order of their preference.
        wanted_workers: The number of workers that the user asks for.
        access: How the method sees layers. The CPU, if it is a candidate, computes what goes element by
            element, because the disk is the limit there.

    Raises:
        ResourceError: Not even one worker's tensor fits into memory, so many workers as the user asks for do
            not, or no device can be used.
    """
    cards = [device for device in candidates if not device.is_host]
    host = next((device for device in candidates if device.is_host), None)
    notes: list[str] = []
    if cards and host is not None and access == "flat":
        notes.append("the CPU computes, because the disk is the limit here; --device cuda uses the card")
        cards = []
    usable: dict[Device, tuple[_Room, Sequence[int]]] = {}
    for card in cards:
        try:
            card.warm_up()  # first: its libraries take memory, too
            room = _Room(str(card.torch), card.free_bytes(), card.sizes.overhead.device)
            on_card = sorted((held.device for held in needs(card)), reverse=True)
            room.fitting(1, on_card)
        except ResourceError as error:
            if len(cards) == 1 and host is None:
                raise
            notes.append(f"{card.torch} is left out: {error.problem}")
            continue
        model = next(iter(usable), card).model()
        if card.model() == model:
            usable[card] = room, on_card
        else:
            notes.append(f"{card.torch} is left out: its results may differ from those of {model}")
    of_one = None if wanted_workers is None else -(-wanted_workers // max(len(usable), 1))
    fitting = {
        card: room.fitting(of_one or card.workers, on_card) for card, (room, on_card) in usable.items()
    }
    if fitting and host is not None and sum(card.float64_rate() for card in fitting) < host.float64_rate():
        model = next(iter(fitting)).model()
        notes.append(f"the CPU computes: it is faster in float64 than {model}; --device cuda uses the card")
        fitting = {}
    if not fitting:
        if host is None:
            raise ResourceError("; ".join(["no card can be used", *notes]), hint="try --device cpu")
        fitting = {host: wanted_workers or host.workers}
    return _spread(needs, fitting, wanted_workers, host, notes)


def _spread(
    needs: Needs,
    fitting: dict[Device, int],
    wanted_workers: int | None,
    host: Device | None,
    notes: Sequence[str],
) -> Resources:
    """Spread workers evenly over devices, as many as the memory of the host allows."""
    first = next(iter(fitting))
    tensors, overhead = needs(first), first.sizes.overhead
    on_host = sorted((held.host + held.device * first.is_host for held in tensors), reverse=True)
    turns = zip_longest(*([device] * workers for device, workers in fitting.items()))
    places = [device for turn in turns for device in turn if device is not None]
    room = _Room("the host", Cpu().free_bytes(), overhead.host)
    possible = min(wanted_workers or len(places), len(places), max(len(tensors), 1))
    places = places[: room.fitting(possible, on_host)]
    if wanted_workers is not None and len(places) < min(wanted_workers, max(len(tensors), 1)):
        raise ResourceError(
            f"{wanted_workers} workers do not fit into memory", hint=f"--workers {len(places)} fits"
        )
    on_card = sorted((held.device for held in tensors), reverse=True)[: places.count(first)]
    host_bytes = sum(on_host[: len(places)]) + overhead.host * len(places)
    if first.is_host:
        return Resources(places, host_bytes, notes=notes)
    device_bytes = sum(on_card) + overhead.device * len(on_card)
    if host is not None:  # it computes one tensor at a time
        largest = max((held.host + held.device for held in needs(host)), default=0)
        fits = room.holds(host_bytes + largest)
        host, host_bytes = (host, host_bytes + largest) if fits else (None, host_bytes)
    return Resources(places, host_bytes, device_bytes, host, notes)


@dataclass(frozen=True)
class _Room:
    """Free memory.

    Attributes:
        name: Whose it is.
        free: How many bytes; None where the system does not say.
        overhead: How many bytes every worker takes beside its tensor.
    """

    name: str
    free: int | None
    overhead: int

    def fitting(self, workers: int, needs: Sequence[int]) -> int:
        """How many workers fit, at most `workers`; `needs` in bytes, the largest first.

        Raises:
            ResourceError: Not even one fits.
        """
        if self.free is None or not needs:
            return workers
        if not self.holds(needs[0] + self.overhead):
            raise ResourceError(
                f"the largest matrix does not fit into the memory of {self.name}",
                expected=f"about {needs[0] + self.overhead:,} bytes",
                found=f"{self.free:,} free",
            )
        while workers > 1 and not self.holds(sum(needs[:workers]) + workers * self.overhead):
            workers -= 1
        return workers

    def holds(self, nbytes: int) -> bool:
        """Whether so many bytes are no more than a run may plan to use."""
        return self.free is None or nbytes <= int(self.free * RESERVED_SHARE)


def needs_of(
    tensors: Sequence[PlannedTensor],
    method: Method,
    sources: Sequence[Source],
    device: Device,
    form: OutputForm | None = None,
) -> list[Held]:
    """What a worker holds for each tensor: its sources, the layer, the method and the sink, each by itself.

    Args:
        tensors: The tensors.
        method: What is computed.
        sources: Every input.
        device: Where it is computed.
        form: Where the tensors go; None where nothing is written.
    """
    reading = Held(sum(source.held_bytes for source in sources))
    variants, sizes = len(method.variants()), device.sizes
    flat = reading + FlatLayer.held(sizes.range_factor)

    @cache  # models have few kinds of layers
    def computed(cut: Cut, dtypes: tuple[str, ...], count: int, rank: int | None, wanted: Wanted) -> Held:
        stored = [BITS[dtype] // 8 or 1 for dtype in dtypes]
        item_bytes = stored[0], max(stored[-count:])
        layer = MatrixLayer.held(cut, item_bytes, count, rank, resident_bytes=sizes.resident_bytes)
        return reading + layer + method.held(cut, wanted, rank)

    def need(tensor: PlannedTensor) -> Held:
        written = Held() if form is None else form.held(tensor, variants, sizes.resident_bytes)
        if tensor.matrices is None:
            return flat + written
        finetuned = sources[1:] if tensor.reads.base else sources
        rank, wanted = product_rank(finetuned, tensor.name), Wanted() if form is None else form.wanted(tensor)
        dtypes = tuple([source.reader(tensor.name).dtype for source in sources])
        return computed(tensor.matrices.cut, dtypes, len(finetuned), rank, wanted) + written

    return [need(tensor) for tensor in tensors]


def host_bytes(least: int, most: int) -> int:
    """Return how much of the host's free memory a command without workers may take, up to `most`.

    Raises:
        ResourceError: There is less than `least`.
    """
    free = Cpu().free_bytes()
    if free is not None and free < least:
        raise ResourceError(
            "too little memory",
            expected=f"{size(least)} free",
            found=size(free),
            hint="free some memory, then run it again",
        )
    return most if free is None else min(free, most)
