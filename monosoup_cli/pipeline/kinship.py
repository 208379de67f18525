"""Whether BASE and FINETUNED are parent and child: what speaks against it, said before the work starts.

A base that lacks most of the fine-tuned checkpoint is refused. The rest are doubts: only who trained the
model knows.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from monosoup_cli.errors import MismatchError, some
from monosoup_cli.layouts.layout import starred
from monosoup_cli.names import ALIKE, are_experts_apart, counterparts
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.report.words import plural
from monosoup_cli.sources.read import read_float64
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.plan import Headers, Plan, PlannedTensor

__all__ = ["check_names", "doubts_of_inputs", "doubts_of_names", "doubts_of_values", "has_nearly_all"]

FEW = 1 / 2
"""The share of the matrices, and of the parameters, that a base must have under the same names."""
NEARLY_ALL = 9 / 10
"""The share of the matrices that a base must have for what else it has to belong to the same model."""
NOT_COUNTED = ("excluded", "not_floating", "carried")
"""The reasons of tensors that are kept whatever the base has."""
MEASURE, LARGE = "‖W1 − W0‖ / min(‖W0‖, ‖W1‖)", 1.0
"""How an update is measured, and one as large as the weights; it is √2 or more for unrelated weights."""
WEIGHT_NORM = re.compile(r"(^|\.)(weight_g|weight\.original0)$")
"""The ends of names that weight norm gives to the lengths of rows."""
LAYERS = 8
PIECES = 8
PIECE_ELEMENTS = 1 << 13
"""How many layers are sampled, how many pieces of each, and how many elements a piece has."""
KINDS, OF_A_KIND, NAMED = 64, 4, 3
"""How many kinds of layers are sampled at most, how many layers of each, and how many kinds are named."""


class _Sums(NamedTuple):
    """Sums of squares, of the weights in the reference and in another checkpoint, and of the difference."""

    before: float = 0.0
    after: float = 0.0
    updates: float = 0.0

    def plus(self, before: float, after: float, updates: float) -> _Sums:
        """The sums with those of more elements."""
        return _Sums(self.before + before, self.after + after, self.updates + updates)


def check_names(plan: Plan, base: Headers, renames: str | None, *, partial: bool) -> None:
    """Refuse a base that lacks most of the fine-tuned checkpoint, of which little would be edited.

    Args:
        plan: What is done to every tensor.
        base: The headers of the base.
        renames: The `--rename`s that seem to be missing.
        partial: Whether one matrix is enough.

    Raises:
        MismatchError: The base has less than half of the matrices, or of the parameters; or, if `partial`, no
            matrix.
    """
    shortfall, has_none = _shortfall(plan, base)
    if shortfall is None or (partial and not has_none):
        return
    new = {tensor.name: tensor.shape for tensor in _counted(plan) if tensor.name not in base}
    only_in_base = {name: tensor.shape for name, tensor in base.items() if name not in plan.dtypes}
    name, other = counterparts(new, only_in_base)
    why = "check that this model was fine-tuned from it"
    shapes, of_base = Counter(new.values()), Counter(only_in_base.values())
    if renames:
        why = f"try {renames}"
    elif are_experts_apart(new, only_in_base):
        why = ALIKE
    elif any(map(WEIGHT_NORM.search, {**new, **only_in_base})):
        why = "one has weight norm: fold it (torch.nn.utils.parametrize.remove_parametrizations) and save it"
    elif (shapes & of_base).total() >= NEARLY_ALL * len(new):
        why = "the shapes are alike, so these may be another library's names: use --rename OLD=NEW for each"
    expected, found = other and f"a name like {other!r}", repr(name)
    if has_none and any(tensor.reason == "excluded" for tensor in plan.tensors):
        raise MismatchError(
            "the base has no matrix that --include and --exclude leave",
            expected=expected,
            found=found,
            hint="choose others, or other names for these with --rename",
        )
    if has_none:
        raise MismatchError(
            "base and fine-tuned checkpoint have no matrix name in common",
            expected=expected,
            found=found,
            hint=why,
        )
    raise MismatchError(
        shortfall, expected=expected, found=found, hint=f"{why}; --partial goes on with what the base has"
    )


def doubts_of_names(plan: Plan, base: Headers) -> list[str]:
    """Whether the base has most of the fine-tuned checkpoint under the same names, from headers alone."""
    shortfall, _ = _shortfall(plan, base)
    return [] if shortfall is None else [f"{shortfall}: was this model fine-tuned from it?"]


def has_nearly_all(plan: Plan, base: Headers) -> bool:
    """Whether the base has nearly all matrices under the same names; the rest may be a new head."""
    matrices = [tensor.name in base for tensor in _counted(plan) if len(tensor.shape) > 1]
    return sum(matrices) >= NEARLY_ALL * len(matrices)


def _counted(plan: Plan) -> list[PlannedTensor]:
    """The tensors that could be edited if the base had them."""
    return [tensor for tensor in plan.tensors if tensor.reason not in NOT_COUNTED]


def _shortfall(plan: Plan, base: Headers) -> tuple[str | None, bool]:
    """How little the base has of what could be edited, and whether that is no matrix at all.

    The first is None where it has half of it or more.
    """
    tensors = _counted(plan)
    shared = [tensor for tensor in tensors if tensor.name in base]
    total, found = (sum(tensor.elements for tensor in some) for some in (tensors, shared))
    matrices, shared_matrices = (sum(len(one.shape) > 1 for one in some) for some in (tensors, shared))
    if found >= FEW * total and shared_matrices >= FEW * matrices:
        return None, False
    return (
        f"the base has only {shared_matrices:,} of {matrices:,} matrices ({found / total:.0%} of the"
        " parameters) under these names",
        not (shared_matrices if matrices else shared),
    )


def doubts_of_values(reference: Source, others: Sequence[Source], plan: Plan) -> list[str]:
    """Whether the updates are small beside the weights, from a sample of the planned layers: some MB read.

    Layers of one kind, such as all `self_attn.qkv_proj`, are also asked by themselves: they may be stored in
    another form, or with scales that were left out. A single layer may be a new head.

    Says nothing where the sample of the reference is zero, or holds NaN or Inf, which the run itself refuses.

    Args:
        reference: The base, or the first of the checkpoints that are averaged without one.
        others: The checkpoints that should be near it.
        plan: What is done to every tensor.
    """
    samples = [_sample(plan, reference, other) for other in others]
    asked: dict[str, tuple[PlannedTensor, list[int]]] = {}
    for number, (layers, kinds) in enumerate(samples):
        for name, layer in {
            one.name: one for of_kind in (layers, *kinds.values()) for one in of_kind
        }.items():
            asked.setdefault(name, (layer, []))[1].append(number)
    sums: list[dict[str, _Sums]] = [{} for _ in others]
    for name, (layer, numbers) in asked.items():
        found = _sums(layer, reference, [others[number] for number in numbers])
        for number, of_one in zip(numbers, found, strict=True):
            sums[number][name] = of_one
    doubts = []
    for other, sample, of_other in zip(others, samples, sums, strict=True):
        said = _doubts(reference.path, other.path, *sample, of_other)
        doubts += [f"{other.path}: {doubt}" for doubt in said] if len(others) > 1 else said
    return doubts


def doubts_of_inputs(inputs: Inputs, plan: Plan) -> list[str]:
    """`doubts_of_values` for opened inputs; what is held to read the sample is dropped again.

    Adapters are left out: the size of their updates says nothing about the base.
    """
    reference = inputs.sources[0]
    others = [
        source
        for source, adapter in zip(inputs.finetuned, inputs.adapters, strict=True)
        if adapter is None and source is not reference
    ]
    doubts = doubts_of_values(reference, others, plan)
    for source in inputs.sources:
        source.forget()
    return doubts


def _doubts(
    reference: str,
    other: str,
    layers: Sequence[PlannedTensor],
    kinds: Mapping[str, Sequence[PlannedTensor]],
    sums: Mapping[str, _Sums],
) -> list[str]:
    """What the sums of a sample say of one checkpoint; both are named as the user gave them."""
    ratio = _ratio([sums[layer.name] for layer in layers])
    if ratio is None:
        return []
    ratios = {kind: _ratio([sums[layer.name] for layer in some]) for kind, some in kinds.items()}
    large = {kind: ratio for kind, ratio in ratios.items() if ratio is not None and ratio >= LARGE}
    if ratio >= LARGE and not 0 < len(large) < len(ratios) / 2:
        check = f"{other} was fine-tuned from {reference}"
        if not layers[0].reads.base:
            check = f"{other} and {reference} are fine-tunes of one model"
        return [
            f"the updates are as large as the weights: {MEASURE} is {ratio:.2f} in a sample of"
            f" {plural(len(layers), 'layer')} (fine-tunes stay well below {LARGE:g}, unrelated models have"
            f" 1.41 or more); check that {check}"
        ]
    if not large:
        return []
    named = some([f"{kind!r} ({ratio:.2f})" for kind, ratio in large.items()], NAMED)
    return [
        f"the updates of {named} are as large as the weights, by {MEASURE} in a sample; if one"
        " of the checkpoints stores them in another form, --exclude keeps them as they are"
    ]


def _sample(plan: Plan, *sources: Source) -> tuple[list[PlannedTensor], dict[str, list[PlannedTensor]]]:
    """The largest of the edited matrices in each of some stretches of the plan, and some of each kind."""
    matrices = [
        tensor
        for tensor in plan.edited
        if len(tensor.shape) > 1 and tensor.elements and all(tensor.name in one.tensors for one in sources)
    ]
    count = min(LAYERS, len(matrices))
    ends = [len(matrices) * number // count for number in range(count + 1)] if count else []
    layers = [max(matrices[i:j], key=lambda tensor: tensor.elements) for i, j in pairwise(ends)]
    kinds = defaultdict(list)
    for tensor in matrices:
        kinds[starred(tensor.name)].append(tensor)
    several = islice(((kind, some) for kind, some in kinds.items() if len(some) > 1), KINDS)
    return layers, {kind: some[:: -(-len(some) // OF_A_KIND)] for kind, some in several}


def _sums(layer: PlannedTensor, reference: Source, others: Sequence[Source]) -> list[_Sums]:
    """The sums of squares of a layer's sample, for each of the others; the reference is read once."""
    found = [_Sums()] * len(others)
    for start, stop in _pieces(layer.elements):
        before, *rest = (
            read_float64(source, layer.name, start, stop, is_checked=False) for source in (reference, *others)
        )
        weights = float(before.square().sum())
        found = [
            sums.plus(weights, float(after.square().sum()), float((after - before).square().sum()))
            for sums, after in zip(found, rest, strict=True)
        ]
    return found


def _ratio(sums: Sequence[_Sums]) -> float | None:
    """‖W1 − W0‖ beside the smaller of ‖W0‖ and ‖W1‖ of some layers; None where it tells nothing."""
    before, after, updates = (sum(column) for column in zip(_Sums(), *sums, strict=True))
    if before == 0 or not math.isfinite(before) or not math.isfinite(updates):
        return None
    return math.sqrt(updates / (min(before, after) or before))


def _pieces(elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces spread over so many elements; all of them, where they are few."""
    if elements <= PIECES * PIECE_ELEMENTS:
        yield 0, elements
        return
    for number in range(PIECES):
        start = (elements - PIECE_ELEMENTS) * number // (PIECES - 1)
        yield start, start + PIECE_ELEMENTS
