"""How many tensors are computed at once, from what each consumer says that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.device import Device
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import ResourceError
from monosoup_cli.formats.dtypes import BITS
from monosoup_cli.outputs.form import OutputForm
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.ingredients import product_rank
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import Method, Wanted
from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["Resources", "allot"]

RESERVED_SHARE = 0.9
"""The share of the free memory that a run may plan to use."""


@dataclass(frozen=True)
class Resources:
    """What a run works with.

    Attributes:
        devices: The devices that compute.
        workers: How many tensors are computed at once, over all devices.
        host_bytes: The memory of the host that the workers may take together.
        device_bytes: The memory that the workers of one card may take together; 0 where the CPU computes.
    """

    devices: Sequence[Device]
    workers: int
    host_bytes: int
    device_bytes: int = 0

    @property
    def names(self) -> str:
        """The devices as the report has them."""
        return ", ".join(str(device.torch) for device in self.devices)


def allot(needs: Sequence[Held], devices: Sequence[Device], wanted_workers: int | None) -> Resources:
    """Choose as many workers as pay and fit, or as many as the user asks for.

    The host holds what all workers read and write. A card holds what its own workers compute.

    Args:
        needs: What each tensor takes on the host and on the device that computes it.
        devices: The devices that compute.
        wanted_workers: The number of workers that the user asks for.

    Raises:
        ResourceError: Not even one worker's tensor fits into memory.
    """
    is_host = devices[0].is_host
    on_host = sorted((held.host + held.device * is_host for held in needs), reverse=True)
    on_card = sorted((held.device for held in needs), reverse=True)
    per_device = min(device.workers for device in devices)
    if not is_host:
        for device in devices:
            per_device = _fitting(per_device, on_card, device.free_bytes())
    workers = _fitting(per_device * len(devices), on_host, Cpu().free_bytes())
    workers = max(1, min(wanted_workers or workers, len(needs)))
    on_one_card = on_card[: -(-workers // len(devices))]
    return Resources(devices, workers, sum(on_host[:workers]), 0 if is_host else sum(on_one_card))


def _fitting(workers: int, needs: Sequence[int], free: int | None) -> int:
    """How many workers fit into free memory, at most `workers`; `needs` in bytes, the largest first."""
    if free is None or not needs:
        return workers
    allowed = int(free * RESERVED_SHARE)
    if needs[0] > allowed:
        raise ResourceError(
            "the largest matrix does not fit into memory",
            expected=f"about {needs[0]:,} bytes",
            found=f"{free:,} free",
        )
    while workers > 1 and sum(needs[:workers]) > allowed:
        workers -= 1
    return workers


def need_of(
    tensor: PlannedTensor, method: Method, sources: Sequence[Source], form: OutputForm | None = None
) -> Held:
    """What a worker holds for one tensor: its sources, the layer, the method and the sink, each by itself.

    Args:
        tensor: The tensor.
        method: What is computed.
        sources: Every input.
        form: Where the tensor goes; None where nothing is written.
    """
    reading = Held(sum(source.held_bytes for source in sources))
    variants = len(method.variants())
    written = Held() if form is None else form.held(tensor, variants)
    if tensor.matrices is None:
        return reading + FlatLayer.held() + written
    cut, item_bytes = tensor.matrices.cut, BITS[tensor.dtype] // 8 or 1
    finetuned = sources[1:] if tensor.reads.base else sources
    rank = product_rank(finetuned, tensor.name)
    wanted = Wanted() if form is None else form.wanted(tensor)
    layer = MatrixLayer.held(cut, item_bytes, len(finetuned), rank)
    return reading + layer + method.held(cut, wanted, rank) + written
