"""An output that is a LoRA adapter: which of its tensors hold a layer, and factors written into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from monosoup_cli.adapters.adapter import LoraPair
from monosoup_cli.adapters.adapter_layout import factor_shapes, lay_out_adapter
from monosoup_cli.adapters.merged import MergedCheckpoint, read_float64
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.dtypes import BITS, FLOATING, bytes_of, check_overflow
from monosoup_cli.formats.header import TensorInfo, build_header
from monosoup_cli.outputs.layout import OutputFile, OutputLayout
from monosoup_cli.pipeline.plan import Plan, PlannedTensor
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.tensors.cut import Cut

if TYPE_CHECKING:
    import torch

    from monosoup_cli.outputs.writer import PartialOutput

__all__ = [
    "AdapterOutput",
    "FactorsOutput",
    "OutputRows",
    "again",
    "check_matrices",
    "extracted",
    "factored",
    "has_moved",
    "headers_of",
]

COMPARED_ELEMENTS = 1 << 20
"""Of a tensor that is no layer, at a time."""


@dataclass(frozen=True)
class AdapterOutput:
    """How the tensors of a plan stand in an adapter.

    `pairs`: those that are stored as factors. `stored`: every planned tensor → the output's that hold it,
    none where the adapter leaves it out; of those that are no factors, each holds all of it. `source`: the
    adapter whose tensors are kept where a layer does not change, None where the output is the first of its
    kind; `config` is then what its adapter_config.json says, and `left` names what changed and is not in it.
    `rows`: of tensors of which the adapter has some rows alone, their numbers.
    """

    pairs: Mapping[str, LoraPair]
    stored: Mapping[str, tuple[str, ...]]
    layout: OutputLayout
    source: Checkpoint | None = None
    config: Mapping[str, Any] | None = None
    left: tuple[str, ...] = ()
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def again(merged: MergedCheckpoint, layout: OutputLayout) -> AdapterOutput:
    """The output that has the tensors of the adapter itself. Raises CheckpointError where its updates,
    edited, would not be such an adapter any more."""
    adapter = merged.adapter
    dora = next((pair for pair in adapter.pairs.values() if pair.magnitude is not None), None)
    if dora is not None:
        raise CheckpointError(
            "a DoRA adapter, whose edited update is no DoRA of its rank",
            path=merged.source,
            tensor=dora.name,
            hint="without --as-adapter it is merged into the base",
        )
    stored: dict[str, tuple[str, ...]] = {name: (pair.a, pair.b) for name, pair in adapter.pairs.items()}
    stored |= {name: (own,) for name, own in adapter.replaced.items()}
    stored |= {name: (own,) for name, (own, _) in adapter.rows.items()}
    rows = {name: numbers for name, (_, numbers) in adapter.rows.items()}
    for name, own in adapter.twins.items():
        stored[name] = (*stored[name], own)
    for name, (own, _) in adapter.biases.items():
        stored[name] = (*stored.get(name, ()), own)
    held = {own for names in stored.values() for own in names}
    stored |= {own: (own,) for own in adapter.own.tensors if own not in held}
    return AdapterOutput(adapter.pairs, stored, layout, adapter.own, rows=rows)


def check_matrices(plan: Plan, output: AdapterOutput, path: str) -> None:
    """Raise CheckpointError where a tensor would be edited as other matrices than its factors make."""
    for tensor in plan.edited:
        pair = output.pairs.get(tensor.name)
        if pair is not None and (tensor.stack is not None) != pair.layout.endswith("experts"):
            raise CheckpointError(
                "is one matrix to the adapter, and would be edited as a stack",
                path=path,
                tensor=tensor.name,
                hint="--exclude leaves it as it is",
            )


def factored(plan: Plan) -> list[PlannedTensor]:
    """The layers whose updates factors can approximate."""
    return [
        tensor
        for tensor in plan.edited
        if tensor.cut is not None and tensor.stack is None and tensor.shared_rows is None
    ]


def extracted(
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    plan: Plan,
    rank_of: Callable[[PlannedTensor], int],
    dtype: str,
    has_moved: Callable[[str], bool],
) -> tuple[Plan, AdapterOutput]:
    """The output that holds the updates of whole checkpoints in factors of some ranks and of this dtype, and
    the plan without what no adapter holds. Of other tensors it holds, as far as it can, those that moved."""
    ranks = {tensor.name: min(rank_of(tensor), tensor.cut.side) for tensor in factored(plan) if tensor.cut}
    others = [
        tensor.name
        for tensor in plan.tensors
        if tensor.name not in ranks and (tensor.is_edited or has_moved(tensor.name))
    ]
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    first = finetuned[0]
    found = lay_out_adapter(
        shapes, ranks, others, first.config, base.repository or PurePath(base.source).name
    )
    if not found.pairs:
        raise CheckpointError("no layer of it can be a LoRA layer of peft", path=first.source)
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for pair in found.pairs.values():
        tensors += [
            (name, dtype, shape) for name, shape in zip((pair.a, pair.b), factor_shapes(pair), strict=True)
        ]
    tensors += [(stored, plan.dtypes[name], shapes[name]) for name, stored in found.carried.items()]
    file = OutputFile(
        "adapter_model.safetensors", build_header(sorted(tensors, key=_widest), {"format": "pt"})
    )
    held: dict[str, tuple[str, ...]] = {name: (pair.a, pair.b) for name, pair in found.pairs.items()}
    stored: dict[str, tuple[str, ...]] = {name: held.get(name, ()) for name in shapes}
    stored |= {name: (own,) for name, own in found.carried.items()}
    left = [
        replace(
            tensor, reason="unchanged" if ranks.get(tensor.name) == 0 else "excluded", cut=None, stack=None
        )
        if tensor.is_edited and not stored[tensor.name]
        else tensor
        for tensor in plan.tensors
    ]
    layout = OutputLayout((file,), None, False)
    return Plan(tuple(left)), AdapterOutput(found.pairs, stored, layout, None, found.config, found.left)


def _widest(tensor: tuple[str, str, tuple[int, ...]]) -> int:
    return -BITS[tensor[1]]


def has_moved(name: str, base: Checkpoint, finetuned: Sequence[Checkpoint]) -> bool:
    """Whether a tensor differs from the base's, in one of the checkpoints."""
    sources = [base, *finetuned]
    if any(name not in each.tensors or each.tensors[name].dtype not in FLOATING for each in sources):
        return any(name not in each.tensors for each in sources)
    shapes = {each.tensors[name].shape for each in sources}
    if len(shapes) > 1:
        return True
    size = math.prod(shapes.pop())
    for start in range(0, size, COMPARED_ELEMENTS):
        stop = min(start + COMPARED_ELEMENTS, size)
        before, *after = (read_float64(each, name, start, stop, is_checked=False) for each in sources)
        if not all(before.equal(each) for each in after):
            return True
    return False


