"""Experts that are packed in one tensor for all, (experts, …).

`gate_up_proj` has the rows of gate and up one after the other, or in turn; and a matrix is stored as
(out, in), or as (in, out) as in Llama 4 and gpt-oss. Experts that are stored one by one are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Atom, Facts, Reading

__all__ = ["PackedExperts", "SingleFusedExperts", "readings_of"]

PACKED = re.compile(
    r"^(?P<experts>.*\.experts)\.(?P<what>gate_up_proj|gate_proj|up_proj|down_proj)\.(?P<ending>weight|bias)$"
)
SINGLE = re.compile(r"^(?P<expert>.*\.experts\.\d+)\.gate_up_proj\.(?P<ending>weight|bias)$")


class PackedExperts:
    """All experts of a layer in one tensor: matrices in three dimensions, biases in two."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """Gate and up one after the other or in turn, (out, in) or (in, out)."""
        match = PACKED.match(name)
        if match is None or len(tensor.shape) != (3 if match["ending"] == "weight" else 2):
            return []
        experts = [f"{match['experts']}.{expert}" for expert in range(tensor.shape[0])]
        return readings_of(experts, match["what"], match["ending"], tensor.shape[1:])


class SingleFusedExperts:
    """Every expert by itself, with gate and up in one tensor."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """Gate and up one after the other or in turn, (out, in) or (in, out)."""
        match = SINGLE.match(name)
        if match is None or len(tensor.shape) != (2 if match["ending"] == "weight" else 1):
            return []
        return readings_of([match["expert"]], "gate_up_proj", match["ending"], tensor.shape)


def readings_of(experts: Iterable[str], what: str, ending: str, shape: Sequence[int]) -> list[Reading]:
    """The ways to read a tensor that has the matrices, or the biases, of experts one after the other.

    Args:
        experts: The experts' names.
        what: The projection of each, or "gate_up_proj" for two.
        ending: "weight" or "bias". A bias has the words of its weight, which decides for both.
        shape: The shape of one expert's part.
    """
    experts = list(experts)
    readings = []
    ways = ("stacked", "interleaved") if what == "gate_up_proj" else ("",)
    for is_transposed, way in product((False, True), ways):
        rows, columns = (shape[0], 1) if ending == "bias" else shape
        size, out, into, strides = rows * columns, rows, columns, (columns, 1)
        if is_transposed and ending == "weight":
            out, into, strides = columns, rows, (1, columns)
        if way and out % 2:
            continue
        if way == "stacked":
            parts = {"gate_proj": (0, 1), "up_proj": (out // 2, 1)}
        elif way == "interleaved":
            parts = {"gate_proj": (0, 2), "up_proj": (1, 2)}
        else:
            parts = {what: (0, 1)}
        dimensions = 1 if ending == "bias" else 2
        atoms = tuple(
            Atom(
                f"{expert}.{part}.{ending}",
                (out // len(parts), into)[:dimensions],
                number * size + row * strides[0],
                (step * strides[0], strides[1])[:dimensions],
            )
            for number, expert in enumerate(experts)
            for part, (row, step) in parts.items()
        )
        words = ", ".join(word for word in (way, "transposed" if is_transposed else "") if word)
        readings.append(Reading(words, atoms))
    return readings
