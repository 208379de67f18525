"""The ranks of factors that follow from the updates of all layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from monosoup_cli.tensors.matrix import MatrixLayer

__all__ = ["FactorBytes", "RankRule", "RanksApart"]


class RankRule(Protocol):
    """Finds the ranks of factors from what is measured of every update."""

    def measure(self, layer: MatrixLayer) -> Any:
        """What the ranks depend on of one layer's update; None where the layer did not change."""

    def ranks(self, measured: Mapping[str, Any], nbytes: FactorBytes) -> Mapping[str, int]:
        """The rank for every layer; 0 for one that gets no factors.

        Args:
            measured: What `measure` returned for every layer that changed.
            nbytes: How large the adapter becomes.

        Raises:
            UsageError: No ranks are as the user asks for.
        """


class FactorBytes(NamedTuple):
    """How large an adapter becomes.

    Attributes:
        by_rank: The bytes of each layer's factors for each rank.
        others: The bytes beside the factors of these layers, at most.
    """

    by_rank: Mapping[str, int]
    others: Callable[[Collection[str]], int]


class RanksApart:
    """A rule by which no layer's rank depends on others: it measures the rank itself."""

    def ranks(self, measured: Mapping[str, int], nbytes: FactorBytes) -> Mapping[str, int]:
        """The same ranks."""
        return measured
