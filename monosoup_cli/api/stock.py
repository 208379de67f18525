"""`stock`: Model Stock."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from monosoup_cli.api.command import Paper, StrPath, card, paths, running
from monosoup_cli.errors import UsageError
from monosoup_cli.pipeline.job import Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions
from monosoup_cli.tensors.method import Edit

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.methods.model_stock import StockRatio
    from monosoup_cli.tensors.flat import FlatLayer

__all__ = ["Granularity", "prepare_stock", "stock"]

Granularity = Literal["tensor", "filter"]

MODEL_STOCK = Paper(
    "Between the base and the mean of several fine-tuned checkpoints, as near to the mean as the angles"
    " between their updates say: Model Stock.",
    """
@inproceedings{jang2024model,
  title = {Model Stock: All we need is just a few fine-tuned models},
  author = {Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon},
  booktitle = {ECCV},
  year = {2024}
}
""",
)


def prepare_stock(
    base: StrPath,
    finetuned: Sequence[StrPath],
    output: StrPath,
    *,
    granularity: Granularity = "tensor",
    clamp: bool = True,
    **options: Unpack[RunKeywords],
) -> Job:
    """Model Stock: base + t (mean of the fine-tuned − base), t from the angles between updates.

    The command `monosoup stock` (docs/cli.md). `finetuned`: two or more. `granularity`: one t for
    each tensor, or ("filter") for each output row. `clamp`: a negative t counts as 0. Returns the
    report; raises `monosoup_cli.errors.MonosoupError`.
    """
    if granularity not in get_args(Granularity):
        raise UsageError("unknown granularity", expected=", ".join(get_args(Granularity)), found=granularity)
    arguments: dict[str, Any] = {
        "base": os.fspath(base),
        "finetuned": paths(finetuned, at_least=2),
        "output": os.fspath(output),
        "granularity": granularity,
        "clamp": clamp,
    }
    run_options = RunOptions.given(**options)
    recipe = Recipe(
        command="stock",
        verb="interpolate",
        arguments=arguments,
        method=lambda layer: _edit(layer, granularity, clamp=clamp),
        card=card(prepare_stock, arguments, run_options, MODEL_STOCK),
        measured=["cosine", "ratio", "clamped"],
        averaged=["cosine", "ratio"],
        summed=["clamped"],
    )
    return prepare(recipe, run_options)


stock = running(prepare_stock)


def _edit(layer: FlatLayer, granularity: Granularity, *, clamp: bool) -> Edit:
    """For the tensor, or for some of its rows at a time: first the ratios, then the weights."""
    is_whole = granularity == "tensor" or len(layer.shape) < 2
    row, count = layer.size if is_whole else layer.size // layer.shape[0], layer.count
    found: list[StockRatio] = []
    measures: dict[str, Any] = {"cosine": None, "ratio": 1.0, "clamped": 0}

    def blocks() -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        import torch

        from monosoup_cli.methods.model_stock import stock_ratio

        if not layer.shape:
            yield 0, 1, [layer.pair(0, 1)[1]]  # a scalar is averaged
            return
        for first, last in layer.updates.row_ranges(row):
            rows = (last - first) // row
            gram, total = _pass_over(layer, first, last, rows)
            found.append(stock_ratio(gram, clamp=clamp))
            ratio = found[-1].ratio
            for start, stop in layer.ranges(first, last, row=1 if rows == 1 else row):
                base = layer.from_base(start, stop)
                if total is None:
                    move = layer.memory.upcast(layer.total(start, stop)).sub_(base, alpha=count)
                else:
                    move = layer.memory.upcast(total[0, start - first : stop - first])
                if rows == 1:
                    yield start, stop, [base.add_(move, alpha=float(ratio) / count)]
                else:
                    of_rows = ratio[(start - first) // row : (stop - first) // row].unsqueeze(1) / count
                    yield start, stop, [base.view(-1, row).addcmul_(of_rows, move.view(-1, row))]
        measures["cosine"] = float(torch.cat([each.cosine for each in found]).mean())
        measures["ratio"] = float(torch.cat([each.ratio for each in found]).mean())
        measures["clamped"] = int(sum(each.is_clamped.sum() for each in found))

    return Edit([measures], blocks())


def _pass_over(
    layer: FlatLayer, first: int, last: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the elements first:last, in `rows` rows: the inner products of the updates, (rows, N, N),
    and the sum of the updates, where it is small enough to be held."""
    import torch

    from monosoup_cli.methods.similarity import gram_matrix

    count = layer.count
    total = layer.memory.held(last - first)
    ones = layer.memory.room("ones", 1, count, dtype=layer.updates.sums).fill_(1.0)

    def exact() -> Iterator[torch.Tensor]:
        for start, stop, updates in layer.updates.ranges(first, last):
            if total is not None:
                torch.mm(ones, updates, out=total[:, start - first : stop - first])
            yield layer.memory.upcast(updates)

    if rows == 1:
        gram = gram_matrix(exact(), count).unsqueeze(0)
    else:
        (updates,) = exact()  # all of the rows are in one range
        by_row = updates.view(count, rows, -1).transpose(0, 1)
        gram = by_row @ by_row.mT
    if not (gram < LARGEST_SQUARES[layer.updates.sums]).all():
        layer.updates.widen()
        return _pass_over(layer, first, last, rows)
    return gram, total


LARGEST_SQUARES = {"F32": 2.0**246, "F64": math.inf}
"""Squares of norms below which the sum of as many updates as are summed in float32 (16), or of any
number in float64, does not overflow."""