def headers_of(
    merged: MergedCheckpoint, output: AdapterOutput
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """What an adapter holds, as headers: of the base's tensors that it has an update of (where the base
    itself is known, of all that it changes), and of its own, under the same names."""
    own, adapter = merged.adapter.own, merged.adapter
    of_base, of_own = {}, {}
    for name, names in output.stored.items():
        stored = own.tensors[names[0]]
        shape = adapter.pairs[name].shape if name in adapter.pairs else stored.shape
        if name in output.rows and merged.base is not None:
            shape = merged.base.tensors[name].shape
        of_own[name] = info = TensorInfo(
            name, stored.dtype, shape, 0, math.prod(shape) * BITS[stored.dtype] // 8
        )
        if name in adapter.pairs or len(shape) <= 1:
            of_base[name] = info
        elif merged.base is not None and name in merged.base.tensors:
            of_base[name] = merged.base.tensors[name]
    return of_base, of_own


class OutputRows:
    """Some rows of a matrix, which an adapter has in their place; written when all blocks are there.

    The others of an edited matrix are the base's: an update of few rows has, edited, no more.
    """

    def __init__(
        self, output: PartialOutput, folder: str, name: str, numbers: Sequence[int], cut: Cut
    ) -> None:
        import torch

        self._output, self._folder, self._info = output, folder, output.place(name)
        self._numbers, self._cut = torch.tensor(numbers), cut
        self._rows = torch.zeros(len(numbers), cut.columns, dtype=torch.float64)

    def put(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Take from a block (stop − start, side) what is of these rows."""
        import torch

        block = block.cpu()
        if self._cut.is_wide:
            self._rows[:, start:stop] = block.T[self._numbers]
        else:
            is_here = (start <= self._numbers) & (self._numbers < stop)
            self._rows[is_here] = block[self._numbers[is_here] - start]
        if stop == self._cut.length:
            part = self._rows.to(getattr(torch, FLOATING[self._info.dtype]))
            check_overflow(part, self._info.dtype, self._info.name)
            self._output.write(self._info.name, bytes_of(part), 0, self._folder)


class FactorsOutput:
    """The factors of one tensor's update, written when they are complete; an update of zeros for matrices
    that are not put.

    A factor that is finite in float64 and not in its stored dtype raises NonfiniteError.
    """

    def __init__(
        self, output: PartialOutput, folder: str, pair: LoraPair, a: TensorInfo, b: TensorInfo
    ) -> None:
        import torch

        self._output, self._folder, self._pair, self._infos = output, folder, pair, (a, b)
        self._a, self._b = (torch.zeros(info.shape, dtype=torch.float64) for info in (a, b))

    def put(self, index: int, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take left (m, s) and right (s, n), s <= rank, as the update of a matrix."""
        pair = self._pair
        half = math.sqrt(abs(pair.scale))
        left, right = left.cpu() * math.copysign(1.0 / half, pair.scale), right.cpu() / half
        b, a = (right.T, left.T) if pair.layout.startswith("transposed") else (left, right)
        if pair.layout.endswith("experts"):
            experts = pair.shape[0]
            self._a.view(experts, pair.rank, -1)[index, : len(a)] = a
            self._b.view(len(b), pair.rank, experts)[:, : b.shape[1], index] = b
        else:
            self._a.view(pair.rank, -1)[: len(a)] = a
            self._b.view(len(b), -1)[:, : b.shape[1]] = b

    def finish(self) -> None:
        """Write them."""
        import torch

        for factor, info in zip((self._a, self._b), self._infos, strict=True):
            part = factor.to(getattr(torch, FLOATING[info.dtype])).contiguous()
            check_overflow(part, info.dtype, self._pair.name)
            self._output.write(info.name, bytes_of(part), 0, self._folder)
