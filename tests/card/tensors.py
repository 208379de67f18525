"""Tensors on a card, and pinned memory on the host."""

import math
import weakref

import numpy as np
import torch

from tests.card.state import LOCK, STATE, current_device
from tests.card.streams import current_stream


class CardTensor(torch.Tensor):
    """A tensor that reports a CUDA device. `memory` is the `Allocation` that it lies in."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, memory, size, stride, offset, dtype):
        device = torch.device("cuda", memory.card.index)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, storage_offset=offset, dtype=dtype, device=device
        )
        torch._C._set_throw_on_mutable_data_ptr(tensor)
        tensor.memory = memory
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        from tests.card.operators import dispatch

        return dispatch(operator, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert a tensor on {self.device} to numpy (emulated)")

    def record_stream(self, stream):
        self.memory.users.append(stream)

    def __repr__(self):
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"


class Place:
    """Where a tensor's elements are, for kernels: it does not keep the memory from being given out again."""

    def __init__(self, tensor):
        self._data, self._dtype = tensor.memory.data, tensor.dtype
        self._layout = tensor.size(), tensor.stride(), tensor.storage_offset()

    def on_host(self):
        """The elements as a CPU tensor."""
        return self._data.view(self._dtype).as_strided(*self._layout)


def new(index, size, stride, dtype):
    """An uninitialized tensor on a card, on the current stream."""
    STATE.touch(index)
    size, stride = tuple(size), tuple(stride)
    extent = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    memory = STATE.cards[index].allocate(extent * dtype.itemsize, current_stream(index))
    return CardTensor(memory, size, stride, 0, dtype)


def view_of(tensor, like):
    """A tensor in the same memory, with the layout of another one."""
    return CardTensor(tensor.memory, like.size(), like.stride(), like.storage_offset(), like.dtype)


def on_card(index, values):
    """Queue a copy of a CPU tensor to a new tensor on a card."""
    tensor, values = new(index, values.size(), values.stride(), values.dtype), values.clone()
    place = Place(tensor)
    current_stream(index).enqueue(lambda: place.on_host().copy_(values))
    return tensor


def on_meta(value):
    """A tensor of the same layout on the meta device; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    layout = value.size(), value.stride(), value.storage_offset()
    if not isinstance(value, CardTensor):
        return torch.empty_strided(*layout[:2], dtype=value.dtype, device="meta")
    elements = value.memory.nbytes // value.dtype.itemsize
    return torch.empty(elements, dtype=value.dtype, device="meta").as_strided(*layout)


def pinned_empty(size, dtype=None):
    """An uninitialized pinned CPU tensor, counted as torch's allocator takes it."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    nbytes = math.prod(size) * dtype.itemsize
    taken = STATE.pin(nbytes)
    buffer = np.empty(nbytes, dtype=np.uint8)
    key, start = id(buffer), buffer.ctypes.data
    with LOCK:
        STATE.pinned[key] = start, start + nbytes
    STATE.touch(current_device())

    def free():
        with LOCK:
            STATE.pinned.pop(key, None)
            STATE.unpin(taken)

    weakref.finalize(buffer, free)
    return torch.from_numpy(buffer).view(dtype).view(size)


def is_pinned(tensor):
    if isinstance(tensor, CardTensor) or not tensor.numel():
        return False
    address = tensor.data_ptr()
    return any(start <= address < stop for start, stop in list(STATE.pinned.values()))
