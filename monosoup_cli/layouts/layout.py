"""What a layout is: how a stored tensor consists of the matrices that a model's author had in mind.

Every stored tensor is described by its atoms: the projections of single experts, or q, k and v, each a matrix
(out, in) as `torch.nn.Linear` has it. Two checkpoints of one model have the same atoms, however each of them
packs, fuses or transposes them. So a layout describes one form of storage, and no pair of forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.arrangement import row_major
from monosoup_cli.layouts.names import canonical
from monosoup_cli.sources.source import Source

__all__ = ["Atom", "Facts", "Layout", "Reading", "facts_of", "same", "starred"]

PARTS = ("text_config", "llm_config", "ffn_config", "attn_config")
"""The parts of configurations that describe the language model, and DBRX's experts."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@dataclass(frozen=True)
class Atom:
    """A matrix or vector of a model, and where its elements are in the stored tensor.

    Attributes:
        name: Its name, which is the same in every layout: "model.layers.0.mlp.experts.3.gate_proj.weight".
        shape: Its shape, (out, in) of a matrix.
        first: Its first element in the stored tensor.
        strides: Its strides there, in elements.
        sizes: The sizes that the strides belong to. Where the rows are apart in groups, these are (groups,
            rows of a group, in).
    """

    name: str
    shape: tuple[int, ...]
    first: int
    strides: tuple[int, ...]
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes:
            object.__setattr__(self, "sizes", self.shape)


@dataclass(frozen=True)
class Reading:
    """One way to read a stored tensor.

    Attributes:
        words: The way, in words; the tensors of one module have one in common.
        atoms: The atoms that the tensor consists of.
        is_guess: Whether nothing but the number of rows speaks for it, so that only values can.
    """

    words: str
    atoms: tuple[Atom, ...]
    is_guess: bool = False


@dataclass(frozen=True)
class Facts:
    """What a layout may know beside a tensor's own name and shape.

    Attributes:
        config: The parts of config.json that describe the model, merged; empty where there is none.
        rows_by_layer: How many rows the tensors of the other checkpoint have, by their canonical names.
        tensors: All tensors of the tensor's own checkpoint.
    """

    config: Mapping[str, Any]
    rows_by_layer: Mapping[str, int]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The rows by names with stars for numbers; those of the last layer where layers differ."""
        return {starred(name): count for name, count in self.rows_by_layer.items()}

    @cached_property
    def own(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of all its tensors, by their canonical names with stars. Few layouts ask for them."""
        return {starred(canonical(name)): tensor.shape for name, tensor in self.tensors.items()}

    def number(self, *keys: str) -> int | None:
        """The first positive integer that the configuration has under one of these keys."""
        values = (self.config.get(key) for key in keys)
        return next((value for value in values if type(value) is int and value > 0), None)


def facts_of(source: Source, others: Mapping[str, TensorInfo]) -> Facts:
    """What is known of a checkpoint.

    Args:
        source: The checkpoint.
        others: The tensors of the other checkpoint.
    """
    config = source.model.config or {}
    parts = [part for part in map(config.get, PARTS) if isinstance(part, dict)]
    rows = {canonical(name): other.shape[0] for name, other in others.items() if other.shape}
    merged = {key: value for one in (config, *parts) for key, value in one.items()}
    return Facts(merged, rows, source.tensors)


class Layout(Protocol):
    """One form of storage. To add one, write a module and add a line to `table.py`."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """The ways in which a stored tensor may be read, the likeliest first; none for other tensors.

        Only names and shapes are known here. Which way is right is decided by values.
        """
        ...


def same(name: str, tensor: TensorInfo) -> Reading:
    """The reading of a tensor that is stored as itself, under a name in common."""
    return Reading("", (Atom(name, tensor.shape, 0, row_major(tensor.shape)),))


def starred(name: str) -> str:
    """A name with stars for its numbers."""
    return NUMBER.sub("*", name)
