"""The layouts that are known."""

from __future__ import annotations

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.attention import SEPARATE_ATTENTION, FusedAttention
from monosoup_cli.layouts.experts import PackedExperts, SingleFusedExperts
from monosoup_cli.layouts.flat_experts import FlatExperts
from monosoup_cli.layouts.gated import SEPARATE_GATED, FusedGated
from monosoup_cli.layouts.layout import Facts, Layout, Reading
from monosoup_cli.layouts.transposed import Transposed

__all__ = ["LAYOUTS", "all_readings"]

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


def all_readings(name: str, tensor: TensorInfo, facts: Facts) -> list[Reading]:
    """The ways in which any layout reads a stored tensor; those of layouts that come first know best."""
    return [one for layout in LAYOUTS for one in layout.readings(name, tensor, facts)]
