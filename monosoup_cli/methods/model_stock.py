"""Model Stock: how far to go from the base to the mean, from the angles between the updates.

Jang et al., "Model Stock: all we need is just a few fine-tuned models", ECCV 2024 (arXiv 2403.19522).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.similarity import cosines, gram_matrix
from monosoup_cli.options import Base, Finetuned, Option, Output, as_paths, check_choice
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Measure, Order, Paper, PlainMethod

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["COMMAND", "MEASURES", "Granularity", "ModelStock", "StockRatio", "stock", "stock_ratio"]

Granularity = Literal["tensor", "filter"]

PAPER = Paper(
    "The weights lie between the base and the mean of several fine-tuned checkpoints. The angles between"
    " their updates set how near to the mean: Model Stock.",
    """
@inproceedings{jang2024model,
  title = {Model Stock: All we need is just a few fine-tuned models},
  author = {Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon},
  booktitle = {ECCV},
  year = {2024}
}
""",
)

MEASURES = (
    Measure("cosine", "cosine", summary="mean"),
    Measure("ratio", "ratio", summary="mean"),
    Measure("clamped", "clamped", unit="ratios", summary="sum", is_comparable=False),
)

ROUNDING = 2.0**-44

LARGEST_SQUARES = {"F32": 2.0**246, "F64": math.inf}
"""Squares of norms below which the sum of as many updates as are summed in float32 (16), or of any
number in float64, does not overflow."""


def stock(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    granularity: Annotated[
        Granularity,
        Option(
            "Compute one ratio for each tensor, or one for each output row (filter).", of_layer="granularity"
        ),
    ] = "tensor",
    clamp: Annotated[
        bool,
        Option(
            "Set negative ratios to 0; the official code does not.",
            flags=("--clamp", "--no-clamp"),
            of_layer="clamp",
        ),
    ] = True,
    **options: Unpack[RunKeywords],
) -> Order:
    """Model Stock: move a mean towards the base.

    For every tensor, the angles between the updates determine how far to go: the more similar the updates
    are, the nearer the result is to the mean. Model Stock needs no data and no hyperparameters.

    Example: monosoup stock base.safetensors ft1.safetensors ft2.safetensors -o out
    """
    sources = as_paths(finetuned, at_least=2)
    return Order(ModelStock(granularity, clamp), sources, os.fspath(output), os.fspath(base))


COMMAND = stock
HELPS = {
    "include": "Move only tensors whose names match towards the base; average the rest. Repeatable.",
    "exclude": "Only average tensors whose names match. Repeatable.",
}


class StockRatio(NamedTuple):
    """The ratios of groups of weights, as tensors of one shape.

    Attributes:
        cosine: The mean cosine c between updates.
        ratio: The ratio t.
        is_clamped: Whether t was negative and has been set to 0.
    """

    cosine: torch.Tensor
    ratio: torch.Tensor
    is_clamped: torch.Tensor


def stock_ratio(gram: torch.Tensor, *, clamp: bool = True) -> StockRatio:
    """The interpolation ratio t = N c / (1 + (N − 1) c).

    c is the mean over pairs of the cosines between updates, in which an update of zero counts as 0. t is 0 if
    the denominator is below the float64 rounding error of the cosines.

    Args:
        gram: (..., N, N) float64, the inner products of N >= 2 updates.
        clamp: Whether a negative t counts as 0.
    """
    import torch

    count = gram.shape[-1]
    cosine = cosines(gram)
    pairs = cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean = pairs / (count * (count - 1))
    denominator = 1.0 + (count - 1) * mean
    is_zero = denominator < ROUNDING * count  # never negative but by rounding: it is ‖Σ τ/‖τ‖‖²/N
    ratio = torch.where(is_zero, 0.0, count * mean / torch.where(is_zero, 1.0, denominator))
    is_clamped = (ratio < 0.0) & clamp
    return StockRatio(mean, torch.where(is_clamped, 0.0, ratio), is_clamped)


@dataclass(frozen=True)
class ModelStock(PlainMethod):
    """base + t (mean of the fine-tuned − base), with t from the angles between updates.

    Attributes:
        granularity: One t for each tensor, or ("filter") for each output row.
        clamp: Whether a negative t counts as 0.
    """

    granularity: Granularity = "tensor"
    clamp: bool = True

    verb = "interpolate"
    paper = PAPER
    measures = MEASURES

    def __post_init__(self) -> None:
        check_choice("granularity", self.granularity, Granularity)

    def edit(self, layer: Layer) -> Edit:
        """Interpolate a tensor, or some of its rows at a time: first the ratios, then the weights."""
        assert isinstance(layer, FlatLayer)
        measures: dict[str, Any] = {"cosine": None, "ratio": 1.0, "clamped": 0}
        return Edit([measures], self._blocks(layer, measures))

    def _blocks(
        self, layer: FlatLayer, measures: dict[str, Any]
    ) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        import torch

        if not layer.shape:
            yield 0, 1, [layer.pair(0, 1)[1]]  # a scalar is averaged
            return
        memory, count = layer.memory, layer.count
        is_whole = self.granularity == "tensor" or len(layer.shape) < 2
        row = layer.size if is_whole else layer.size // layer.shape[0]
        ratios: list[StockRatio] = []
        for first, last in layer.updates.row_ranges(row):
            rows = (last - first) // row
            gram, total = _pass_over(layer, first, last, rows)
            ratios.append(stock_ratio(gram, clamp=self.clamp))
            ratio = ratios[-1].ratio
            for start, stop in layer.ranges(first, last, row=1 if rows == 1 else row):
                base = layer.from_base(start, stop)
                if total is None:
                    move = memory.upcast(layer.total(start, stop)).sub_(base, alpha=count)
                else:
                    move = memory.upcast(total[0, start - first : stop - first])
                if rows == 1:
                    yield start, stop, [base.add_(move, alpha=float(ratio) / count)]
                else:
                    of_rows = ratio[(start - first) // row : (stop - first) // row].unsqueeze(1) / count
                    yield start, stop, [base.view(-1, row).addcmul_(of_rows, move.view(-1, row))]
        measures["cosine"] = float(torch.cat([one.cosine for one in ratios]).mean())
        measures["ratio"] = float(torch.cat([one.ratio for one in ratios]).mean())
        measures["clamped"] = int(sum(one.is_clamped.sum() for one in ratios))


def _pass_over(
    layer: FlatLayer, first: int, last: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read the updates of the elements first:last once.

    Returns:
        The inner products of the updates in each of the `rows` rows, (rows, N, N); and the sum of the
        updates, None where it would be too large to be held.
    """
    import torch

    memory, count = layer.memory, layer.count
    total = memory.held(last - first)

    def exact() -> Iterator[torch.Tensor]:
        for start, stop, updates in layer.updates.ranges(first, last):
            if total is not None:
                # no product, which TF32 would round on a card
                torch.sum(updates, 0, keepdim=True, out=total[:, start - first : stop - first])
            yield memory.upcast(updates)

    if rows == 1:
        gram = gram_matrix(exact(), count).unsqueeze(0)
    else:
        (updates,) = exact()  # all of the rows are in one range
        by_row = updates.view(count, rows, -1).transpose(0, 1)
        gram = by_row @ by_row.mT
    if not (gram < LARGEST_SQUARES[memory.sums]).all():
        layer.updates.widen()
        return _pass_over(layer, first, last, rows)
    return gram, total
