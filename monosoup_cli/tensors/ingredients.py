"""The checkpoints that an output is made from, and what each of its tensors takes from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monosoup_cli.sources.source import LowRank, Source, Unchanged
from monosoup_cli.tensors.chunks import check_stored
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import matrix_layer
from monosoup_cli.tensors.method import Kept, Layer, Wanted
from monosoup_cli.tensors.plan import PlannedTensor
from monosoup_cli.tensors.worker import Worker

__all__ = ["Ingredients", "check_unread", "product_rank", "update_facts"]


@dataclass(frozen=True)
class Ingredients:
    """The checkpoints that go into an output.

    Attributes:
        base: The base that layers are edited against; None for a method without one.
        finetuned: The fine-tuned checkpoints that are averaged.
        first: The fine-tuned checkpoint whose layout the output has.
        weights: The weights of the mean, which sum to 1; None for an even mean.
        carried_from: The base, also for a method without one: what only it has may be carried.
        kept: Whose kept tensors are.
    """

    base: Source | None
    finetuned: Sequence[Source]
    first: Source
    weights: Sequence[float] | None = None
    carried_from: Source | None = None
    kept: Kept = "finetuned"

    def sources_of(self, tensor: PlannedTensor) -> Sequence[Source]:
        """The fine-tuned checkpoints whose mean a tensor is."""
        return self.finetuned if tensor.reads.mean else [self.copied_from(tensor)]

    def kept_from(self, tensor: PlannedTensor) -> Sequence[Source]:
        """The fine-tuned checkpoints whose mean a tensor is where it is kept."""
        is_mean = self.kept == "finetuned" and tensor.reads.mean
        return self.finetuned if is_mean else [self.copied_from(tensor)]

    def copied_from(self, tensor: PlannedTensor) -> Source:
        """The checkpoint from which a tensor, or the rows that not every input has, are copied: the first one
        that is averaged, or else the one whose layout the output has; the base where only that has it, or
        kept tensors are its own."""
        if self.kept == "base" and self.base is not None and tensor.reads.base and tensor.shared_rows is None:
            return self.base
        if tensor.reason == "carried" and self.carried_from is not None:
            return self.carried_from
        stored = self.finetuned[0].tensors.get(tensor.name)
        if stored is None or stored.shape != tensor.shape:
            return self.first
        is_cast = tensor.reads.mean  # as their mean is
        return self.finetuned[0] if is_cast or stored.dtype == tensor.dtype else self.first

    def read_for(self, tensor: PlannedTensor) -> list[Source]:
        """Every checkpoint that is read to make a tensor."""
        base = [self.base] if self.base is not None and tensor.reads.base else []
        return [*base, *self.sources_of(tensor)]

    def layer(self, tensor: PlannedTensor, index: int, worker: Worker, wanted: Wanted) -> Layer:
        """Matrix `index` of a tensor, or all of its elements, as a method sees it."""
        if tensor.matrices is None:
            return self.flat(tensor, worker)
        sources = self.sources_of(tensor)
        part = tensor.matrices.part(index)
        weights = self.weights if len(sources) > 1 else None
        return matrix_layer(
            tensor.name,
            part.cut,
            index,
            self.base,
            sources,
            worker,
            wanted,
            first=part.first,
            weights=weights,
        )

    def flat(self, tensor: PlannedTensor, worker: Worker) -> FlatLayer:
        """All elements of a tensor in the rows that every input has."""
        sources = self.sources_of(tensor)
        weights = self.weights if len(sources) > 1 else None
        base = self.base if tensor.reads.base else None
        return FlatLayer(tensor.name, tensor.shared_shape, base, sources, weights, worker)


def check_unread(ingredients: Ingredients, tensor: PlannedTensor, worker: Worker) -> None:
    """Look for NaN and Inf where a kept tensor that is checked has namesakes that go into nothing.

    Raises:
        NonfiniteError: One of the namesakes has NaN or Inf.
    """
    used = ingredients.read_for(tensor)
    if any(isinstance(source.update(tensor.name), Unchanged) for source in used):
        return  # the bytes are the base's own, and are read
    if not tensor.reads.is_checked:
        return
    for source in (ingredients.base, *ingredients.finetuned):
        if source is not None and source not in used and source.is_at_hand(tensor.name):
            check_stored(source, tensor.name, worker)


def product_rank(finetuned: Sequence[Source], name: str) -> int | None:
    """The rank of the mean update of a tensor, which is the sum of the checkpoints' ranks.

    Returns:
        None where one of them does not have the update as factors.
    """
    rank = 0
    for source in finetuned:
        update = source.update(name)
        if not isinstance(update, LowRank):
            return None
        rank += update.rank
    return rank


def update_facts(finetuned: Sequence[Source], name: str) -> dict[str, int | float | None]:
    """What the report says about a tensor's update when adapters make it.

    Returns:
        The rank, which for a mean is the sum of the adapters' ranks, and the scale if they agree on one.
        Empty where a checkpoint does not have the update as factors.
    """
    rank = product_rank(finetuned, name)
    if rank is None:
        return {}
    updates = [source.update(name) for source in finetuned]
    scales = {update.scale for update in updates if isinstance(update, LowRank)}
    return {"adapter_rank": rank, "adapter_scale": scales.pop() if len(scales) == 1 else None}
