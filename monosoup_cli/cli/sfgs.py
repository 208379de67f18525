"""`monosoup sfgs`."""

from __future__ import annotations

from typing import Annotated

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def sfgs(
    shared: opt.Shared,
    base: opt.BaseArg,
    finetuned: opt.FinetunedArg,
    output: opt.OutputOpt,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="D", help="A candidate joins if its mean similarity to the members is at least D."
        ),
    ],
    scores: opt.ScoresOpt = None,
    include_vectors: Annotated[
        bool, typer.Option("--include-vectors", help="Compare tensors of one dimension, too.")
    ] = False,
) -> None:
    """Average the checkpoints whose updates are similar.

    The similarity-filtered greedy soup. Similarity is the cosine between two updates, averaged
    over layers. --dry-run reads the checkpoints, and prints the similarities and what every
    threshold would choose.

    Example: monosoup sfgs base.safetensors ft1.safetensors ft2.safetensors -o out --threshold 0.2
    """
    from monosoup_cli.api import prepare_sfgs

    with prepare_sfgs(
        base,
        finetuned,
        output,
        threshold=threshold,
        scores=scores,
        include_vectors=include_vectors,
        **shared.options,
    ) as job:
        shared.run(job)
