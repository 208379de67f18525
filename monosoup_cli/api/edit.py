"""`edit`: MonoSoup on the layers of a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from monosoup_cli.api.command import Request, command
from monosoup_cli.api.split import ENERGY_HELP, RankFractionSplit, RankSplit, SplitOption, WeightingOption
from monosoup_cli.errors import UsageError, some
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.monosoup import FAR, MonoSoup, largest_alpha
from monosoup_cli.methods.score_option import Score, commands_by_name
from monosoup_cli.methods.spectral_edit import RanksByEnergy, SpectralEdit
from monosoup_cli.methods.sweep import Numbers, Sweep, combine
from monosoup_cli.options import (
    NO_BASE,
    Base,
    Finetuned,
    Option,
    Output,
    SplitFused,
    Stacked,
    as_list,
    as_paths,
)
from monosoup_cli.tensors.method import Order, Variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.outputs.adapter_kind import AdapterKind

__all__ = ["edit"]


@command("Edit")
def edit(
    base: Base,
    finetuned: Finetuned,
    output: Output,
    *,
    split: SplitOption = "entropy",
    energy: Annotated[
        Numbers | None,
        Option(
            f"{ENERGY_HELP} A list such as 0.5,0.8 makes one checkpoint per value: OUT/energy-0.5, …",
            metavar="R",
            shell=str,
            of_layer="split",
        ),
    ] = None,
    rank: RankSplit = None,
    rank_fraction: RankFractionSplit = None,
    weighting: WeightingOption = "monosoup",
    wise: Annotated[
        Numbers | None,
        Option(
            "Interpolate afterwards: base + ALPHA (edited - base), vectors included. A list such as 0:1:0.1"
            " makes one checkpoint per value: OUT/wise-0.3, …",
            metavar="ALPHA",
            shell=str,
            of_layer="wise",
        ),
    ] = None,
    min_update: Annotated[
        float,
        Option(
            "Keep layers as fine-tuned if their update is smaller than X, relative to the base.",
            metavar="X",
            minimum=0.0,
            of_layer="min_update",
        ),
    ] = 0.0,
    stacked: Stacked = (),
    split_fused: SplitFused = False,
    as_adapter: Annotated[
        bool,
        Option(
            "Write the edited update as a LoRA adapter. If FINETUNED is an adapter, it keeps its modules and"
            " ranks, and BASE may be -. A whole checkpoint needs --adapter-rank or --adapter-energy."
        ),
    ] = False,
    adapter_rank: Annotated[
        int | None,
        Option(
            "With --as-adapter: approximate a whole checkpoint's updates by factors of rank R.",
            metavar="R",
            shell=int,
            minimum=1,
        ),
    ] = None,
    adapter_energy: Annotated[
        float | None,
        Option(
            "With --as-adapter: give each edited update of a whole checkpoint the smallest rank that holds"
            " the share E of its energy (0 < E <= 1).",
            metavar="E",
            shell=float,
        ),
    ] = None,
    score: Score = (),
    **options: Unpack[RunKeywords],
) -> Request:
    """Edit a fine-tune, or the mean of several.

    The method is MonoSoup, which needs no data and no hyperparameters. For every weight matrix, it splits the
    update (fine-tuned - base) by its spectrum, weights the two parts by coefficients read from that spectrum,
    and adds them back to the base.

    Example: monosoup edit base.safetensors ft.safetensors -o out
    """
    if not 0.0 <= min_update < math.inf:
        raise UsageError("--min-update is out of range", expected="at least 0", found=min_update)
    energies, wises = Sweep.parse("energy", energy), Sweep.parse("wise", wise)
    wises.check(0, 1)
    rule = MonoSoup(split=split, rank=rank, rank_fraction=rank_fraction, weighting=weighting)
    splits = [
        MonoSoup(split, float(value), rank=rank, rank_fraction=rank_fraction, weighting=weighting)
        for value in energies.values
    ]
    has_base = os.fspath(base) != NO_BASE
    if as_adapter and split_fused:
        raise UsageError(
            "--split-fused is for whole checkpoints: an adapter's factors are those of a whole tensor"
        )
    if as_adapter:
        _check_adapter(adapter_rank, adapter_energy, wises, min_update, options)
        if options.get("layers") and adapter_energy is not None:
            raise UsageError(
                "--adapter-energy finds the ranks of all layers by one split",
                hint="give one rank for all layers, or leave out their settings",
            )
    elif adapter_rank is not None or adapter_energy is not None:
        raise UsageError("--adapter-rank and --adapter-energy need --as-adapter")
    elif not has_base:
        raise UsageError("- means that there is no base", hint="give the base, or add --as-adapter")
    variants = [
        Variant(folder, own, None if step in (None, 1.0) else step)
        for folder, own, (_, step) in combine(energies, wises)
    ]
    steps = tuple(float(value) for value in wises.values) or (1.0,)
    stacks = as_list(stacked)
    order = Order(
        SpectralEdit(splits or [rule], steps, variants, min_update),
        as_paths(finetuned),
        os.fspath(output),
        os.fspath(base) if has_base else None,
        stacked=stacks,
        split_fused=split_fused,
        arguments={"energy": energies.argument, "wise": wises.argument, "stacked": stacks},
        scores=commands_by_name(score),
    )
    notes = _notes_on_energy(splits, has_base=has_base)
    if as_adapter:
        kind = _adapter_kind(splits or [rule], adapter_rank, adapter_energy)
        return Request(order, kind, notes=notes)
    return Request(order, notes=notes)


def _notes_on_energy(splits: Sequence[MonoSoup], *, has_base: bool) -> list[str]:
    """Say what --energy keeps of the update, where that is far less than its value seems to say."""
    kept = {one.energy: largest_alpha(one.energy, one.weighting) for one in splits if one.energy is not None}
    far = [f"{alpha:.2g} at {energy:g}" for energy, alpha in kept.items() if alpha < FAR]
    if not far:
        return []
    gentle = ", and wise --alpha sets it" if has_base else ""
    return [
        "--energy says where the spectrum is split, not how much of the update is kept: of an update with"
        f" many directions, that is at most about {some(far, 3)} (the equivalent α); inspect-spectrum shows"
        f" it{gentle}"
    ]


def _check_adapter(
    rank: int | None, energy: float | None, wises: Sweep, min_update: float, options: RunKeywords
) -> None:
    """Raise UsageError for options that an output as an adapter does not go with."""
    if options.get("max_shard_size") is not None:
        raise UsageError("--max-shard-size is for whole checkpoints, not for an adapter")
    if rank is None and energy is None:
        if any(step != 1 for step in wises.values) and (min_update or options.get("on_nonfinite") == "keep"):
            raise UsageError(
                "an adapter cannot interpolate what it keeps as it is: --wise with --min-update or"
                " --on-nonfinite keep",
                hint="write a whole checkpoint, without --as-adapter",
            )
    elif min_update or options.get("on_nonfinite") == "keep":
        raise UsageError(
            "an extracted adapter cannot leave tensors as fine-tuned: --min-update, --on-nonfinite keep",
            hint="write a whole checkpoint, without --as-adapter",
        )
    if rank is not None and energy is not None:
        raise UsageError("--adapter-rank and --adapter-energy exclude each other")
    if rank is not None and rank < 1:
        raise UsageError("--adapter-rank is out of range", expected="at least 1", found=rank)
    if energy is not None and not 0.0 < energy <= 1.0:
        raise UsageError("--adapter-energy is out of range", expected="0 < value <= 1", found=energy)


def _adapter_kind(splits: Sequence[MonoSoup], rank: int | None, energy: float | None) -> AdapterKind:
    from monosoup_cli.outputs.adapter_kind import AdapterKind

    return AdapterKind(rank if energy is None else RanksByEnergy(splits, energy))
