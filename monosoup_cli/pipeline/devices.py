"""How many tensors are made at once, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.device import Device
from monosoup_cli.errors import ResourceError
from monosoup_cli.formats.header import BITS
from monosoup_cli.outputs.writers import MatrixWriter
from monosoup_cli.pipeline.plan import Plan
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer

__all__ = ["estimate_bytes", "plan_workers"]

RESERVED_SHARE = 0.9
"""Of the memory that is free, what a run may plan to use."""


def estimate_bytes(cut: Cut, itemsize: int, *, count: int, variants: int) -> int:
    """Memory that one worker takes for one matrix: buffers, blocks, Gram matrix and eigenvectors."""
    layer = MatrixLayer.held_bytes(cut, itemsize, count)
    output = MatrixWriter.held_bytes(cut, itemsize, variants)
    # the Gram matrix, its eigenvectors, LAPACK's workspace of two matrices, the kept directions
    method = 2 * 8 * cut.block_length * cut.side + 5 * 8 * cut.side**2
    return layer + output + method


def plan_workers(
    plan: Plan, devices: Sequence[Device], asked: int | None, *, count: int, variants: int, kept_in_order: int
) -> tuple[int, int]:
    """(workers, memory in bytes that they may take): as many as pay and fit, or as asked. Each may hold
    `kept_in_order` bytes beside what its tensor takes.

    Raises ResourceError where not even one worker's tensor fits into memory.
    """
    needs = sorted(
        (
            kept_in_order + FlatLayer.held_bytes()
            if tensor.cut is None
            else kept_in_order
            + estimate_bytes(tensor.cut, BITS[tensor.dtype] // 8 or 1, count=count, variants=variants)
            for tensor in plan.tensors
        ),
        reverse=True,
    )
    at_once = devices[0].workers
    places: set[Device] = {Cpu(), *devices}  # a card's blocks pass through the host
    known = [free for free in (place.free_bytes() for place in places) if free is not None]
    if known:
        allowed = int(min(known) * RESERVED_SHARE)
        if needs and needs[0] > allowed:
            raise ResourceError(
                "the largest matrix does not fit into memory",
                expected=f"about {needs[0]:,} bytes",
                found=f"{min(known):,} free",
            )
        while at_once > 1 and sum(needs[:at_once]) > allowed:
            at_once -= 1
    workers = max(1, min(asked or at_once * len(devices), len(plan.tensors)))
    return workers, sum(needs[:workers])
