"""Have torch see emulated cards, and have it as it was."""

import ctypes
import random
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils._device import _device_constructors

from tests.card import streams
from tests.card.state import STATE, Card, current_device, index_of, set_device
from tests.card.streams import Event, Stream
from tests.card.tensors import is_pinned, new, on_card, pinned_empty

aten = torch.ops.aten

GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
"""c10's table of device guards, by c10::DeviceType."""
CUDA, META = 1, 14

_undo = []


def install(count=1, *, capacity=8 << 30, when="late", seed=0):
    """Have torch see cards.

    Args:
        count: How many.
        capacity: The bytes of memory of each, or a list of them.
        when: When queued work runs: "late", "early" or "random".
        seed: For "random".

    Returns:
        The state of the cards.
    """
    assert not _undo, "the cards are installed"
    assert torch.version.cuda is None, "this torch has CUDA of its own"
    capacities = [capacity] * count if isinstance(capacity, int) else capacity
    STATE.__init__()
    STATE.when, STATE.random = when, random.Random(seed)
    STATE.cards = [Card(index, of_one, "Emulated card") for index, of_one in enumerate(capacities)]
    for card in STATE.cards:
        Stream(card.index)  # the default stream
    STATE.contexts.clear()
    _lend_a_guard()
    _add_factories()
    _patch_cuda()
    _patch_tensors()
    return STATE


def remove():
    """Have torch as it was."""
    while _undo:
        _undo.pop()()
    STATE.__init__()


def _lend_a_guard():
    """C++ asks a device's guard in places (`x[0]`, `float(x)`). A CPU build has none for CUDA: lend it that
    of the meta device, which does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 21).in_dll(library, GUARDS)
    is_known = guards[META] is not None and guards[CUDA] is None
    assert is_known, "c10's table of guards looks different in this torch"
    guards[CUDA] = guards[META]

    def take_back():
        guards[CUDA] = None

    _undo.append(take_back)


def _add_factories():
    library = torch.library.Library("aten", "IMPL", "CUDA")
    _undo.append(library._destroy)

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        form = torch.contiguous_format if memory_format is None else memory_format
        strides = torch.empty(size, device="meta", memory_format=form).stride()
        return new(index_of(device), size, strides, dtype or torch.get_default_dtype())

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return new(index_of(device), size, stride, dtype or torch.get_default_dtype())

    library.impl("empty.memory_format", empty)
    library.impl("empty_strided", empty_strided)
    ranges = ("arange", "arange.start", "arange.start_step", "linspace", "randperm")
    for name in ("eye", "eye.m", "scalar_tensor", *ranges):
        base, _, overload = name.partition(".")
        library.impl(name, _made_on_host(getattr(getattr(aten, base), overload or "default")))


def _made_on_host(operator):
    def make(*args, device=None, pin_memory=None, **kwargs):
        return on_card(index_of(device), operator(*args, **kwargs))

    return make


def _patch(where, **replacements):
    for name, value in replacements.items():
        before = where.__dict__.get(name, _undo)  # any object that is no attribute's value

        def restore(name=name, before=before):
            if before is _undo:
                delattr(where, name)
            else:
                setattr(where, name, before)

        _undo.append(restore)
        setattr(where, name, value)


def _of_card(name):
    return lambda device=None: getattr(STATE.cards[index_of(device)], name)


def _mem_get_info(device=None):
    card = STATE.cards[index_of(device)]
    STATE.touch(card.index)
    STATE.fail_at("mem_get_info", card.index)
    return card.capacity - card.live - card.cached, card.capacity


def _reserved(device=None):
    card = STATE.cards[index_of(device)]
    return card.live + card.cached


def _reset_peak(device=None):
    card = STATE.cards[index_of(device)]
    card.peak = card.live


def _clear_workspaces():
    for card in STATE.cards:
        card.workspaces.clear()


def _empty_cache():
    for card in STATE.cards:
        card.empty_cache()


def _properties(device=None):
    card = STATE.cards[index_of(device)]
    return SimpleNamespace(
        name=card.name, total_memory=card.capacity, major=9, minor=0, multi_processor_count=100
    )


def _patch_cuda():
    _patch(
        torch.cuda,
        _lazy_init=lambda: None,
        init=lambda: None,
        is_available=lambda: True,
        device_count=lambda: len(STATE.cards),
        current_device=current_device,
        set_device=set_device,
        device=streams.device_context,
        Stream=Stream,
        Event=Event,
        stream=streams.stream_context,
        current_stream=streams.current_stream,
        default_stream=streams.default_stream,
        set_stream=streams.set_stream,
        synchronize=streams.synchronize,
        mem_get_info=_mem_get_info,
        memory_allocated=_of_card("live"),
        max_memory_allocated=_of_card("peak"),
        memory_reserved=_reserved,
        reset_peak_memory_stats=_reset_peak,
        empty_cache=_empty_cache,
        get_device_name=_of_card("name"),
        get_device_properties=_properties,
        get_device_capability=lambda device=None: (9, 0),
    )
    _patch(torch.version, cuda="0.0-emulated")
    _patch(torch._C, _cuda_clearCublasWorkspaces=_clear_workspaces)


def _patch_tensors():
    """What C++ does before it dispatches: pinned memory, and "cuda" without an index."""
    _device_constructors()  # `with torch.device("meta")` keeps the torch.empty that it sees first
    empty_on_host, to_anywhere = torch.empty, torch.Tensor.to

    def empty(*size, pin_memory=False, **options):
        if not pin_memory or torch.device(options.get("device") or "cpu").type != "cpu":
            return empty_on_host(*size, **options)
        if len(size) == 1 and not isinstance(size[0], int):
            (size,) = size
        return pinned_empty(size, options.get("dtype"))

    def with_index(value):
        is_device = isinstance(value, (str, torch.device)) and str(value) == "cuda"
        return torch.device("cuda", current_device()) if is_device else value

    def to(self, *args, **kwargs):
        kwargs = {name: with_index(value) for name, value in kwargs.items()}
        return to_anywhere(self, *map(with_index, args), **kwargs)

    def cuda(self, device=None, non_blocking=False):
        return to(self, torch.device("cuda", index_of(device)), non_blocking=non_blocking)

    def pin_memory(self, device=None):
        return pinned_empty(self.shape, self.dtype).copy_(self)

    def is_pinned_on_host(self, device=None):
        return is_pinned(self)

    _patch(torch, empty=empty)
    _patch(torch.Tensor, to=to, cuda=cuda, pin_memory=pin_memory, is_pinned=is_pinned_on_host)
