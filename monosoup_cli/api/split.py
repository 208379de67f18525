"""The options that say how a spectrum is split and weighted, which `edit` and `inspect_spectrum` share."""

from __future__ import annotations

from typing import Annotated

from monosoup_cli.methods.monosoup import Weighting
from monosoup_cli.methods.splits import SplitRule
from monosoup_cli.options import Option

__all__ = ["ENERGY_HELP", "EnergySplit", "RankFractionSplit", "RankSplit", "SplitOption", "WeightingOption"]

SplitOption = Annotated[
    SplitRule,
    Option(
        "Where to split: at the effective rank, by the entropy of σ (the paper's rule) or of σ²; or after the"
        " singular values that exceed noise.",
        of_layer="split",
    ),
]

ENERGY_HELP = (
    "Split where the singular values reach the share R of the energy (0 < R <= 1), instead of by entropy."
    " R is not how much of the update is kept: at 0.8, that is at most about 0.53 (the equivalent α) of an"
    " update with many directions."
)
EnergySplit = Annotated[float | None, Option(ENERGY_HELP, metavar="R", shell=float)]
RankSplit = Annotated[
    int | None, Option("Split after N singular values.", metavar="N", shell=int, minimum=1, of_layer="split")
]
RankFractionSplit = Annotated[
    float | None,
    Option(
        "Split after this share of the singular values (0 < F <= 1).",
        metavar="F",
        shell=float,
        of_layer="split",
    ),
]
WeightingOption = Annotated[
    Weighting,
    Option(
        "How to weight the two parts. All choices but monosoup are ablations from the paper.",
        of_layer="weighting",
    ),
]
