"""LiNeS: scale the update of a layer linearly with its depth, told from the names of the tensors.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard, "LiNeS: Post-training layer scaling
prevents forgetting and enhances model merging", ICLR 2025 (arXiv 2410.17146). The paper takes the
blocks as given; how they are found in the names is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from monosoup_cli.errors import UsageError
from monosoup_cli.names import Position, find_blocks, is_head

__all__ = ["Head", "Scale", "scales"]

Head = Literal["last", "alpha", "ft"]


@dataclass(frozen=True)
class Scale:
    """The factor of a tensor's update, and why: its position, or None and whether it is a head's."""

    value: float
    position: Position | None
    is_head: bool


def scales(
    names: Iterable[str], alpha: float, beta: float, head: Head = "last", pattern: str | None = None
) -> dict[str, Scale]:
    """s of W = W0 + s·Δ for every name: α + β·i/(L−1) in block i of L.

    The only block of a stack gets α + β. Outside blocks s is α, and for a head's tensors α + β
    ("last": a head trained with the model), α ("alpha": the paper's code, whose models keep their
    head elsewhere) or 1 ("ft": as fine-tuned). Raises what `find_blocks` raises, and UsageError.

    >>> names = ["embed.weight", "h.0.mlp.weight", "h.1.mlp.weight", "h.2.mlp.weight", "lm_head.weight"]
    >>> [scale.value for scale in scales(names, 0.5, 0.5).values()]
    [0.5, 0.5, 0.75, 1.0, 1.0]
    """
    if head not in get_args(Head):
        raise UsageError("unknown treatment of the head", expected=", ".join(get_args(Head)), found=head)
    if not math.isfinite(alpha + beta):
        raise UsageError("alpha and beta must be finite", found=f"{alpha} and {beta}")
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
