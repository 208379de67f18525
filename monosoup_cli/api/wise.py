"""`wise`: WiSE-FT, at one α or at many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.command import Paper, StrPath, card, running
from monosoup_cli.api.sweep import Numbers, Sweep, combine
from monosoup_cli.errors import UsageError
from monosoup_cli.pipeline.job import Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions
from monosoup_cli.tensors.method import Edit, Variant

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.tensors.flat import FlatLayer

__all__ = ["interpolations", "prepare_wise", "wise"]

WISE_FT = Paper(
    "The weights between base and fine-tuned checkpoint, (1 - alpha) base + alpha fine-tuned: WiSE-FT.",
    """
@inproceedings{wortsman2022robust,
  title = {Robust fine-tuning of zero-shot models},
  author = {Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon
            and Roelofs, Rebecca and Gontijo-Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali
            and Namkoong, Hongseok and Schmidt, Ludwig},
  booktitle = {CVPR},
  year = {2022}
}
""",
)


def prepare_wise(
    base: StrPath,
    finetuned: StrPath,
    output: StrPath,
    *,
    alpha: Numbers,
    extrapolate: bool = False,
    **options: Unpack[RunKeywords],
) -> Job:
    """WiSE-FT: (1 − α) base + α fine-tuned on every floating tensor, for one α or a sweep.

    The command `monosoup wise` (docs/cli.md). `alpha`: a number; or a list, or text like
    "0:1:0.1", whose checkpoints go into folders of `output`, all from one reading. `extrapolate`
    allows values outside [0, 1]. Returns the report; raises `monosoup_cli.errors.MonosoupError`.
    """
    alphas = Sweep.parse("alpha", alpha)
    if not alphas.values:
        raise UsageError("alpha is needed")
    if not extrapolate:
        alphas.check(0, 1, hint="--extrapolate goes beyond the two")
    values = [float(value) for value in alphas.values]
    arguments: dict[str, Any] = {
        "base": os.fspath(base),
        "finetuned": [os.fspath(finetuned)],
        "output": os.fspath(output),
        "alpha": alphas.given,
        "extrapolate": extrapolate,
    }
    run_options = RunOptions.given(**options)

    recipe = Recipe(
        command="wise",
        verb="interpolate",
        arguments=arguments,
        method=lambda layer: interpolations(layer, values, [{"alpha": value} for value in values]),
        card=card(prepare_wise, arguments, run_options, WISE_FT),
        measured=["alpha"],
        variants=[Variant(folder, own) for folder, own, _ in combine(alphas)],
    )
    return prepare(recipe, run_options)


wise = running(prepare_wise)


def interpolations(layer: FlatLayer, alphas: Sequence[float], measures: Sequence[Mapping[str, Any]]) -> Edit:
    """The layer between base and fine-tuned, a variant for each α."""
    from monosoup_cli.methods.wise_ft import interpolate

    def blocks() -> Iterator[tuple[int, int, Iterator[torch.Tensor]]]:
        for start, stop in layer.ranges():
            base, finetuned = layer.pair(start, stop)
            out = layer.memory.room("result", stop - start)
            yield start, stop, (interpolate(base, finetuned, alpha, out=out) for alpha in alphas)

    return Edit(measures, blocks())
