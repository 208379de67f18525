"""`inspect_spectrum`: the spectra of the updates, and what the methods would do with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.command import publish
from monosoup_cli.api.progress import Watch, watched
from monosoup_cli.api.split import EnergySplit, RankFractionSplit, RankSplit, SplitOption, WeightingOption
from monosoup_cli.keywords import ComputeKeywords, SelectionKeywords
from monosoup_cli.methods.monosoup import MonoSoup
from monosoup_cli.methods.spectral_edit import SpectralEdit
from monosoup_cli.options import (
    NO_BASE,
    Base,
    ComputeOptions,
    DeclaredOption,
    Finetuned,
    Option,
    SelectionOptions,
    SplitFused,
    Stacked,
    as_list,
    as_paths,
    declared_in,
    from_keywords,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.api.spectra import Inspected

__all__ = ["inspect_spectrum"]


class InspectKeywords(SelectionKeywords, ComputeKeywords, total=False):
    """The shared options that an inspection has; `include` is called `layer`."""


def _inspect_spectrum(
    base: Base,
    finetuned: Finetuned,
    *,
    layer: Annotated[
        str | Sequence[str],
        Option("Inspect only layers whose names match. Repeatable.", metavar="GLOB", shell=list[str]),
    ] = (),
    values: Annotated[bool, Option("Report all singular values, in json and csv.")] = False,
    split: SplitOption = "entropy",
    energy: EnergySplit = None,
    rank: RankSplit = None,
    rank_fraction: RankFractionSplit = None,
    weighting: WeightingOption = "monosoup",
    stacked: Stacked = (),
    split_fused: SplitFused = False,
    **options: Unpack[InspectKeywords],
) -> Inspected:
    """Show the spectra of a fine-tune's updates.

    The command also shows what `edit` would do with them, and writes no checkpoint. For every layer it shows
    where the spectrum is split, the coefficients, and how far the edit is from plain interpolation. Sentences
    below the table say what to check before you trust the edit. With several fine-tunes it inspects their
    mean, and how similar their updates are. An adapter needs no BASE (-).

    Example: monosoup inspect-spectrum base.safetensors ft.safetensors
    """
    from monosoup_cli.api.spectra import Inspected
    from monosoup_cli.pipeline.inspection import Inspection

    rule = MonoSoup(split, energy, rank, rank_fraction, weighting)
    selecting = from_keywords(SelectionOptions, {**options, "include": layer})
    arguments: dict[str, Any] = {
        "base": os.fspath(base),
        "finetuned": as_paths(finetuned),
        "layer": selecting.include,
        "exclude": selecting.exclude,
        "values": values,
        **asdict(rule),
        "stacked": as_list(stacked),
        "split_fused": split_fused,
        "rename": selecting.rename,
        "state_dict": selecting.state_dict,
        "parts": selecting.parts,
        "on_mismatch": selecting.on_mismatch,
        "on_nonfinite": selecting.on_nonfinite,
        "partial": selecting.partial,
    }
    inspection = Inspection.open(
        None if arguments["base"] == NO_BASE else arguments["base"],
        arguments["finetuned"],
        selecting,
        from_keywords(ComputeOptions, options),
        SpectralEdit([rule]),
        arguments["stacked"],
        split_fused,
    )
    return Inspected(inspection, rule, arguments)


def _run(inspected: Inspected, watch: Watch) -> dict[str, Any]:
    with watched(watch, inspected.inspection.plan.edited, "inspecting") as progress:
        return inspected.run(progress)


def _declared() -> Mapping[str, DeclaredOption]:
    shared = {**declared_in(SelectionOptions), **declared_in(ComputeOptions)}
    del shared["include"]
    shared["exclude"] = shared["exclude"].saying("Leave out layers whose names match. Repeatable.")
    return {**declared_in(_inspect_spectrum), **shared}


_inspect_spectrum.__name__ = "inspect_spectrum"
inspect_spectrum = publish(_inspect_spectrum, _declared(), _inspect_spectrum, _run, returns="Inspected")
