"""`edit`: MonoSoup on the layers of a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.command import Paper, StrPath, card, paths, running
from monosoup_cli.api.sweep import Numbers, Sweep, combine
from monosoup_cli.errors import UsageError
from monosoup_cli.pipeline.job import Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions, as_list
from monosoup_cli.pipeline.run import Edit, Method, Variant

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.methods.monosoup import LayerSpectrum, MonoSoup, Weighting
    from monosoup_cli.pipeline.blocks import MatrixLayer

__all__ = ["MONOSOUP", "edit", "prepare_edit"]

MONOSOUP = Paper(
    "The fine-tuned weights, edited by MonoSoup: the update of every weight matrix is split by its"
    " spectrum, the two parts are weighed by coefficients read off that spectrum, and added back to"
    " the base.",
    """
@misc{abdollahpoorrostam2026monosoup,
  title = {Model soups need only one ingredient},
  author = {Abdollahpoorrostam, Alireza and Dimitriadis, Nikolaos and Hazimeh, Adam and Frossard, Pascal},
  year = {2026},
  eprint = {2602.09689},
  archivePrefix = {arXiv}
}
""",
)

AVERAGED = ("k_ratio", "rho", "cos_alpha", "lambda_high", "lambda_low", "equivalent_alpha",
            "anisotropy", "relative_update")  # fmt: skip
"""What the summary gives the mean and the range of."""


def prepare_edit(
    base: StrPath,
    finetuned: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    energy: Numbers | None = None,
    rank: int | None = None,
    rank_fraction: float | None = None,
    weighting: Weighting = "monosoup",
    wise: Numbers | None = None,
    min_update: float = 0.0,
    stacked: Sequence[str] = (),
    **options: Unpack[RunKeywords],
) -> Job:
    """MonoSoup: edit a fine-tuned checkpoint, or the mean of several, and write the result.

    The command `monosoup edit`, whose options have the same names and meaning (docs/cli.md).
    `base`, `finetuned`: files, folders or ids on the Hub. `output`: a folder, or a path that ends
    in `.safetensors`; it appears when it is complete. Several values of `energy` or `wise` make a
    checkpoint each, in folders of `output`. `progress` is called from worker threads.

    Returns the report (docs/report.schema.json) as a dict; the same is written as JSON.
    Raises `monosoup_cli.errors.MonosoupError`.
    """
    from monosoup_cli.methods.monosoup import LayerSpectrum, MonoSoup

    if not 0.0 <= min_update < math.inf:
        raise UsageError("min_update is out of range", expected="at least 0", found=min_update)
    energies, wises = Sweep.parse("energy", energy), Sweep.parse("wise", wise)
    wises.check(0, 1)
    monosoup = MonoSoup(None, rank, rank_fraction, weighting)
    splits = [replace(monosoup, energy=float(value)) for value in energies.values] or [monosoup]
    arguments: dict[str, Any] = {
        "base": os.fspath(base), "finetuned": paths(finetuned), "output": os.fspath(output),
        **asdict(monosoup), "energy": energies.given, "wise": wises.given, "min_update": min_update,
        "stacked": as_list(stacked),
    }  # fmt: skip
    run_options = RunOptions.given(**options)
    recipe = Recipe(
        command="edit",
        verb="edit",
        arguments=arguments,
        method=_method(splits, [float(value) for value in wises.values] or [1.0], min_update),
        card=card(prepare_edit, arguments, run_options, MONOSOUP),
        view="matrix",
        measured=[*(field.name for field in fields(LayerSpectrum)), "relative_update"],
        averaged=AVERAGED,
        stacked=arguments["stacked"],
        variants=[
            Variant(folder, own, None if wise in (None, 1.0) else wise)
            for folder, own, (_, wise) in combine(energies, wises)
        ],
    )
    return prepare(recipe, run_options)


edit = running(prepare_edit)


def _method(splits: Sequence[MonoSoup], wises: Sequence[float], min_update: float) -> Method:
    from monosoup_cli.methods.monosoup import edit_update

    def method(layer: MatrixLayer) -> Edit | None:
        edits = edit_update(layer.updates, layer.side, splits)
        if edits is None:
            return None
        base_norm = layer.base_norm
        if base_norm and edits[0][0].update_norm / base_norm < min_update:
            return None
        measures = [
            {**asdict(spectrum), "relative_update": relative_update(spectrum, base_norm)}
            for spectrum, _ in edits
            for _ in wises
        ]
        applies = [apply for _, apply in edits]
        return Edit(
            measures,
            (
                (start, stop, _results(base, update, applies, wises))
                for start, stop, base, update in layer.pairs()
            ),
        )

    return method


def relative_update(spectrum: LayerSpectrum, base_norm: float) -> float | None:
    """‖Δ‖/‖W0‖, None where it does not exist."""
    relative = spectrum.update_norm / base_norm if base_norm else math.inf
    return relative if relative < math.inf else None


def _results(
    base: torch.Tensor | None,
    update: torch.Tensor,
    applies: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    wises: Sequence[float],
) -> Iterator[torch.Tensor]:
    """W0 + wise · apply(Δ), for every split and every `wise`."""
    assert base is not None
    for apply in applies:
        edited = apply(update if apply is applies[-1] else update.clone())
        for wise in wises:
            is_last = apply is applies[-1] and wise is wises[-1]
            yield (base if is_last else base.clone()).add_(edited, alpha=wise)
