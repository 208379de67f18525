"""`monosoup stock`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def stock(
    shared: opt.Shared,
    base: opt.BaseArg,
    finetuned: opt.FinetunedArg,
    output: opt.OutputOpt,
    granularity: Annotated[
        Literal["tensor", "filter"],
        typer.Option(help="One ratio for each tensor, or for each output row of it."),
    ] = "tensor",
    clamp: Annotated[
        bool,
        typer.Option("--clamp/--no-clamp", help="Count a negative ratio as 0; the official code does not."),
    ] = True,
) -> None:
    """Model Stock: from the base towards the mean of several.

    How far is read off the angles between their updates, for each tensor: the more alike they
    are, the nearer to the mean. No data, no hyperparameter.

    Example: monosoup stock base.safetensors ft1.safetensors ft2.safetensors -o out
    """
    from monosoup_cli.api import prepare_stock

    with prepare_stock(
        base, finetuned, output, granularity=granularity, clamp=clamp, **shared.options
    ) as job:
        shared.run(job)
