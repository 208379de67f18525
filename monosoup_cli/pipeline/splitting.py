"""`--split-fused`: edit gate, up, q, k and v each for itself where a checkpoint stores them in one tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from monosoup_cli.layouts.arrangement import Arranged, Piece, row_major
from monosoup_cli.layouts.attention import is_fused
from monosoup_cli.layouts.fused import readings_of_fused
from monosoup_cli.layouts.layout import Reading, starred
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.report.words import plural
from monosoup_cli.sources.derived import Derived, Made
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.plan import Matrices, Part, Plan, PlannedTensor

__all__ = ["split_fused"]


def split_fused(plan: Plan, inputs: Inputs) -> Plan:
    """See the edited tensors of a plan as the matrices that are fused in them.

    The inputs are changed so that these tensors are read in the order of their parts.
    """
    first = inputs.finetuned[0]
    edited = [tensor for tensor in plan.edited if tensor.matrices is not None and tensor.shared_rows is None]
    asked = {tensor.name: first.tensors[tensor.name] for tensor in edited}
    readings = readings_of_fused(first, asked, inputs.readings)
    split = {
        tensor.name: replace(tensor, matrices=_parts(tensor, readings[tensor.name]))
        for tensor in edited
        if tensor.name in readings
    }
    pieces = {
        name: one.matrices.pieces for name, one in split.items() if one.matrices and one.matrices.pieces
    }
    if inputs.base is not None:
        inputs.base = _by_parts(inputs.base, pieces)
    inputs.finetuned[:] = [_by_parts(source, pieces) for source in inputs.finetuned]
    whole = [name for name, tensor in asked.items() if name not in readings and is_fused(name, tensor)]
    inputs.notices += _notes(split, readings, whole)
    return Plan(tuple(split.get(tensor.name, tensor) for tensor in plan.tensors))


def _parts(tensor: PlannedTensor, reading: Reading) -> Matrices:
    parts, pieces, at = [], [], 0
    for atom in reading.atoms:
        parts.append(Part(atom.name, Cut(atom.shape[0], math.prod(atom.shape[1:])), at))
        steps = row_major(atom.sizes)
        pieces.append(Piece(tensor.name, atom.sizes, atom.first, atom.strides, at, steps))
        at += math.prod(atom.shape)
    is_in_order = all(piece.is_copied and piece.first == piece.at for piece in pieces)
    largest = max((part.cut for part in parts), key=lambda cut: cut.elements)
    return Matrices(largest, len(parts), parts=tuple(parts), pieces=() if is_in_order else tuple(pieces))


def _by_parts(source: Source, pieces: Mapping[str, Sequence[Piece]]) -> Source:
    """Read tensors in the order of their parts."""
    if not pieces:
        return source
    tensors: dict[str, str | Made] = {name: name for name in source.tensors}
    tensors |= {name: Arranged(source.tensors[name], of_one) for name, of_one in pieces.items()}
    return Derived(source, tensors)


def _notes(
    split: Mapping[str, PlannedTensor], readings: Mapping[str, Reading], whole: Sequence[str]
) -> list[str]:
    """Say once for every kind of tensor how it is split, or that it is not."""
    kinds = Counter((starred(name), readings[name].words) for name in split)
    notes = [
        f"--split-fused: each part of '{name}' is taken by itself ({words}; {plural(count, 'tensor')})"
        for (name, words), count in kinds.items()
        if words
    ]
    notes += [
        f"--split-fused: '{name}' is edited as one matrix, since config.json does not tell how many rows each"
        f" of its parts has ({plural(count, 'tensor')})"
        for name, count in Counter(map(starred, whole)).items()
    ]
    return notes or ["--split-fused: no tensor has several parts"]
