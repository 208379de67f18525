"""Which tensors stack the matrices of experts, one per index of dimension 0, and which their vectors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from monosoup_cli.formats.header import TensorInfo

__all__ = ["Stacks", "expert_counts", "find_stacks"]

COUNT = re.compile(r"(^|_)(num|n)_(?!shared_)(\w+_)?experts$")
"""The keys of a configuration for the number of experts: num_experts, num_local_experts, n_routed_experts."""
BIAS = re.compile(r"[._]bias$")
MAX_DEPTH = 4
"""How deep parts of a configuration may lie in each other."""


@dataclass(frozen=True)
class Stacks:
    """The names of tensors that stack matrices, and of those that stack vectors."""

    matrices: Collection[str] = ()
    vectors: Collection[str] = ()


def expert_counts(config: Mapping[str, Any] | None) -> frozenset[int]:
    """The numbers of experts that a configuration states, in itself or in one of its parts."""
    return frozenset(_counts(config or {}, MAX_DEPTH))


def _counts(config: Mapping[str, Any], depth: int) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping) and depth:
            yield from _counts(value, depth - 1)
        elif type(value) is int and value > 1 and COUNT.search(str(key)):
            yield value


def find_stacks(
    tensors: Mapping[str, TensorInfo], patterns: Sequence[str], experts: Collection[int]
) -> Stacks:
    """Find the stacks of a checkpoint.

    A tensor of three dimensions is a stack where the first one is the number of experts, or where the name
    says so. A tensor of two dimensions stacks vectors where its name continues that of such a stack, as
    `gate_up_proj_bias` does that of `gate_up_proj`.

    Args:
        tensors: The headers of the checkpoint.
        patterns: Globs over the names of tensors that the user knows to be stacks.
        experts: The numbers of experts in the configuration.
    """
    matrices = set()
    for name, tensor in tensors.items():
        shape = tensor.shape
        is_named = any(fnmatchcase(name, pattern) for pattern in patterns)
        is_experts = len(shape) == 3 and ("experts" in name or (shape[0] in experts and min(shape) > 1))
        if is_named or is_experts:
            matrices.add(name)
    counts = {name.removesuffix(".weight"): tensors[name].shape[:1] for name in matrices}
    vectors = {
        name
        for name, tensor in tensors.items()
        if counts and len(tensor.shape) == 2 and counts.get(BIAS.sub("", name)) == tensor.shape[:1]
    }
    return Stacks(matrices, vectors)
