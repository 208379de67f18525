"""Extract the update of a model as factors of low rank: its truncated singular value decomposition.

Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from monosoup_cli.devices.held import Held
from monosoup_cli.errors import UsageError
from monosoup_cli.formats.dtypes import BITS
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.model_soup import normalise
from monosoup_cli.methods.monosoup import RELATIVE_UPDATE
from monosoup_cli.methods.splits import ROUNDING
from monosoup_cli.options import (
    OUTPUT,
    Base,
    Finetuned,
    Option,
    StrPath,
    as_paths,
    check_choice,
    check_one_each,
    parse_size,
)
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import (
    Access,
    AdapterOrder,
    Edit,
    Layer,
    Measure,
    Order,
    Paper,
    PlainMethod,
    Variant,
    Wanted,
)
from monosoup_cli.tensors.plan import output_dtype
from monosoup_cli.tensors.ranks import FactorBytes, RankRule, RanksApart

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.sources.source import Factors

__all__ = ["COMMAND", "GROUP", "MEASURES", "Extraction", "RankOfEnergy", "RanksOfSize", "extract", "spend"]

PAPER = Paper(
    "A LoRA adapter extracted from the update of a model.",
    """
@article{eckart1936approximation,
  title = {The approximation of one matrix by another of lower rank},
  author = {Eckart, Carl and Young, Gale},
  journal = {Psychometrika},
  year = {1936}
}
""",
    updates="Of every update, it holds the largest singular values and their directions, as many as its rank"
    " has room for.",
)
MEASURES = (
    Measure("factor_rank", "kept rank", unit="directions", is_comparable=False),
    Measure("factor_error", "error", summary="mean"),
)
Form = Literal["peft", "diffusers", "kohya"]


def extract(
    base: Base,
    finetuned: Finetuned,
    output: Annotated[
        StrPath,
        replace(OUTPUT, help="The folder of the adapter, or with --form its file.", metavar="ADAPTER"),
    ],
    *,
    rank: Annotated[int | None, Option("The rank of all factors.", metavar="R", shell=int, minimum=1)] = None,
    energy: Annotated[
        float | None,
        Option(
            "Give each layer the smallest rank that holds the share E of its update's energy, the sum of the"
            " squared singular values (0 < E <= 1).",
            metavar="E",
            shell=float,
        ),
    ] = None,
    max_size: Annotated[
        str | int | None,
        Option(
            "Make an adapter of at most this size, for example 200MB: each layer gets the rank with which the"
            " error of all is least.",
            metavar="SIZE",
            shell=str,
        ),
    ] = None,
    weights: Annotated[
        Sequence[float] | None,
        Option(
            "A weight for each of several FINETUNED; scaled to sum to 1. Default: their mean.",
            metavar="W1,W2,…",
            shell=str,
            is_list=True,
        ),
    ] = None,
    scale: Annotated[float, Option("What the update is multiplied by.", metavar="S")] = 1.0,
    form: Annotated[
        Form,
        Option(
            "A folder for peft; or of a part of a diffusion pipeline, a single file with the names of"
            " diffusers or of kohya's trainers."
        ),
    ] = "peft",
    **options: Unpack[RunKeywords],
) -> AdapterOrder:
    """Write the update of a fine-tune as a LoRA adapter.

    The update is FINETUNED - BASE, and is not edited. Of every weight matrix, the adapter has the largest
    singular values of the update. Of several checkpoints or adapters, it has their mean.

    Example: monosoup extract base.safetensors ft.safetensors -o adapter --rank 32
    """
    sources = as_paths(finetuned)
    ways = {"--rank": rank, "--energy": energy, "--max-size": max_size}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UsageError(
            "extract needs one of --rank, --energy and --max-size",
            found=" and ".join(given) or "none of them",
            hint=None if given else "--rank 32 is a start; the report has the error of every layer",
        )
    if options.get("max_shard_size") is not None:
        raise UsageError("--max-shard-size is for whole checkpoints, not for an adapter")
    if options.get("on_nonfinite") == "keep":
        raise UsageError("an adapter cannot leave tensors as fine-tuned: --on-nonfinite keep")
    if rank is not None and rank < 1:
        raise UsageError("--rank is out of range", expected="at least 1", found=rank)
    if energy is not None and not 0.0 < energy <= 1.0:
        raise UsageError("--energy is out of range", expected="0 < value <= 1", found=energy)
    if not math.isfinite(scale):
        raise UsageError("--scale must be finite", found=scale)
    if weights is not None:
        check_one_each("--weights", weights, len(sources))
    check_choice("form", form, Form)
    ranks: int | RankRule | None = rank
    if energy is not None:
        ranks = RankOfEnergy(energy)
    if max_size is not None:
        item_bytes = BITS[output_dtype("F32", str(options.get("dtype", "keep")))] // 8
        ranks = RanksOfSize(parse_size(max_size, "max_size"), item_bytes)
    assert ranks is not None
    order = Order(
        Extraction(scale),
        sources,
        os.fspath(output),
        os.fspath(base),
        weights=None if weights is None else normalise(weights),
        arguments={"weights": None if weights is None else list(weights)},
    )
    file_form = None if form == "peft" else form
    return AdapterOrder(order, ranks, PAPER.summary, file_form, holds_excluded=False)


COMMAND, GROUP = extract, "Adapters"
HELPS = {
    "max_shard_size": "Refused: an adapter is a single file.",
    "include": "Extract only tensors whose names match; the adapter changes no others. Repeatable.",
    "exclude": "Leave tensors whose names match out of the adapter. Repeatable.",
    "on_mismatch": "What to do with tensors whose shapes differ: stop, store them whole, or, where only the"
    " number of rows differs, extract the update of the rows that all inputs have.",
    "on_nonfinite": "What to do with tensors that have NaN or Inf: stop. An adapter cannot keep them.",
}


@dataclass(frozen=True)
class Extraction(PlainMethod):
    """s Δ, approximated by as many of its singular values as the output has room for.

    Attributes:
        scale: s.
    """

    scale: float = 1.0

    verb = "extract"
    paper = PAPER
    measures = (*MEASURES, RELATIVE_UPDATE)
    access: ClassVar[Access] = "matrix"

    def variants(self) -> Sequence[Variant]:
        """One adapter; tensors that it stores whole go as far as the updates."""
        return (Variant(wise=None if self.scale == 1.0 else self.scale),)

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """The decomposition, or the factors made from it."""
        if cut is None or wanted.rank is None:
            return Held()
        from monosoup_cli.spectral import low_rank, spectrum, truncation

        if rank is not None:
            return Held(device=low_rank.held_bytes(cut.length, cut.side, rank, 1))
        factors = 8 * cut.side**2 + truncation.held_bytes(cut.length, cut.side, wanted.rank, 1)
        return Held(device=max(spectrum.held_bytes(cut.block_length, cut.side), factors))

    def edit(self, layer: Layer) -> Edit | None:
        """Approximate one update; of what is stored whole, scale it."""
        assert isinstance(layer, MatrixLayer)
        if layer.wanted.rank is None:
            return Edit([dict.fromkeys(measure.name for measure in self.measures)], self._blocks(layer))
        made = self._of_product(layer) if layer.factors is not None else self._of_blocks(layer)
        if made is None:
            return None
        values, (left, right), rank = made
        squares = values.square()
        total = squares.sum()
        measures = {
            "factor_rank": rank,
            "factor_error": math.sqrt(float(squares[rank:].sum() / total)),
            "relative_update": float(total.sqrt()) / layer.base_norm if layer.base_norm else None,
        }
        return Edit([measures], iter(()), [(left * self.scale, right)])

    def _blocks(self, layer: MatrixLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop, base, update in layer.pairs():
            assert base is not None
            yield start, stop, [base.add_(update, alpha=self.scale)]

    def _of_product(self, layer: MatrixLayer) -> tuple[torch.Tensor, Factors, int] | None:
        from monosoup_cli.spectral.low_rank import decompose_product
        from monosoup_cli.spectral.spectrum import has_moved

        assert layer.factors is not None
        assert layer.wanted.rank is not None
        layer.measure_base()
        spectrum = decompose_product(*layer.factors)
        if not has_moved(spectrum.singular_values):
            return None
        rank = min(layer.wanted.rank, spectrum.left.shape[1])
        half = spectrum.singular_values[:rank].sqrt().to(spectrum.left)
        factors = spectrum.left[:, :rank] * half, half[:, None] * spectrum.right[:rank]
        return spectrum.singular_values, factors, rank

    def _of_blocks(self, layer: MatrixLayer) -> tuple[torch.Tensor, Factors, int] | None:
        from monosoup_cli.spectral.spectrum import decompose, has_moved
        from monosoup_cli.spectral.truncation import truncate

        assert layer.wanted.rank is not None
        spectrum = decompose(layer.updates, layer.cut.side)
        values = spectrum.singular_values
        if not has_moved(values):
            return None
        (made,) = truncate(layer.updates, layer.cut.length, spectrum, [values], layer.wanted.rank)
        return values, (made.left, made.right), made.left.shape[1]


def _singular_values(layer: MatrixLayer) -> torch.Tensor | None:
    """The singular values of a layer's update, largest first; None for an update of zeros."""
    from monosoup_cli.spectral.low_rank import decompose_product
    from monosoup_cli.spectral.spectrum import has_moved, singular_values

    if layer.factors is not None:
        values = decompose_product(*layer.factors).singular_values
    else:
        values = singular_values(layer.updates, layer.cut.side)
    return values if has_moved(values) else None


