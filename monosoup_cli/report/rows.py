"""The layers of a report as flat rows, one per tensor or matrix of a stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from monosoup_cli.report.measures import FACTS, derived_measures

__all__ = ["Row", "rows_of"]

Row: TypeAlias = "dict[str, Any]"
"""A layer's entry in the report, with `kind`, `stack`, `block` (None outside blocks), `part` and `k_ratio`.

A matrix of a stack has its tensor's name with its index ("experts.w1[3]"), and the shape of one matrix. A
part of a fused tensor has the name and the shape that it has where it is stored by itself.
"""


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a report by depth, from embeddings to heads, kept tensors included.

    A report on several checkpoints has no rows: each checkpoint has its own report.
    """
    if "layers" not in report:
        return []
    from monosoup_cli.names import in_order, places

    where = places({layer["name"]: layer["shape"] for layer in report["layers"]})
    depth = {name: number for number, name in enumerate(in_order(where))}
    rows = []
    for layer in sorted(report["layers"], key=lambda layer: depth[layer["name"]]):
        place = where[layer["name"]]
        position = place.position
        stack, block = (None, None) if position is None else (position.stack, position.block)
        if layer.get("block") is not None:  # LiNeS has its own stacks and blocks
            stack, block = layer.get("stack"), layer["block"]
        slices = layer.get("slices", [])
        whole = {name: value for name, value in layer.items() if name != "slices"}
        facts = {name: value for name, value in whole.items() if name in FACTS}
        place_facts = {"kind": place.kind, "stack": stack, "block": block, "part": place.part}
        matrices = [
            # measures of the whole tensor go with its first matrix
            {**(facts if part["index"] else whole), **part, **_one_of(layer, part)}
            for part in slices
        ]
        rows += [{**part, **place_facts, **derived_measures(part)} for part in matrices or [whole]]
    return rows


def _one_of(layer: Mapping[str, Any], part: Mapping[str, Any]) -> Row:
    return {
        "name": part.get("name") or f"{layer['name']}[{part['index']}]",
        "shape": part.get("shape") or layer["shape"][1:],
        "action": "edited" if part["reason"] is None else "kept",
        **({"tensor": layer["name"]} if "name" in part else {}),
    }
