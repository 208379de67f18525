"""LiNeS: scale the update of a layer linearly with its depth, which it infers from tensor names.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard, "LiNeS: Post-training layer scaling
prevents forgetting and enhances model merging", ICLR 2025 (arXiv 2410.17146). The paper
presupposes the blocks; how they are found in the names is ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from monosoup_cli.errors import UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.score_option import Score, commands_by_name
from monosoup_cli.methods.sweep import Numbers, Sweep, combine
from monosoup_cli.methods.wise_ft import interpolations
from monosoup_cli.names import Position, find_blocks, is_head
from monosoup_cli.options import Base, Finetuned, Option, Output, as_paths
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.method import Edit, Layer, Measure, Order, Paper, PlainMethod, Variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["COMMAND", "GROUP", "MEASURES", "BlockPattern", "Head", "Lines", "Scale", "lines", "scales"]

Head = Literal["last", "alpha", "ft"]
BlockPattern: TypeAlias = Annotated[
    str | None,
    Option(
        "A regular expression whose groups capture the block numbers, instead of automatic detection.",
        metavar="REGEX",
        shell=str,
    ),
]

PAPER = Paper(
    "These are the fine-tuned weights, with the update scaled down more in shallower layers: LiNeS.",
    """
@inproceedings{wang2025lines,
  title = {LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging},
  author = {Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez, Guillermo
            and Fleuret, Fran{\\c{c}}ois and Frossard, Pascal},
  booktitle = {ICLR},
  year = {2025}
}
""",
)

MEASURES = (Measure("stack"), Measure("block"), Measure("scale", "scale", summary="mean"))


def lines(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    alpha: Annotated[
        Numbers,
        Option(
            "The scale of the first block, and of tensors outside blocks. A list such as 0.3,0.5 makes one"
            " checkpoint per value: OUT/alpha-0.3, …",
            metavar="A",
            shell=str,
            of_layer="alpha",
        ),
    ],
    beta: Annotated[
        Numbers,
        Option(
            "What the last block adds to A: its scale is A + B. A list makes one checkpoint per value.",
            metavar="B",
            shell=str,
            of_layer="beta",
        ),
    ],
    head: Annotated[
        Head,
        Option(
            "The scale of a head outside blocks: that of the last block (last), --alpha (alpha), or 1 (ft: as"
            " fine-tuned)."
        ),
    ] = "last",
    block_pattern: BlockPattern = None,
    score: Score = (),
    **options: Unpack[RunKeywords],
) -> Order:
    """Scale the update with depth: LiNeS.

    Shallow layers, which hold general knowledge, stay nearer to the base; deep layers stay nearer to the
    fine-tuned checkpoint, or to the mean of several. Blocks are detected in the names of the tensors;
    --dry-run shows them.

    Example: monosoup lines base.safetensors ft.safetensors -o out --alpha 0.3 --beta 0.7
    """
    alphas, betas = Sweep.parse("alpha", alpha), Sweep.parse("beta", beta)
    if not (alphas.values and betas.values):
        raise UsageError("--alpha and --beta are needed")
    ramps = [
        Ramp(float(first), float(more), Variant(folder, own))
        for (first, more), (folder, own, _) in zip(
            product(alphas.values, betas.values), combine(alphas, betas), strict=True
        )
    ]
    return Order(
        Lines(ramps, head, block_pattern),
        as_paths(finetuned),
        os.fspath(output),
        os.fspath(base),
        arguments={"alpha": alphas.argument, "beta": betas.argument},
        scores=commands_by_name(score),
    )


COMMAND, GROUP = lines, "Edit"


@dataclass(frozen=True)
class Scale:
    """How much a tensor's update is scaled, and why.

    Attributes:
        value: The factor.
        position: The block that the tensor belongs to; None outside blocks.
        is_head: Whether the tensor is a head, outside blocks.
    """

    value: float
    position: Position | None
    is_head: bool


def scales(
    names: Iterable[str], alpha: float, beta: float, head: Head = "last", pattern: str | None = None
) -> dict[str, Scale]:
    """Compute s of W = W0 + s·Δ for every name: α + β·i/(L−1) in block i of L.

    The only block of a stack gets α + β. Outside blocks, s is α.

    Args:
        names: The names of all tensors.
        alpha: s in the first block, and outside blocks.
        beta: How much larger s is in the last block.
        head: s for the tensors of a head: α + β ("last", for a head trained with the model), α ("alpha", the
            paper's code, whose models keep their head elsewhere) or 1 ("ft", as fine-tuned).
        pattern: A regular expression whose groups are the numbers of the blocks; None to find them.

    Raises:
        UsageError: `head` is unknown, a number is not finite, or the blocks cannot be found.

    >>> names = ["embed.weight", "h.0.mlp.weight", "h.1.mlp.weight", "h.2.mlp.weight", "lm_head.weight"]
    >>> [scale.value for scale in scales(names, 0.5, 0.5).values()]
    [0.5, 0.5, 0.75, 1.0, 1.0]
    """
    if head not in get_args(Head):
        raise UsageError("unknown --head", expected=", ".join(get_args(Head)), found=head)
    if not math.isfinite(alpha + beta):
        raise UsageError("--alpha and --beta must be finite", found=f"{alpha} and {beta}")
    names = list(names)
    positions = find_blocks(names, pattern)
    of_heads = {"last": alpha + beta, "alpha": alpha, "ft": 1.0}[head]

    def scale(name: str) -> Scale:
        position = positions.get(name)
        if position is None:
            return Scale(of_heads if is_head(name) else alpha, None, is_head(name))
        depth = 1.0 if position.length == 1 else position.block / (position.length - 1)
        return Scale(alpha + beta * depth, position, False)

    return {name: scale(name) for name in names}


@dataclass(frozen=True)
class Ramp:
    """How s rises with depth, and the checkpoint that it makes.

    Attributes:
        alpha: s in the first block, and outside blocks.
        beta: How much larger s is in the last block.
        variant: The checkpoint.
    """

    alpha: float
    beta: float
    variant: Variant = field(default_factory=Variant)


@dataclass(frozen=True)
class Lines(PlainMethod):
    """base + s · update, where s rises with the depth of the tensor.

    Attributes:
        ramps: A ramp for every checkpoint of the output.
        head: How a head outside blocks is scaled.
        block_pattern: Finds the blocks instead of the detection.
        scales_of: s of every tensor for every ramp, once the names are known.
    """

    ramps: Sequence[Ramp]
    head: Head = "last"
    block_pattern: str | None = None
    scales_of: Sequence[Mapping[str, Scale]] = ()

    verb = "scale"
    paper = PAPER
    measures = MEASURES

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the sweep."""
        return [ramp.variant for ramp in self.ramps]

    def for_names(self, names: Sequence[str]) -> Lines:
        """The method with the scale of every tensor."""
        scales_of = [
            scales(names, ramp.alpha, ramp.beta, self.head, self.block_pattern) for ramp in self.ramps
        ]
        return replace(self, scales_of=scales_of)

    @property
    def details(self) -> Mapping[str, Any]:
        """The lists of blocks, in the order of the checkpoint."""
        scales_of = self.scales_of[0] if self.scales_of else {}
        positions = [scale.position for scale in scales_of.values() if scale.position is not None]
        lengths = {position.stack: position.length for position in positions}
        return {"stacks": [{"name": stack, "length": length} for stack, length in lengths.items()]}

    def planned_measures(self, name: str) -> Mapping[str, Any]:
        """Where a tensor is in depth, and its scale if there is one."""
        planned = [_measures(scale_of[name]) for scale_of in self.scales_of]
        return planned[0] if len(planned) == 1 else {**planned[0], "scale": None}

    def edit(self, layer: Layer) -> Edit:
        """Scale the update of one tensor, for every ramp."""
        assert isinstance(layer, FlatLayer)
        scales_of = [scale_of[layer.name] for scale_of in self.scales_of]
        return interpolations(layer, [one.value for one in scales_of], [_measures(one) for one in scales_of])


def _measures(scale: Scale) -> dict[str, Any]:
    return {
        "stack": None if scale.position is None else scale.position.stack,
        "block": None if scale.position is None else scale.position.block,
        "scale": scale.value,
    }
