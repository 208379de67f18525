"""Merge LoRA adapters into their base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.task_arithmetic import numbers_for
from monosoup_cli.options import (
    BASE,
    FINETUNED,
    Option,
    Output,
    StrPath,
    as_paths,
    check_one_each,
    helps_of_adding,
)
from monosoup_cli.tensors.flat import FLAT_ELEMENTS, FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Measure, Order, Paper, PlainMethod

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["COMMAND", "GROUP", "MEASURES", "Merge", "merge"]

PAPER = Paper(
    "A model with LoRA adapters merged into its weights.",
    """
@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi
            and Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  year = {2022}
}
""",
)
MEASURES: Sequence[Measure] = ()


def merge(
    base: Annotated[
        StrPath,
        replace(
            BASE,
            help="The model that the adapters were trained on: a file of weights, a folder, or an id on the"
            " Hub.",
        ),
    ],
    finetuned: Annotated[
        StrPath | Sequence[StrPath],
        replace(FINETUNED, help="LoRA adapters: folders, files, or ids on the Hub.", metavar="ADAPTER"),
    ],
    output: Output,
    *,
    weights: Annotated[
        Sequence[float] | None,
        Option(
            "What the update of each adapter is multiplied by. Default: 1 for each.",
            metavar="W1,W2,…",
            shell=str,
            is_list=True,
            of_layer="weights",
        ),
    ] = None,
    scale: Annotated[
        float, Option("What all updates are multiplied by.", metavar="S", of_layer="scale")
    ] = 1.0,
    **options: Unpack[RunKeywords],
) -> Order:
    """Merge LoRA adapters into their base.

    BASE plus the update of every adapter, as peft merges them, but without the model in memory. `edit` also
    merges an adapter, after an edit of its update.

    Example: monosoup merge base.safetensors adapter -o out
    """
    adapters = as_paths(finetuned)
    if weights is not None:
        check_one_each("--weights", weights, len(adapters), of="adapter")
    factors = numbers_for("weights", 1.0 if weights is None else weights, len(adapters))
    (step,) = numbers_for("scale", scale, 1)
    return Order(
        Merge(tuple(step * factor for factor in factors)),
        adapters,
        os.fspath(output),
        os.fspath(base),
        takes_adapters_only=True,
        kept="base",
        arguments={"weights": None if weights is None else list(weights)},
    )


COMMAND, GROUP = merge, "Adapters"
HELPS = helps_of_adding("Merge only into", "BASE") | {
    "rename": "Replace OLD with NEW in the names of BASE, so that they match those of ADAPTER. Repeatable."
    " Examples: transformer.h=model.layers; bert= removes bert.",
    "partial": "Go on with what BASE has, even if it lacks most of ADAPTER, which is refused otherwise.",
    "parts": "Which part of a pipeline to merge into: of a diffusers folder, and of what a single LoRA file"
    " changes. Default: the unet or transformer, or all of a LoRA file. Repeatable for single files."
    " Examples: unet; text_encoder_2.",
}


@dataclass(frozen=True)
class Merge(PlainMethod):
    """W0 + Σ s_i Δ_i, where Δ_i is the update of an adapter, on every tensor that an adapter changes.

    Attributes:
        scales: s_i for every adapter.
    """

    scales: Sequence[float]

    verb = "merge"
    paper = PAPER
    measures = MEASURES

    def edit(self, layer: Layer) -> Edit:
        """Merge one tensor. One adapter at full scale gives its merged weights themselves."""
        assert isinstance(layer, FlatLayer)
        if self.scales == (1.0,):
            return Edit([{}], self._alone(layer))
        return Edit([{}], self._blocks(layer))

    def _alone(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        columns = layer.shape[-1] if layer.shape else 1
        row = columns if columns <= FLAT_ELEMENTS else 1  # whole rows are merged in place
        for start, stop in layer.ranges(row=row):
            yield start, stop, [layer.taken_as_moved(start, stop)]

    def _blocks(self, layer: FlatLayer) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        for start, stop in layer.ranges():
            base = layer.from_base(start, stop)
            merged = layer.memory.buffer("result", stop - start).copy_(base)
            for number, scale in enumerate(self.scales):
                merged.add_(layer.updates.of(number, base, start, stop), alpha=scale)
            yield start, stop, [merged]
