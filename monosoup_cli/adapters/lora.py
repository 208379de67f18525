"""Records of what a LoRA adapter changes in its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.source import Source

__all__ = [
    "EXPERTS",
    "LINEAR",
    "TRANSPOSED",
    "TRANSPOSED_EXPERTS",
    "Adapter",
    "BaseFit",
    "FactorLayout",
    "LoraPair",
    "Piece",
]


@dataclass(frozen=True)
class FactorLayout:
    """How the update is computed from the factors B and A, flattened to (out, rank) and (rank, in).

    The update is s·B·A, as for linear layers and convolutions.

    Attributes:
        is_transposed: Whether the update is the transpose of s·B·A, as for GPT-2's Conv1D and embeddings.
        is_stack: Whether the tensor is a stack of experts. For expert e, A is the part [e, rank, in] of
            (experts · rank, in), and B the part [out, rank, e] of (out, rank · experts).
    """

    is_transposed: bool = False
    is_stack: bool = False


LINEAR, TRANSPOSED = FactorLayout(), FactorLayout(is_transposed=True)
EXPERTS = FactorLayout(is_stack=True)
TRANSPOSED_EXPERTS = FactorLayout(is_transposed=True, is_stack=True)


@dataclass(frozen=True)
class Piece:
    """The update of some rows of a tensor of the base, from some rows of a pair of factors.

    Attributes:
        a: The tensor with the factor A in the adapter's file.
        b: The tensor with the factor B.
        rank: The rank of the factors.
        scale: By which the product is multiplied.
        rows: The rows of the base's tensor, start:stop; None for all.
        own_rows: The rows of B that make the update; None for all.
    """

    a: str
    b: str
    rank: int
    scale: float
    rows: tuple[int, int] | None = None
    own_rows: tuple[int, int] | None = None

    def overlaps(self, other: Piece) -> bool:
        """Whether both change the same rows."""
        if self.rows is None or other.rows is None:
            return True
        return self.rows[0] < other.rows[1] and other.rows[0] < self.rows[1]


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update of one tensor of the base.

    Attributes:
        name: The tensor of the base.
        shape: Its shape, which is also that of the update.
        a: The tensor with the factor A in the adapter's file.
        b: The tensor with the factor B.
        rank: The rank of the factors, for one expert.
        scale: s, by which the product is multiplied.
        layout: How the update is computed from the factors.
        magnitude: The tensor with the magnitude of DoRA; None for plain LoRA. The sum of base and update is
            scaled to it, so the update is no longer of low rank. Norms are over all dimensions but the first,
            or but the last if the layout is transposed.
        pieces: Where the base joins layers that the adapter has apart, or the reverse: what the update is
            made of. `rank` is then the sum of those of their factors, and `scale` the one of all, or 1.
    """

    name: str
    shape: tuple[int, ...]
    a: str
    b: str
    rank: int
    scale: float
    layout: FactorLayout = LINEAR
    magnitude: str | None = None
    pieces: tuple[Piece, ...] = ()

    @classmethod
    def of(
        cls, name: str, shape: tuple[int, ...], pieces: tuple[Piece, ...], layout: FactorLayout
    ) -> LoraPair:
        """The update that is made of these pieces, of which the first stands for the others."""
        first = pieces[0]
        is_whole = len(pieces) == 1 and first.rows is None and first.own_rows is None
        scales, rank = {one.scale for one in pieces}, sum({one.a: one.rank for one in pieces}.values())
        scale = scales.pop() if len(scales) == 1 else 1.0
        return cls(name, shape, first.a, first.b, rank, scale, layout, None, () if is_whole else pieces)


@dataclass(frozen=True)
class BaseFit:
    """How an adapter fits its base.

    Attributes:
        tied: The names that change with everything that the base ties to them, as the adapter says.
        shapes: The shapes of tensors that the base has in another shape, or lacks.
        notes: What the user should know about how the adapter is merged, in words.
        doubts: What speaks against the base, in words.
    """

    tied: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes in the base. Each tensor of the base is in at most one of `pairs` to `biases`.

    Attributes:
        own: The adapter's own file, open.
        config: The content of adapter_config.json; empty for a single file.
        pairs: The tensors of the base with a low-rank update.
        replaced: The tensors of the base that are replaced, mapped to the adapter's tensors.
        rows: The tensors of the base of which rows are replaced, mapped to the adapter's tensor and the
            indices of the rows, in its order.
        biases: The tensors of the base to which something is added, mapped to the adapter's tensor and its
            scale.
        read_as: How tensor names are changed when they are read, in words.
        unused: The renames that matched no name.
        copies: The tensors of the base of which the adapter has a copy from before the update, mapped to that
            copy. peft saves copies of embeddings.
        twins: The names in `replaced`, `rows` and `pairs` of which the adapter has the same a second time,
            mapped to its further tensors: under a name that the base ties, or peft's other name.
        fit: How it fits the base.
    """

    own: Source
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    read_as: tuple[str, ...] = ()
    unused: tuple[Rename, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    twins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fit: BaseFit = field(default_factory=BaseFit)

    @property
    def dora(self) -> LoraPair | None:
        """A pair of DoRA, whose update depends on the base; None where there is none."""
        return next((pair for pair in self.pairs.values() if pair.magnitude is not None), None)
