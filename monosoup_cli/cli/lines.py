"""`monosoup lines`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def lines(
    shared: opt.Shared,
    base: opt.BaseArg,
    finetuned: opt.FinetunedOneArg,
    output: opt.OutputOpt,
    alpha: Annotated[
        float, typer.Option(metavar="A", help="The scale of the first block, and outside blocks.")
    ],
    beta: Annotated[float, typer.Option(metavar="B", help="What is added to it by the last block.")],
    head: Annotated[
        Literal["last", "alpha", "ft"],
        typer.Option(
            help="A head: scaled as the last block, by A (the official rule), or left as fine-tuned."
        ),
    ] = "last",
    block_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Where a block's number stands in a name, as layer_(\\d+); else it is found.",
        ),
    ] = None,
) -> None:
    """Scale the update up with depth: LiNeS.

    Shallow layers, which hold what is general, keep more of the base; deep ones more of the
    fine-tuned checkpoint. --dry-run shows the blocks that were found in the names.

    Example: monosoup lines base.safetensors ft.safetensors -o out --alpha 0.3 --beta 0.7
    """
    from monosoup_cli.api import prepare_lines

    with prepare_lines(
        base,
        finetuned,
        output,
        alpha=alpha,
        beta=beta,
        head=head,
        block_pattern=block_pattern,
        **shared.options,
    ) as job:
        shared.run(job)
