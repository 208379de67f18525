"""The layouts that are known."""

from __future__ import annotations

from monosoup_cli.layouts.attention import SEPARATE_ATTENTION, FusedAttention
from monosoup_cli.layouts.experts import PackedExperts, SingleFusedExperts
from monosoup_cli.layouts.flat_experts import FlatExperts
from monosoup_cli.layouts.gated import SEPARATE_GATED, FusedGated
from monosoup_cli.layouts.layout import Layout
from monosoup_cli.layouts.transposed import Transposed

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (
    PackedExperts(),
    SingleFusedExperts(),
    FlatExperts(),
    FusedAttention(),
    SEPARATE_ATTENTION,
    FusedGated(),
    SEPARATE_GATED,
    Transposed(),
)
