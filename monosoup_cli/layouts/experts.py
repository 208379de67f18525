"""Experts that are packed in one tensor for all, (experts, …), or stored one by one.

Of packed experts, `gate_up_proj` has the rows of gate and up one after the other, or in turn; and a matrix is
stored as (out, in), or as (in, out) as in Llama 4 and gpt-oss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Atom, Facts, Reading, same

__all__ = ["PackedExperts", "SingleExperts"]

PACKED = re.compile(r"^(?P<experts>.*\.experts)\.(?P<what>gate_up_proj|down_proj)$")
SINGLE = re.compile(r"^.*\.experts\.\d+\.(gate_proj|up_proj|down_proj)\.weight$")


class PackedExperts:
    """All experts of a layer in one tensor of three dimensions."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """Gate and up one after the other or in turn, (out, in) or (in, out)."""
        match = PACKED.match(name)
        if match is None or len(tensor.shape) != 3:
            return []
        count, rows, columns = tensor.shape
        ways = ("stacked", "interleaved") if match["what"] == "gate_up_proj" else ("",)
        return [
            Reading(
                " ".join(word for word in ("packed,", way, "transposed" if is_transposed else "") if word),
                tuple(
                    atom
                    for expert in range(count)
                    for atom in _atoms(
                        f"{match['experts']}.{expert}",
                        expert * rows * columns,
                        (columns, rows) if is_transposed else (rows, columns),
                        (1, columns) if is_transposed else (columns, 1),
                        way,
                    )
                ),
            )
            for is_transposed in (False, True)
            for way in ways
        ]


def _atoms(expert: str, first: int, shape: tuple[int, int], strides: tuple[int, int], way: str) -> list[Atom]:
    """The atoms of one expert, whose packed matrix (out, in) has this first element and these strides."""
    if not way:
        return [Atom(f"{expert}.down_proj.weight", shape, first, strides)]
    out, step = shape[0] // 2, 2 if way == "interleaved" else 1
    second = first + (strides[0] if way == "interleaved" else out * strides[0])
    of_one = (out, shape[1]), (step * strides[0], strides[1])
    return [
        Atom(f"{expert}.gate_proj.weight", of_one[0], first, of_one[1]),
        Atom(f"{expert}.up_proj.weight", of_one[0], second, of_one[1]),
    ]


class SingleExperts:
    """Every matrix of every expert in a tensor of its own."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """As it is."""
        return [same(name, tensor)] if SINGLE.match(name) and len(tensor.shape) == 2 else []