@dataclass(frozen=True)
class RankOfEnergy(RanksApart):
    """The smallest rank that holds a share of ‖Δ‖_F² (a `RankRule`).

    Attributes:
        energy: The share, in (0, 1].
    """

    energy: float

    def measure(self, layer: MatrixLayer) -> int | None:
        """The rank for one layer."""
        from monosoup_cli.spectral.truncation import rank_holding

        values = _singular_values(layer)
        return None if values is None else rank_holding(values / values[0], self.energy * (1.0 - ROUNDING))


@dataclass(frozen=True)
class RanksOfSize:
    """The ranks with which an adapter of a given size has the smallest error (a `RankRule`).

    Attributes:
        max_bytes: The size of the adapter's file, at most.
        item_bytes: The size of an element of a factor.
    """

    max_bytes: int
    item_bytes: int

    def measure(self, layer: MatrixLayer) -> list[float] | None:
        """σ² of one layer, largest first: as many as a rank can have within the size."""
        values = _singular_values(layer)
        if values is None:
            return None
        most = self.max_bytes // (self.item_bytes * (layer.cut.length + layer.cut.side))
        kept = values[:most].square()
        return kept[kept > 0.0].tolist()

    def ranks(self, measured: Mapping[str, Sequence[float]], nbytes: FactorBytes) -> Mapping[str, int]:
        """Spend the size where it lowers the error most.

        A layer without a rank also needs no place in the header. So what is left is spent again, on the
        others.
        """
        costs, chosen = nbytes.by_rank, {name: of_one for name, of_one in measured.items() if of_one}
        while measured:
            ranks = spend(chosen, costs, self.max_bytes - nbytes.others(chosen)) if chosen else {}
            held = {name: of_one for name, of_one in chosen.items() if ranks[name]}
            if held and len(held) == len(chosen):
                return dict.fromkeys(measured, 0) | ranks
            chosen = held or self._fewer(measured, chosen, nbytes)
        return {}

    def _fewer(
        self,
        measured: Mapping[str, Sequence[float]],
        chosen: Mapping[str, Sequence[float]],
        nbytes: FactorBytes,
    ) -> dict[str, Sequence[float]]:
        """The better half of some layers, where there is no room for the header of all of them."""
        costs = nbytes.by_rank
        least = {name: nbytes.others([name]) + costs[name] for name in measured}
        if min(least.values()) > self.max_bytes:
            raise UsageError(
                "--max-size is too small for factors of rank 1",
                expected=f"at least {min(least.values()):,} bytes",
                found=f"{self.max_bytes:,}",
            )
        fitting = [name for name in chosen if least[name] <= self.max_bytes]
        best = sorted(fitting, key=lambda name: chosen[name][0] / costs[name], reverse=True)
        return {name: chosen[name] for name in best[: max(len(chosen) // 2, 1)]}


def spend(gains: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Divide a budget over layers so that what is gained is as large as can be.

    The gains of a layer fall from rank to rank. So taking the largest gain for its cost, over and over, is
    the best that the budget can give, but for what is left over at the end. That is spent by exchanges: ranks
    of one layer for ranks of another that gain more.

    Args:
        gains: What each further rank gains, for every layer, never more than the one before.
        costs: What one rank costs, for every layer.
        budget: What all of it may cost.

    Returns:
        The rank of every layer.
    """
    ranks = dict.fromkeys(gains, 0)
    queue = [(-of_one[0] / costs[name], name) for name, of_one in gains.items() if of_one]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if costs[name] > budget:
            continue
        budget -= costs[name]
        ranks[name] += 1
        if ranks[name] < len(gains[name]):
            heapq.heappush(queue, (-gains[name][ranks[name]] / costs[name], name))
    while (found := _exchange(gains, costs, ranks, budget)) is not None:
        for name, step in found.items():
            ranks[name] += step
            budget -= step * costs[name]
    return ranks


def _exchange(
    gains: Mapping[str, Sequence[float]], costs: Mapping[str, int], ranks: Mapping[str, int], budget: int
) -> dict[str, int] | None:
    """The exchange that gains most, as steps of ranks: one rank for as many as there is room for then, or as
    many as it takes for one. None where no exchange gains anything."""
    last: dict[int, str] = {}  # for each cost, the layer whose last rank gains least
    following: dict[int, str] = {}  # and the one whose next rank gains most
    for name, rank in ranks.items():
        cost, of_one = costs[name], gains[name]
        if rank and (cost not in last or of_one[rank - 1] < gains[last[cost]][ranks[last[cost]] - 1]):
            last[cost] = name
        if rank < len(of_one) and (
            cost not in following or of_one[rank] > gains[following[cost]][ranks[following[cost]]]
        ):
            following[cost] = name
    best, exchange = 0.0, None
    for less, more in product(last.values(), following.values()):
        if less == more:
            continue
        fewer = max(-(-(costs[more] - budget) // costs[less]), 1)
        for down in {1, min(fewer, ranks[less])}:
            up = min((budget + down * costs[less]) // costs[more], len(gains[more]) - ranks[more])
            lost = sum(gains[less][ranks[less] - down : ranks[less]])
            gained = sum(gains[more][ranks[more] : ranks[more] + up])
            if gained - lost > max(best, ROUNDING * lost):
                best, exchange = gained - lost, {less: -down, more: up}
    return exchange
