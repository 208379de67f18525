"""Task arithmetic: add updates to weights, each times a scale.

Ilharco et al., "Editing models with task arithmetic", ICLR 2023 (arXiv 2212.04089).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.errors import UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.monosoup import RELATIVE_UPDATE
from monosoup_cli.options import BASE, Base, Finetuned, Option, Output, StrPath, as_paths, helps_of_adding
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Measure, Order, Paper, PlainMethod

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["COMMAND", "MEASURES", "Transplant", "numbers_for", "transplant"]

PAPER = Paper(
    "A model to which what fine-tuning changed in another one was added: task arithmetic.",
    """
@inproceedings{ilharco2023editing,
  title = {Editing models with task arithmetic},
  author = {Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin
            and Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali},
  booktitle = {ICLR},
  year = {2023}
}
""",
)
MEASURES = (
    Measure("base_distance", "‖D‖/‖W0‖", unit="‖W0‖", summary="mean"),
    Measure("overlap", "cos(Δ, D)", summary="mean"),
)


def transplant(
    base: Base,
    finetuned: Finetuned,
    onto: Annotated[
        StrPath,
        replace(
            BASE,
            help="The checkpoint that the updates are added to, and whose layout and side files the output"
            " has.",
            metavar="ONTO",
        ),
    ],
    output: Output,
    *,
    scale: Annotated[
        float | Sequence[float],
        Option(
            "What the update is multiplied by; below 0, it is taken away. For several FINETUNED, give one"
            " number for all, or one for each: 0.5,1.",
            metavar="S",
            shell=str,
            is_list=True,
            of_layer="scale",
        ),
    ] = 1.0,
    **options: Unpack[RunKeywords],
) -> Order:
    """Add an update to another model: task arithmetic.

    The update is what fine-tuning changed in BASE. ONTO is another model of the same architecture, such as a
    newer base or an instruction-tuned one. Every floating-point tensor becomes ONTO + S (FINETUNED - BASE).

    Example: monosoup transplant base.safetensors ft.safetensors instruct.safetensors -o out
    """
    sources = as_paths(finetuned)
    scales = numbers_for("scale", scale, len(sources))
    return Order(
        Transplant(scales),
        [os.fspath(onto), *sources],
        os.fspath(output),
        os.fspath(base),
        kept="first",
        arguments={"finetuned": sources, "scale": list(scales)},
    )


COMMAND = transplant
HELPS = helps_of_adding("Add only to", "ONTO")


def numbers_for(name: str, numbers: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One number for each of several checkpoints.

    Args:
        name: The name of the option.
        numbers: One number for all, or one for each.
        count: How many checkpoints there are.

    Raises:
        UsageError: There are more or fewer numbers, or one is not finite.
    """
    found = [numbers] if isinstance(numbers, (int, float)) else list(numbers)
    if not all(map(math.isfinite, found)):
        raise UsageError(f"--{name} must be finite", found=numbers)
    if len(found) not in (1, count):
        raise UsageError(
            f"--{name} needs one number, or one for each checkpoint",
            expected=f"{count} of them",
            found=len(found),
        )
    return tuple(float(number) for number in found) * (count if len(found) == 1 else 1)


@dataclass(frozen=True)
class Transplant(PlainMethod):
    """W + Σ s_i (W_i − W0) on every floating-point tensor, where W is the first of the checkpoints.

    Attributes:
        scales: s_i for every other checkpoint.
    """

    scales: Sequence[float]

    verb = "add to"
    paper = PAPER
    measures = (RELATIVE_UPDATE, *MEASURES)

    def edit(self, layer: Layer) -> Edit:
        """Add the updates to one tensor."""
        assert isinstance(layer, FlatLayer)
        measures: dict[str, Any] = dict.fromkeys(measure.name for measure in self.measures)
        return Edit([measures], self._blocks(layer, measures))

    def _blocks(
        self, layer: FlatLayer, measures: dict[str, Any]
    ) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        import torch

        squares = {"base": 0.0, "update": 0.0, "distance": 0.0}
        product = 0.0
        for start, stop in layer.ranges():
            base = layer.from_base(start, stop)
            update = layer.memory.buffer("sum", stop - start).zero_()
            for number, scale in enumerate(self.scales, start=1):
                update.add_(layer.updates.of(number, base, start, stop), alpha=scale)
            onto = layer.one(0, start, stop)
            distance = torch.sub(onto, base, out=layer.memory.buffer("distance", stop - start))
            for name, part in (("base", base), ("update", update), ("distance", distance)):
                squares[name] += float(part.dot(part))
            product += float(update.dot(distance))
            yield start, stop, [onto.add_(update)]
        measures |= _measures(squares, product)


def _measures(squares: Mapping[str, float], product: float) -> dict[str, float | None]:
    """The measures of a tensor, from sums over its elements; None where they divide by 0."""
    base, update, distance = (math.sqrt(squares[name]) for name in ("base", "update", "distance"))
    return {
        "relative_update": update / base if base else None,
        "base_distance": distance / base if base else None,
        "overlap": max(-1.0, min(product / update / distance, 1.0)) if update and distance else None,
    }
