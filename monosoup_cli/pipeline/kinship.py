"""Whether BASE and FINETUNED are parent and child: what speaks against it, said before the work starts.

These are doubts, never refusals: only who trained the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.report.words import plural
from monosoup_cli.sources.read import read_float64
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.plan import Plan, PlannedTensor

if TYPE_CHECKING:
    pass


__all__ = ["doubts_of_inputs", "doubts_of_names", "doubts_of_values"]

FEW = 1 / 2
"""The share of the parameters that a base should have under the same names."""
LARGE = 1.0
"""‖W1 − W0‖ / ‖W0‖ of an update as large as the weights; it is about √2 for unrelated weights."""
LAYERS = 8
PIECES = 8
PIECE_ELEMENTS = 1 << 13
"""How many layers are sampled, how many pieces of each, and how many elements a piece has."""


def doubts_of_names(plan: Plan) -> list[str]:
    """Whether the base has most of the fine-tuned checkpoint under the same names, from headers alone."""
    matrices = [
        tensor
        for tensor in plan.tensors
        if len(tensor.shape) > 1 and tensor.reason not in ("excluded", "not_floating")
    ]
    shared = [tensor for tensor in matrices if tensor.reason != "not_in_base"]
    total = sum(tensor.elements for tensor in matrices)
    found = sum(tensor.elements for tensor in shared)
    if found >= FEW * total:
        return []
    return [
        f"the base has only {len(shared):,} of {len(matrices):,} matrices ({found / total:.0%} of the"
        " parameters) under these names: was this model fine-tuned from it?"
    ]


def doubts_of_values(base: Source, finetuned: Source, plan: Plan) -> list[str]:
    """Whether the updates are small beside the weights, from a sample of the planned layers: some MB read.

    Says nothing where the sample of the base is zero, or holds NaN or Inf, which the run itself refuses.
    """
    layers = _sample(plan)
    weights = updates = 0.0
    for layer in layers:
        for start, stop in _pieces(layer.elements):
            before, after = (
                read_float64(source, layer.name, start, stop, is_checked=False)
                for source in (base, finetuned)
            )
            weights += float(before.square().sum())
            updates += float((after - before).square().sum())
    if weights == 0 or not math.isfinite(weights) or not math.isfinite(updates):
        return []
    ratio = math.sqrt(updates / weights)
    if ratio < LARGE:
        return []
    return [
        f"the updates are as large as the weights: ‖W1 − W0‖ / ‖W0‖ is {ratio:.2f} in a sample of"
        f" {plural(len(layers), 'layer')} (about 1.41 for unrelated models); was this model fine-tuned from"
        " this base?"
    ]


def doubts_of_inputs(inputs: Inputs, plan: Plan) -> list[str]:
    """`doubts_of_values` for opened inputs; what is held to read the sample is dropped again."""
    if inputs.base is None:
        return []
    doubts = doubts_of_values(inputs.base, inputs.finetuned[0], plan)
    for source in (inputs.base, inputs.finetuned[0]):
        source.forget()
    return doubts


def _sample(plan: Plan) -> list[PlannedTensor]:
    """The largest of the edited matrices in each of some stretches of the plan."""
    matrices = [
        tensor for tensor in plan.edited if tensor.reads.base and len(tensor.shape) > 1 and tensor.elements
    ]
    count = min(LAYERS, len(matrices))
    ends = [len(matrices) * number // count for number in range(count + 1)] if count else []
    return [max(matrices[i:j], key=lambda tensor: tensor.elements) for i, j in pairwise(ends)]


def _pieces(elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces spread over so many elements; all of them, where they are few."""
    if elements <= PIECES * PIECE_ELEMENTS:
        yield 0, elements
        return
    for number in range(PIECES):
        start = (elements - PIECE_ELEMENTS) * number // (PIECES - 1)
        yield start, start + PIECE_ELEMENTS
