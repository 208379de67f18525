"""Experts whose matrices are one below the other in one matrix, (experts · rows, columns), as in DBRX."""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.experts import PACKED, readings_of
from monosoup_cli.layouts.layout import Facts, Reading, starred

__all__ = ["FlatExperts"]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Where configurations have the number of experts."""


class FlatExperts:
    """All experts of a layer in one matrix. How many they are is known from elsewhere."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """Each expert's rows as (out, in), or as (in, out), as DBRX has its down projection."""
        match = PACKED.match(name)
        if match is None or match["ending"] != "weight" or len(tensor.shape) != 2:
            return []
        rows = facts.rows.get(f"{starred(match['experts'])}.*.gate_proj.weight")
        count = tensor.shape[0] // rows if rows else facts.number(*COUNTS)
        if not count or tensor.shape[0] % count:
            return []
        experts = [f"{match['experts']}.{expert}" for expert in range(count)]
        return readings_of(experts, match["what"], "weight", (tensor.shape[0] // count, tensor.shape[1]))
