"""Small matrices of one shape that are edited together, because Python's steps outweigh their arithmetic."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from monosoup_cli.devices.held import Held
from monosoup_cli.formats.dtypes import BITS, bytes_of
from monosoup_cli.sources.read import read_together
from monosoup_cli.sources.source import Dense, Reader
from monosoup_cli.tensors.ingredients import Ingredients
from monosoup_cli.tensors.plan import PlannedTensor
from monosoup_cli.tensors.worker import Worker

if TYPE_CHECKING:
    import torch

__all__ = ["group", "group_held", "is_small", "read_group"]

SMALL_ELEMENTS = 1 << 12
"""Up to this size a matrix is small."""

GROUP_ELEMENTS = 1 << 16
"""How many elements the matrices of a group have together, at most."""

GROUP_HELD = Held(3 * 8 * GROUP_ELEMENTS, 8 * 8 * GROUP_ELEMENTS)
"""What a group takes at most: base, fine-tuned and output as they are stored; in float64 base, update, Gram
matrices, vectors, and copies of what is combined."""


def group(
    tensors: Iterable[PlannedTensor], ingredients: Ingredients, apart: Container[str]
) -> list[Sequence[PlannedTensor]]:
    """Group the tensors of a plan: small edited matrices of one shape and dtype together, others alone.

    Which tensors are together follows from the plan alone, so a resumed run makes the same groups.

    Args:
        tensors: The tensors.
        ingredients: Where they are read.
        apart: The names of tensors that the output does not have as themselves.

    Returns:
        The groups, in the order of their first tensors.
    """
    groups: list[list[PlannedTensor]] = []
    growing: dict[object, list[PlannedTensor]] = {}
    for tensor in tensors:
        key = _key(tensor, ingredients) if is_small(tensor) and tensor.name not in apart else None
        members = growing.get(key) if key is not None else None
        if members is not None and (len(members) + 1) * tensor.elements <= GROUP_ELEMENTS:
            members.append(tensor)
            continue
        groups.append([tensor])
        if key is not None:
            growing[key] = groups[-1]
    return list(groups)


def group_held(tensor: PlannedTensor) -> Held:
    """How much memory the group of a tensor takes, beside what the tensor takes alone."""
    return GROUP_HELD if is_small(tensor) else Held()


def is_small(tensor: PlannedTensor) -> bool:
    """Whether a tensor may be made together with others, which are then all read."""
    matrices = tensor.matrices
    return (
        matrices is not None
        and not matrices.is_several
        and 0 < matrices.cut.elements <= SMALL_ELEMENTS
        and tensor.shared_rows is None
        and tensor.reads.base
        and tensor.stored_dtype != "F64"  # together, the last bit of float64 may be rounded otherwise
    )


def _key(tensor: PlannedTensor, ingredients: Ingredients) -> object:
    """What the members of a group have in common; None for a tensor that is edited alone."""
    inputs = ingredients.read_for(tensor)
    are_alone = any(not isinstance(source.update(tensor.name), Dense) for source in inputs)
    if tensor.matrices is None or len(inputs) != 2 or are_alone:
        return None
    cut = tensor.matrices.cut
    return cut.rows, cut.columns, tensor.stored_dtype, *(one.tensors[tensor.name].dtype for one in inputs)


def read_group(
    tensors: Sequence[PlannedTensor], ingredients: Ingredients, worker: Worker
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Read the members of a group.

    NaN and Inf are not looked for.

    Returns:
        W0 and Δ, each (members, rows, columns) in float64 on the worker's device. None where the tensors are
        not read in one dtype.
    """
    assert tensors[0].matrices is not None
    cut, upcast = tensors[0].matrices.cut, []
    sources = ingredients.read_for(tensors[0])
    for source, purpose, wide in zip(sources, ("base", "finetuned"), ("float64 base", "update"), strict=True):
        readers: list[Reader] = [source.reader(tensor.name) for tensor in tensors]
        dtype = readers[0].dtype
        if any(reader.dtype != dtype for reader in readers):
            return None
        channel = worker.channel
        stored = channel.host.take(purpose, dtype, len(tensors), cut.rows, cut.columns)
        read_together(readers, bytes_of(stored), cut.elements * BITS[dtype] // 8)
        upcast.append(channel.upcast(channel.upload(stored), "F64", wide))
    base, finetuned = upcast
    return base, finetuned.sub_(base)
