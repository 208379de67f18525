"""`monosoup edit`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from monosoup_cli.cli import options as opt


class WeightingName(str, Enum):
    monosoup = "monosoup"
    spectral = "spectral"
    alignment = "alignment"
    uniform = "uniform"
    high = "high"
    low = "low"


def edit(
    base: opt.BaseArg,
    finetuned: opt.FinetunedArg,
    output: opt.OutputOpt,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Split where this share of the energy is reached (0 < R <= 1), not by entropy.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Split after N singular values.")
    ] = None,
    rank_fraction: Annotated[
        float | None,
        typer.Option(metavar="F", help="Split after this share of the singular values (0 < F <= 1)."),
    ] = None,
    weighting: Annotated[
        WeightingName,
        typer.Option(help="How the two parts are weighed; the others are the paper's ablations."),
    ] = WeightingName.monosoup,
    wise: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            min=0.0,
            max=1.0,
            help="Interpolate afterwards: base + ALPHA (edited - base), vectors included.",
        ),
    ] = None,
    min_update: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.0, help="Keep layers whose update, relative to the base, is smaller."
        ),
    ] = 0.0,
    stacked: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Tensors that stack one matrix per index of dim 0; 3-d tensors named *experts* are known.",
        ),
    ] = None,
    include: opt.IncludeOpt = None,
    exclude: opt.ExcludeOpt = None,
    on_mismatch: opt.OnMismatchOpt = opt.Strictness.error,
    on_nonfinite: opt.OnNonfiniteOpt = opt.Strictness.error,
    dtype: opt.DtypeOpt = opt.Dtype.keep,
    max_shard_size: opt.MaxShardSizeOpt = None,
    device: opt.DeviceOpt = "auto",
    workers: opt.WorkersOpt = None,
    report: opt.ReportOpt = None,
    overwrite: opt.OverwriteOpt = False,
    resume: opt.ResumeOpt = False,
    dry_run: opt.DryRunOpt = False,
    format: opt.FormatOpt = opt.Format.table,
    quiet: opt.QuietOpt = False,
    no_progress: opt.NoProgressOpt = False,
) -> None:
    """Edit a fine-tuned checkpoint: MonoSoup.

    Without data and without hyperparameters: for every weight matrix the update
    (fine-tuned - base) is split by its spectrum, the two parts are weighed by coefficients read
    off that spectrum, and added back to the base.

    Example: monosoup edit base.safetensors ft.safetensors -o out
    """
    from monosoup_cli.api import prepare_edit
    from monosoup_cli.cli.console import Console
    from monosoup_cli.cli.running import show_and_run

    console = Console(quiet=quiet, live=not no_progress)
    with prepare_edit(
        base, finetuned, output,
        energy=energy, rank=rank, rank_fraction=rank_fraction, weighting=weighting.value,
        wise=wise, min_update=min_update, stacked=stacked or (),
        include=include or (), exclude=exclude or (), on_mismatch=on_mismatch.value,
        on_nonfinite=on_nonfinite.value, dtype=dtype.value, max_shard_size=max_shard_size,
        device=device, workers=workers, report=report, overwrite=overwrite, resume=resume,
    ) as job:  # fmt: skip
        show_and_run(job, console, is_dry=dry_run, as_json=format is opt.Format.json)
