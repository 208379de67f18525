"""`monosoup inspect-spectrum`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monosoup_cli.cli import options as opt


@opt.looking
def inspect_spectrum(
    looking: opt.Looking,
    base: opt.BaseArg,
    finetuned: opt.FinetunedArg,
    values: Annotated[bool, typer.Option("--values", help="All singular values, in json and csv.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave out tensors with such names; repeatable.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="R", help="Split where this share of the energy is reached (0 < R <= 1)."),
    ] = None,
    rank: opt.RankOpt = None,
    rank_fraction: opt.RankFractionOpt = None,
    weighting: opt.WeightingOpt = "monosoup",
    stacked: opt.StackedOpt = None,
    rename: opt.RenameOpt = None,
    on_mismatch: opt.MismatchOpt = "error",
    on_nonfinite: opt.NonfiniteOpt = "error",
    device: opt.DeviceOpt = "auto",
    workers: opt.WorkersOpt = None,
) -> None:
    """Show the spectra of a fine-tune, and what `edit` would make of them; writes no checkpoint.

    For every layer: where the spectrum is split, the coefficients, how far the edit is from plain
    interpolation; and below the table, in words, what to know before trusting it. Of several
    fine-tunes the mean is looked at, and how alike their updates are.

    Example: monosoup inspect-spectrum base.safetensors ft.safetensors
    """
    from monosoup_cli.api import prepare_inspect_spectrum
    from monosoup_cli.cli.running import import_torch

    def make() -> dict[str, Any]:
        with prepare_inspect_spectrum(
            base,
            finetuned,
            layer=looking.view.layer,
            exclude=exclude or (),
            values=values,
            energy=energy,
            rank=rank,
            rank_fraction=rank_fraction,
            weighting=weighting,
            stacked=stacked or (),
            rename=rename or (),
            on_mismatch=on_mismatch,
            on_nonfinite=on_nonfinite,
            device=device,
            workers=workers,
        ) as inspected:
            with looking.console.downloading(inspected.inspection.downloads) as advance:
                inspected.inspection.fetch(advance)
            import_torch()
            for notice in inspected.inspection.notices:
                looking.console.note(f"note: {notice}")
            with looking.console.progress(inspected.inspection.plan.edited) as progress:
                return inspected.run(progress)

    looking.show(make)
