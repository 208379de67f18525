"""Inner products between updates, for every layer, from one pass over every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from monosoup_cli.errors import NonfiniteError
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.engine import Engine, Progress
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.chunks import check_stored
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.plan import Plan, PlannedTensor
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

__all__ = ["GramMatrix", "gram_matrices", "gram_of"]

GramMatrix: TypeAlias = "Callable[[Iterable[torch.Tensor], int], torch.Tensor]"
"""Computes the Gram matrix of so many rows, from ranges of them."""

NOTE = "gram of "
"""How the journal's notes on layers begin."""


def gram_matrices(
    plan: Plan,
    base: Source,
    finetuned: Sequence[Source],
    partial: PartialOutput | None,
    engine: Engine,
    progress: Progress,
    gram_matrix: GramMatrix,
    on_nonfinite: Literal["error", "keep"] = "error",
) -> list[torch.Tensor]:
    """Compute ⟨τ_i, τ_j⟩ for the updates of N checkpoints in every layer that the plan edits.

    Tensors that are not layers are only checked for NaN and Inf.

    Args:
        plan: The layers, and the tensors that are checked.
        base: The base.
        finetuned: The N fine-tuned checkpoints.
        partial: Where finished layers are noted for a resumed run; None to note nothing.
        engine: What runs the pass.
        progress: Called when a tensor is begun and when it is finished.
        gram_matrix: Computes one Gram matrix.
        on_nonfinite: "keep" leaves layers with NaN or Inf out.

    Returns:
        One (N, N) float64 tensor on the CPU for each layer, in the plan's order.

    Raises:
        NonfiniteError: A tensor has NaN or Inf, and `on_nonfinite` is "error".
    """
    import torch

    rows: dict[str, list[list[float]] | None] = {}
    if partial is not None:
        rows |= {name.removeprefix(NOTE): noted for name, noted in partial.notes.items() if NOTE in name}

    def make(tensor: PlannedTensor, worker: Worker) -> None:
        try:
            rows[tensor.name] = _gram(tensor, base, finetuned, worker, gram_matrix)
        except NonfiniteError:
            if on_nonfinite == "error":
                raise
            rows[tensor.name] = None
        if partial is not None:
            partial.note(f"{NOTE}{tensor.name}", rows[tensor.name])

    def reads(tensor: PlannedTensor) -> list[Source]:
        return [source for source in (base, *finetuned) if tensor.name in source.tensors]

    waiting = [tensor for tensor in plan.tensors if tensor.name not in rows]
    for tensor in plan.tensors:
        if tensor.name in rows:
            progress(tensor, True)
    engine.each(waiting, make, reads=reads, progress=progress)
    grams = [rows[tensor.name] for tensor in plan.edited]
    return [torch.tensor(gram, dtype=torch.float64) for gram in grams if gram is not None]


def _gram(
    tensor: PlannedTensor, base: Source, finetuned: Sequence[Source], worker: Worker, gram_matrix: GramMatrix
) -> list[list[float]] | None:
    if not tensor.is_edited:
        for source in (base, *finetuned) if tensor.reads.is_checked else ():
            check_stored(source, tensor.name, worker)
        return None
    layer = FlatLayer(tensor.name, tensor.shared_shape, base, finetuned, None, worker)
    return list(gram_of(layer, gram_matrix).tolist())


def gram_of(layer: FlatLayer, gram_matrix: GramMatrix) -> torch.Tensor:
    """Compute ⟨τ_i, τ_j⟩ for the updates of one tensor, (N, N) float64.

    Raises:
        NonfiniteError: The tensor has NaN or Inf, or its norm overflows float64.
    """
    while True:
        updates = (layer.memory.upcast(updates) for _, _, updates in layer.updates.ranges())
        gram = gram_matrix(updates, layer.count)
        if gram.isfinite().all():
            return gram
        try:
            layer.updates.widen()
        except FloatingPointError as error:
            raise NonfiniteError(str(error), tensor=layer.name) from None
