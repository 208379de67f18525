"""`lines`: LiNeS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.command import Paper, StrPath, card, running
from monosoup_cli.api.wise import interpolations
from monosoup_cli.pipeline.job import Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.methods.lines import Head, Scale

__all__ = ["lines", "prepare_lines"]

LINES = Paper(
    "The fine-tuned weights, their update scaled down the more, the shallower the layer: LiNeS.",
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


def prepare_lines(
    base: StrPath,
    finetuned: StrPath,
    output: StrPath,
    *,
    alpha: float,
    beta: float,
    head: Head = "last",
    block_pattern: str | None = None,
    **options: Unpack[RunKeywords],
) -> Job:
    """LiNeS: base + s · update, where s rises from `alpha` in the first block to `alpha` + `beta` in
    the last, and is `alpha` outside blocks.

    The command `monosoup lines` (docs/cli.md). Blocks are found in the names of the tensors, or by
    `block_pattern`, a regular expression whose groups are the numbers. `head`: what outside blocks
    is called a head is scaled as the last block ("last"), by `alpha`, or left as fine-tuned
    ("ft"). Returns the report; raises `monosoup_cli.errors.MonosoupError`.
    """
    from monosoup_cli.methods.lines import scales

    arguments: dict[str, Any] = {
        "base": os.fspath(base),
        "finetuned": [os.fspath(finetuned)],
        "output": os.fspath(output),
        "alpha": alpha,
        "beta": beta,
        "head": head,
        "block_pattern": block_pattern,
    }
    run_options = RunOptions.given(**options)
    scale_of: dict[str, Scale] = {}

    def of_names(names: Sequence[str]) -> dict[str, Any]:
        scale_of.update(scales(names, alpha, beta, head, block_pattern))
        return {
            "details": {"stacks": _stacks(list(scale_of.values()))},
            "foretold": {name: _measures(scale) for name, scale in scale_of.items()},
        }

    recipe = Recipe(
        command="lines",
        verb="scale",
        arguments=arguments,
        method=lambda layer: interpolations(
            layer, [scale_of[layer.name].value], [_measures(scale_of[layer.name])]
        ),
        card=card(prepare_lines, arguments, run_options, LINES),
        measured=["stack", "block", "scale"],
        averaged=["scale"],
        of_names=of_names,
    )
    return prepare(recipe, run_options)


lines = running(prepare_lines)


def _measures(scale: Scale) -> dict[str, Any]:
    position = scale.position
    return {
        "stack": None if position is None else position.stack,
        "block": None if position is None else position.block,
        "scale": scale.value,
    }


def _stacks(found: Sequence[Scale]) -> list[dict[str, Any]]:
    """The lists of blocks, in the order of the checkpoint."""
    lengths = {each.position.stack: each.position.length for each in found if each.position is not None}
    return [{"name": stack, "length": length} for stack, length in lengths.items()]
