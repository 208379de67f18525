"""WiSE-FT: interpolate between the base and the fine-tuned weights.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv 2109.01903).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.errors import UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.score_option import Score, commands_by_name
from monosoup_cli.methods.sweep import Numbers, Sweep, combine
from monosoup_cli.options import Base, Finetuned, Option, Output, as_paths
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Measure, Order, Paper, PlainMethod, Variant

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["COMMAND", "GROUP", "MEASURES", "WiseFt", "interpolate", "interpolations", "wise"]

PAPER = Paper(
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

MEASURES = (Measure("alpha", "WiSE α"),)


def wise(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    alpha: Annotated[
        Numbers,
        Option(
            "How far to go from the base (0) to the fine-tuned checkpoint (1). A list such as 0.3,0.5 or"
            " 0:1:0.1 makes one checkpoint per value: OUT/alpha-0.3, …",
            metavar="A",
            shell=str,
            of_layer="alpha",
        ),
    ],
    extrapolate: Annotated[bool, Option("Allow values of --alpha outside 0 to 1.")] = False,
    score: Score = (),
    **options: Unpack[RunKeywords],
) -> Order:
    """Interpolate base and fine-tune: WiSE-FT.

    Every floating-point tensor becomes (1 - A) base + A fine-tuned, biases included. Of several fine-tuned
    checkpoints, the mean is taken.

    Example: monosoup wise base.safetensors ft.safetensors -o out --alpha 0.5
    """
    alphas = Sweep.parse("alpha", alpha)
    if not alphas.values:
        raise UsageError("--alpha is needed")
    if not extrapolate:
        alphas.check(0, 1, hint="--extrapolate allows other values")
    method = WiseFt(
        [float(value) for value in alphas.values],
        [Variant(folder, own) for folder, own, _ in combine(alphas)],
    )
    return Order(
        method,
        as_paths(finetuned),
        os.fspath(output),
        os.fspath(base),
        arguments={"alpha": alphas.argument},
        scores=commands_by_name(score),
    )


COMMAND, GROUP = wise, "Edit"


@dataclass(frozen=True)
class WiseFt(PlainMethod):
    """(1 − α) base + α fine-tuned on every floating-point tensor.

    Attributes:
        alphas: Every α; outside [0, 1] it extrapolates.
        sweep: The checkpoints of the output, one for every α.
    """

    alphas: Sequence[float]
    sweep: Sequence[Variant] = (Variant(),)

    verb = "interpolate"
    paper = PAPER
    measures = MEASURES

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the sweep."""
        return self.sweep

    def edit(self, layer: Layer) -> Edit:
        """Interpolate one tensor, for every α."""
        assert isinstance(layer, FlatLayer)
        return interpolations(layer, self.alphas, [{"alpha": alpha} for alpha in self.alphas])


def interpolations(layer: FlatLayer, alphas: Sequence[float], measures: Sequence[Mapping[str, Any]]) -> Edit:
    """Interpolate a layer between base and fine-tuned checkpoint, once for every α."""

    def blocks() -> Iterator[tuple[int, int, Iterator[torch.Tensor]]]:
        for start, stop in layer.ranges():
            base, finetuned = layer.pair(start, stop)
            out = layer.memory.buffer("result", stop - start)
            yield start, stop, (interpolate(base, finetuned, alpha, out=out) for alpha in alphas)

    return Edit(measures, blocks())


def interpolate(
    base: torch.Tensor, finetuned: torch.Tensor, alpha: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """(1 − α) W0 + α W1, for tensors of one shape and dtype; α outside [0, 1] extrapolates.

    α = 0 and α = 1 return one of the inputs itself, exact to the last bit. Any other result is written to
    `out` where that is given.
    """
    import torch

    if alpha in (0, 1):
        return finetuned if alpha else base
    return torch.lerp(base, finetuned, alpha, out=out)
