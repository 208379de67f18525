"""What each of several machines makes of one output: shares of equal predicted cost, the same everywhere.

A share owns files: whole files of the output, since two machines that write into one file of a network file
system can spoil each other's bytes. Where the files are too few or too unequal for shares of equal cost, the
largest are cut: each share then has a file of its own tensors of it, a piece.

The cost of a tensor is the time that it takes on one core, by constants that were measured once. Only its
ratio to others counts. Sums are exact, so that every version of Python finds the same shares.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from monosoup_cli.formats.header import build_header
from monosoup_cli.outputs.layout import OutputFile, OutputLayout
from monosoup_cli.pipeline.destination import Part
from monosoup_cli.pipeline.law import Law
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.ingredients import product_rank
from monosoup_cli.tensors.plan import Plan, PlannedTensor

__all__ = ["Share", "core_seconds", "shares_of"]

UNEVEN = 1.1
"""How much larger than the mean the largest share may be before files are cut."""

AS_MATRICES = Law([2e-4, 1e-8, 6.8e-11, 2.2e-10])
"""Seconds of an edited matrix on one core."""
FROM_FACTORS = Law([5e-4, 5e-9, 0.0, 0.0])
"""The same where the update is a product of factors of low rank."""
BY_ELEMENTS = Law([1e-4, 5e-9])
"""Seconds of any other tensor."""


@dataclass(frozen=True)
class Share:
    """What one part makes.

    Attributes:
        tensors: The tensors.
        layout: The files: whole files of the output, and pieces.
        part: Which part of the output; None where it is all of it.
        pieces: For each piece, the name of the file that it is a piece of.
        costs: The predicted seconds of all shares, in order, on one core.
    """

    tensors: Sequence[PlannedTensor]
    layout: OutputLayout
    part: Part | None = None
    pieces: Mapping[str, str] = field(default_factory=dict)
    costs: Sequence[float] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the tensors."""
        return frozenset(tensor.name for tensor in self.tensors)


class _Unit(NamedTuple):
    """What is not divided: some tensors, and the file that is theirs alone."""

    cost: float
    names: Sequence[str]
    file: str | None


def shares_of(
    plan: Plan,
    layout: OutputLayout,
    stored: Mapping[str, Sequence[str]],
    finetuned: Sequence[Source],
    count: int,
) -> list[Share]:
    """Divide a plan.

    Args:
        plan: The tensors.
        layout: The files of the output.
        stored: The tensors of the layout that hold a tensor of the plan, where they are not itself.
        finetuned: The fine-tuned checkpoints.
        count: The number of shares.
    """
    costs = core_seconds(plan, finetuned)
    places = layout.places()
    names_in, joint = defaultdict[str | None, list[str]](list), set[str | None]()
    for name in costs:
        homes = {places[one][0].name for one in stored.get(name, (name,))}
        names_in[min(homes, default=None)].append(name)
        joint |= {None} if not homes else homes if len(homes) > 1 else set()
    wholes = [
        _Unit(math.fsum(costs[name] for name in names), names, file)
        for file, names in names_in.items()
        if file not in joint
    ]
    wholes.sort(key=lambda unit: -unit.cost)
    loose = [
        _Unit(costs[name], [name], None) for file in names_in if file in joint for name in names_in[file]
    ]
    for cut in sorted({0, len(wholes), *(1 << power for power in range(len(wholes).bit_length()))}):
        units = [*wholes[cut:], *loose]
        units += [_Unit(costs[name], [name], None) for whole in wholes[:cut] for name in whole.names]
        spread = _spread(units, count)
        loads = [math.fsum(unit.cost for unit in some) for some in spread]
        if max(loads) <= UNEVEN * math.fsum(loads) / count:
            break
    files = {file.name: file for file in layout.files}
    at = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
    return [
        _share(Part(number, count), plan, at, some, loads, files, places, stored)
        for number, some in enumerate(spread, start=1)
    ]


def core_seconds(plan: Plan, finetuned: Sequence[Source]) -> dict[str, float]:
    """About how long each tensor of an edit takes on one core, by constants that were measured once."""
    known: dict[object, float] = {}  # models have few kinds of tensors
    return {tensor.name: _cost(tensor, finetuned, known) for tensor in plan.tensors}


def _cost(tensor: PlannedTensor, finetuned: Sequence[Source], known: dict[object, float]) -> float:
    matrices = tensor.matrices if tensor.is_edited else None
    has_factors = matrices is not None and product_rank(finetuned, tensor.name) is not None
    law = BY_ELEMENTS if matrices is None else FROM_FACTORS if has_factors else AS_MATRICES
    kind = (law.constants[0], tensor.elements if matrices is None else matrices)
    if kind not in known:
        known[kind] = law.seconds(tensor if tensor.is_edited else replace(tensor, matrices=None))
    return known[kind]


def _spread(units: Sequence[_Unit], count: int) -> list[list[_Unit]]:
    """Give each unit, the costliest first, to the share that has the least so far."""
    spread: list[list[_Unit]] = [[] for _ in range(count)]
    loads = [(0.0, number) for number in range(count)]
    for unit in sorted(units, key=lambda unit: -unit.cost):
        load, number = loads[0]
        spread[number].append(unit)
        heapq.heapreplace(loads, (load + unit.cost, number))
    return spread


def _share(
    part: Part,
    plan: Plan,
    at: Mapping[str, int],
    units: Sequence[_Unit],
    costs: Sequence[float],
    files: Mapping[str, OutputFile],
    places: Mapping[str, tuple[OutputFile, object]],
    stored: Mapping[str, Sequence[str]],
) -> Share:
    own = [files[unit.file] for unit in units if unit.file is not None]
    cut: dict[str, set[str]] = defaultdict(set)
    for unit in units:
        for name in unit.names if unit.file is None else ():
            for one in stored.get(name, (name,)):
                cut[places[one][0].name].add(one)
    pieces, of_file = [], {}
    for name, inside in sorted(cut.items()):
        tensors = sorted(files[name].header.tensors.values(), key=lambda tensor: tensor.start)
        entries = [(one.name, one.dtype, one.shape) for one in tensors if one.name in inside]
        piece = OutputFile(f"{name}.piece", build_header(entries, None))
        pieces.append(piece)
        of_file[piece.name] = name
    layout = OutputLayout((*sorted(own, key=lambda file: file.name), *pieces), None, False)
    order = sorted(at[name] for unit in units for name in unit.names)
    return Share([plan.tensors[number] for number in order], layout, part, of_file, costs)
