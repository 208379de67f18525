"""`monosoup edit`."""

from __future__ import annotations

from typing import Annotated

import typer

from monosoup_cli.cli import options as opt


@opt.writing
def edit(
    shared: opt.Shared,
    base: opt.BaseArg,
    finetuned: opt.FinetunedArg,
    output: opt.OutputOpt,
    energy: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Split where this share of the energy is reached (0 < R <= 1), not by entropy. Several,"
            " as 0.5,0.8, make a checkpoint each: OUT/energy-0.5, …",
        ),
    ] = None,
    rank: opt.RankOpt = None,
    rank_fraction: opt.RankFractionOpt = None,
    weighting: opt.WeightingOpt = "monosoup",
    wise: Annotated[
        str | None,
        typer.Option(
            metavar="ALPHA",
            help="Interpolate afterwards: base + ALPHA (edited - base), vectors included. Several, as"
            " 0:1:0.1, make a checkpoint each: OUT/wise-0.3, …",
        ),
    ] = None,
    min_update: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.0, help="Keep layers whose update, relative to the base, is smaller."
        ),
    ] = 0.0,
    stacked: opt.StackedOpt = None,
    as_adapter: Annotated[
        bool,
        typer.Option(
            "--as-adapter",
            help="Write the edited update as a LoRA adapter: of an adapter, with its modules and ranks, and"
            " without a BASE (-); of a whole checkpoint with --adapter-rank or --adapter-energy.",
        ),
    ] = False,
    adapter_rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            min=1,
            help="With --as-adapter: the rank that approximates a whole checkpoint's updates.",
        ),
    ] = None,
    adapter_energy: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="The same by the smallest ranks that hold this share of its energy (0 < E <= 1).",
        ),
    ] = None,
) -> None:
    """Edit a fine-tuned checkpoint, or the mean of several: MonoSoup.

    Without data and without hyperparameters: for every weight matrix the update
    (fine-tuned - base) is split by its spectrum, the two parts are weighed by coefficients read
    off that spectrum, and added back to the base.

    Example: monosoup edit base.safetensors ft.safetensors -o out
    """
    from monosoup_cli.api import prepare_edit

    with prepare_edit(
        base,
        finetuned,
        output,
        energy=energy,
        rank=rank,
        rank_fraction=rank_fraction,
        weighting=weighting,
        wise=wise,
        min_update=min_update,
        stacked=stacked or (),
        as_adapter=as_adapter,
        adapter_rank=adapter_rank,
        adapter_energy=adapter_energy,
        **shared.options,
    ) as job:
        shared.run(job)
