"""Copies between host and card, as torch makes them: what waits, and which temporaries it takes."""

import torch

from tests.card.state import STATE, index_of
from tests.card.streams import current_stream
from tests.card.tensors import CardTensor, Place, is_pinned, new, on_meta, pinned_empty

aten = torch.ops.aten


def copy_(target, source, non_blocking=False):
    """aten::copy_ where one of the tensors is on a card."""
    if not (isinstance(target, CardTensor) and isinstance(source, CardTensor)):
        return _over_the_bus(target, source, non_blocking)
    if target.device != source.device:
        current_stream(source.device).drain()
    to, start = Place(target), Place(source)
    current_stream(target.device).enqueue(lambda: to.on_host().copy_(start.on_host()))
    return target


def _over_the_bus(target, source, non_blocking):
    is_upload = isinstance(target, CardTensor)
    host, device = (source, target.device) if is_upload else (target, source.device)
    stream, is_from_pinned = current_stream(device), is_pinned(host)
    if not is_upload and target.shape != source.shape:
        source = source.expand(target.shape)
    # the side that casts: torch uploads in the target's dtype, unless it may not wait
    casts_on_host = (target.dtype if is_upload != non_blocking else source.dtype).itemsize
    if not _is_direct(target, source, host):
        if (target.dtype != source.dtype and not non_blocking) or not host.is_contiguous():
            is_from_pinned = False
            STATE.count(host_temporary_bytes=target.numel() * casts_on_host)
        if not is_upload and not source.is_contiguous():  # gathered on the card first
            strides = torch.empty(source.shape, device="meta").stride()
            new(device.index, source.shape, strides, source.dtype)
    way = f"{'h2d' if is_upload else 'd2h'}_{'pinned' if is_from_pinned else 'pageable'}"
    STATE.count(**{f"{way}_bytes": target.numel() * casts_on_host, f"{way}_copies": 1})
    is_async = non_blocking and is_from_pinned
    if is_upload:
        to, values = Place(target), source if is_async else source.clone()
        stream.enqueue(lambda: to.on_host().copy_(values))
    else:
        start = Place(source)
        stream.enqueue(lambda: target.copy_(start.on_host()))
    if not is_async and not (is_upload and non_blocking):
        STATE.count(syncs=1)
        stream.drain()
    return target


def _is_direct(target, source, host):
    """Whether the bytes cross as they are, in one piece."""
    if target.dtype != source.dtype or target.shape != source.shape:
        return False
    if target.is_contiguous() and source.is_contiguous():
        return True
    return target.stride() == source.stride() and _is_dense(host)


def _is_dense(tensor):
    """Whether the elements fill their memory without gaps, in any order."""
    wanted = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if size > 1 and stride != wanted:
            return False
        wanted *= size
    return True


def to_copy(
    self, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None
):
    """aten::_to_copy of a tensor on a card, or to one."""
    dtype = self.dtype if dtype is None else dtype
    device = self.device if device is None else torch.device(device)
    meta = aten._to_copy.default(on_meta(self), dtype=dtype, memory_format=memory_format)
    if device.type == "cuda":
        made = new(index_of(device), meta.size(), meta.stride(), dtype)
    elif pin_memory:
        made = pinned_empty(meta.size(), dtype)
    else:
        made = torch.empty_strided(meta.size(), meta.stride(), dtype=dtype)
    return copy_(made, self, non_blocking)


def local_scalar(self):
    """aten::_local_scalar_dense: float(x), x.item()."""
    STATE.count(syncs=1, d2h_scalars=1)
    current_stream(self.device).drain()
    return Place(self).on_host().item()
