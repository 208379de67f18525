"""`monosoup soup`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def soup(
    shared: opt.Shared,
    finetuned: opt.FinetunedArg,
    output: opt.OutputOpt,
    base: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="Of LoRA adapters, which need one: what they are merged into."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W1,W2,…", help="A weight for each checkpoint; scaled to sum 1.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Add checkpoints, best first, while the score does not fall.")
    ] = False,
    score_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Scores a checkpoint, whose path takes the place of {}: the last line printed is the score,"
            " higher is better.",
        ),
    ] = None,
    scores: opt.ScoresOpt = None,
    accept: Annotated[
        Literal["ge", "gt"],
        typer.Option(help="A candidate joins if the score is as good (ge), or better (gt)."),
    ] = "ge",
) -> None:
    """Average two or more checkpoints: model soups.

    Uniform, weighted, or greedy: the greedy soup scores every trial with a command of yours, and
    --resume goes on without scoring anything twice.

    Example: monosoup soup ft1.safetensors ft2.safetensors ft3.safetensors -o out
    """
    from monosoup_cli.api import prepare_soup
    from monosoup_cli.errors import UsageError

    try:
        numbers = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise UsageError("weights must be numbers with commas between", found=repr(weights)) from None
    with (
        shared.console.trials() as watch,
        prepare_soup(
            finetuned,
            output,
            base=base,
            weights=numbers,
            greedy=greedy,
            score_command=score_command,
            scores=scores,
            accept=accept,
            watch=watch,
            **shared.options,
        ) as job,
    ):
        shared.run(job)
