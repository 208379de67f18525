"""The layouts that are known."""

from __future__ import annotations

from monosoup_cli.layouts.experts import PackedExperts, SingleFusedExperts
from monosoup_cli.layouts.flat_experts import FlatExperts
from monosoup_cli.layouts.layout import Layout

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (PackedExperts(), SingleFusedExperts(), FlatExperts())
