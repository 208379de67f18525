"""`monosoup wise`."""

from __future__ import annotations

from typing import Annotated

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def wise(
    shared: opt.Shared,
    base: opt.BaseArg,
    finetuned: opt.FinetunedOneArg,
    output: opt.OutputOpt,
    alpha: Annotated[
        str,
        typer.Option(
            metavar="A",
            help="How far from the base (0) to the fine-tuned checkpoint (1). Several, as 0.3,0.5 or 0:1:0.1,"
            " make a checkpoint each, from one reading: OUT/alpha-0.3, …",
        ),
    ],
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow values below 0 and above 1.")
    ] = False,
) -> None:
    """Interpolate between base and fine-tuned checkpoint: WiSE-FT.

    Every floating tensor becomes (1 - A) base + A fine-tuned, vectors included.

    Example: monosoup wise base.safetensors ft.safetensors -o out --alpha 0.5
    """
    from monosoup_cli.api import prepare_wise

    with prepare_wise(base, finetuned, output, alpha=alpha, extrapolate=extrapolate, **shared.options) as job:
        shared.run(job)
