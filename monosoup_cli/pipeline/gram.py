"""Inner products between updates, of every layer, from one reading of every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from monosoup_cli.devices.device import Device
from monosoup_cli.errors import NonfiniteError
from monosoup_cli.pipeline.engine import Progress, Threads
from monosoup_cli.tensors.chunks import check_stored
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.pipeline.options import Strictness
    from monosoup_cli.pipeline.plan import Plan, PlannedTensor
    from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = ["gram_matrices", "gram_of"]

GramMatrix: TypeAlias = "Callable[[Iterable[torch.Tensor], int], torch.Tensor]"
"""The Gram matrix of so many rows, from ranges of them."""


def gram_matrices(
    plan: Plan,
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    partial: PartialOutput | None,
    devices: Sequence[Device],
    workers: int,
    progress: Progress,
    gram_matrix: GramMatrix,
    on_nonfinite: Strictness = "error",
) -> list[torch.Tensor]:
    """⟨τ_i, τ_j⟩ of the updates of N checkpoints, (N, N) float64 on the CPU, for every layer that the
    plan edits, in its order.

    Tensors that are no layers are looked through for NaN and Inf. A layer that has any is left out,
    or raises NonfiniteError. `partial` keeps what is done for a resumed run.
    """
    import torch

    found: dict[str, list[list[float]] | None] = {}
    if partial is not None:
        found |= {name.removeprefix(NOTE): rows for name, rows in partial.notes.items() if NOTE in name}

    def make(tensor: PlannedTensor, worker: Worker) -> None:
        try:
            found[tensor.name] = _gram(tensor, base, finetuned, worker, gram_matrix)
        except NonfiniteError:
            if on_nonfinite == "error":
                raise
            found[tensor.name] = None
        if partial is not None:
            partial.note(f"{NOTE}{tensor.name}", found[tensor.name])

    def read_for(tensor: PlannedTensor) -> list[Checkpoint]:
        return [each for each in (base, *finetuned) if tensor.name in each.tensors]

    for tensor in plan.tensors:
        if tensor.name in found:
            progress(tensor, True)
    waiting = [tensor for tensor in plan.tensors if tensor.name not in found]
    Threads(devices, workers).each(waiting, make, reads=read_for, progress=progress)
    rows = [found[tensor.name] for tensor in plan.edited]
    return [torch.tensor(each, dtype=torch.float64) for each in rows if each is not None]


NOTE = "gram of "


def _gram(
    tensor: PlannedTensor,
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    worker: Worker,
    gram_matrix: GramMatrix,
) -> list[list[float]] | None:
    if not tensor.is_edited:
        for checkpoint in (base, *finetuned):
            check_stored(checkpoint, tensor.name, worker)
        return None
    layer = FlatLayer(tensor.name, tensor.shared_shape, base, finetuned, None, worker)
    return list(gram_of(layer, gram_matrix).tolist())


def gram_of(layer: FlatLayer, gram_matrix: GramMatrix) -> torch.Tensor:
    """⟨τ_i, τ_j⟩ of the updates of one tensor, (N, N) float64. Raises NonfiniteError."""
    while True:
        updates = (layer.memory.upcast(updates) for _, _, updates in layer.updates.ranges())
        gram = gram_matrix(updates, layer.count)
        if gram.isfinite().all():
            return gram
        try:
            layer.updates.widen()
        except FloatingPointError as error:
            raise NonfiniteError(str(error), tensor=layer.name) from None
