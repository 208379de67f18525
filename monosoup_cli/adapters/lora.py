"""What a LoRA adapter changes of its base, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = [
    "ADAPTER_CONFIG",
    "EXPERTS",
    "LINEAR",
    "TRANSPOSED",
    "TRANSPOSED_EXPERTS",
    "Adapter",
    "FactorLayout",
    "LoraPair",
]

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class FactorLayout:
    """How an update follows from the factors B and A, flattened to (out, rank) and (rank, in).

    The update is s·B·A, as for linear layers and convolutions.

    Attributes:
        is_transposed: Whether it is the transpose of that, as for GPT-2's Conv1D and embeddings.
        is_stack: Whether it is the same for each expert e of a stack, with A (experts · rank, in) as
            [e, rank, in] and B (out, rank · experts) as [out, rank, e].
    """

    is_transposed: bool = False
    is_stack: bool = False


LINEAR, TRANSPOSED = FactorLayout(), FactorLayout(is_transposed=True)
EXPERTS = FactorLayout(is_stack=True)
TRANSPOSED_EXPERTS = FactorLayout(is_transposed=True, is_stack=True)


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update of one tensor of the base.

    `name`: the base's tensor; `shape`: its and the update's. `a`, `b`, `magnitude`: tensors of the
    adapter's file; with a `magnitude` (DoRA) the sum of base and update is scaled to it, and no
    longer of low rank: norms are over all dimensions but the first, for "transposed" but the last.
    `rank`: of the factors, for one expert. `scale`: s.
    """

    name: str
    shape: tuple[int, ...]
    a: str
    b: str
    rank: int
    scale: float
    layout: FactorLayout = LINEAR
    magnitude: str | None = None


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes of the base; no tensor of the base is named twice.

    `own`: the adapter's own file, opened. `replaced`: the base's tensor → the adapter's that takes its
    place. `rows`: → the adapter's, and the numbers of the rows that it replaces, in its order.
    `biases`: → what is added, and the factor before it. `read_as` says to people how names are read.
    `copies`: → the adapter's copy of it as it was before the update (peft keeps those of embeddings).
    `twins`: → the adapter's second copy of one in `replaced`, which the base ties to another name.
    """

    own: Checkpoint
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    read_as: tuple[str, ...] = ()
    unused: tuple[Rename, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)
