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
from monosoup_cli.pipeline.job import AsAdapter, Job, Recipe, prepare
from monosoup_cli.pipeline.options import RunKeywords, RunOptions, as_list
from monosoup_cli.pipeline.run import Method
from monosoup_cli.tensors.method import Edit, Variant

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from monosoup_cli.methods.monosoup import LayerSpectrum, MonoSoup, Weighting
    from monosoup_cli.tensors.matrix import MatrixLayer

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

AVERAGED = (
    "k_ratio",
    "rho",
    "cos_alpha",
    "lambda_high",
    "lambda_low",
    "equivalent_alpha",
    "anisotropy",
    "relative_update",
)
"""What the summary gives the mean and the range of."""


ALONE = "-"
"""In the place of the base, where there is none."""


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
    as_adapter: bool = False,
    adapter_rank: int | None = None,
    adapter_energy: float | None = None,
    **options: Unpack[RunKeywords],
) -> Job:
    """MonoSoup: edit a fine-tuned checkpoint, or the mean of several, and write the result.

    The command `monosoup edit`, whose options have the same names and meaning (docs/cli.md).
    `base`, `finetuned`: files, folders or ids on the Hub. `output`: a folder, or a path that ends
    in `.safetensors`; it appears when it is complete. Several values of `energy` or `wise` make a
    checkpoint each, in folders of `output`. `as_adapter`: write the edited update as a LoRA adapter: that
    of an adapter, which needs no base ("-"), with its own ranks; that of a whole checkpoint with
    `adapter_rank`, or with the ranks that hold `adapter_energy` of it. `progress` is called from worker
    threads.

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
        "base": os.fspath(base),
        "finetuned": paths(finetuned),
        "output": os.fspath(output),
        **asdict(monosoup),
        "energy": energies.given,
        "wise": wises.given,
        "min_update": min_update,
        "stacked": as_list(stacked),
        "as_adapter": as_adapter,
        "adapter_rank": adapter_rank,
        "adapter_energy": adapter_energy,
    }
    run_options = RunOptions.given(**options)
    if as_adapter:
        if run_options.max_shard_size is not None:
            raise UsageError("--max-shard-size is for whole checkpoints, not for an adapter")
        if adapter_rank is None and adapter_energy is None:
            if wises.values:
                raise UsageError("--wise goes towards a base, which an adapter's kept tensors do not have")
        elif min_update or run_options.on_nonfinite == "keep":
            raise UsageError("what --min-update or --on-nonfinite keeps would be lost with --adapter-rank")
        if adapter_rank is not None and adapter_energy is not None:
            raise UsageError("adapter_rank and adapter_energy exclude each other")
        if adapter_rank is not None and adapter_rank < 1:
            raise UsageError("adapter_rank is out of range", expected="at least 1", found=adapter_rank)
        if adapter_energy is not None and not 0.0 < adapter_energy <= 1.0:
            raise UsageError(
                "adapter_energy is out of range", expected="0 < value <= 1", found=adapter_energy
            )
    elif adapter_rank is not None or adapter_energy is not None:
        raise UsageError("--adapter-rank and --adapter-energy are for --as-adapter")
    elif arguments["base"] == ALONE:
        raise UsageError("- stands for no base: add --as-adapter, or name the base")
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
        as_adapter=_as_adapter(splits, adapter_rank, adapter_energy) if as_adapter else None,
    )
    return prepare(recipe, run_options)


edit = running(prepare_edit)


def _as_adapter(splits: Sequence[MonoSoup], rank: int | None, energy: float | None) -> AsAdapter:
    from monosoup_cli.methods.monosoup import rank_for

    def rank_of(layer: MatrixLayer) -> int:
        return rank_for(layer.updates, layer.cut.side, splits, energy or 1.0)

    return AsAdapter(rank, None if energy is None else rank_of)


def _method(splits: Sequence[MonoSoup], wises: Sequence[float], min_update: float) -> Method:
    from monosoup_cli.methods.monosoup import edit_product, edit_update, truncate_update

    def measures(spectra: Sequence[LayerSpectrum], base_norm: float) -> list[dict[str, Any]] | None:
        """For every split and every `wise`; None where the update is smaller than wanted."""
        if base_norm and spectra[0].update_norm / base_norm < min_update:
            return None
        return [
            {**asdict(spectrum), "relative_update": relative_update(spectrum, base_norm)}
            for spectrum in spectra
            for _ in wises
        ]

    def method(layer: MatrixLayer) -> Edit | None:
        if layer.factors is not None:
            return of_low_rank(layer, *layer.factors)
        if layer.wanted.rank is not None:
            return approximated(layer, layer.wanted.rank)
        edits = edit_update(layer.updates, layer.cut.side, splits)
        measured = measures([spectrum for spectrum, _ in edits], layer.base_norm) if edits else None
        if not edits or measured is None:
            return None
        applies = [apply for _, apply in edits]
        blocks = (
            (start, stop, _results(base, update, applies, wises))
            for start, stop, base, update in layer.pairs()
        )
        return Edit(measured, blocks)

    def of_low_rank(layer: MatrixLayer, left: torch.Tensor, right: torch.Tensor) -> Edit | None:
        layer.measure_base()
        edits = edit_product(left, right, splits)
        measured = measures([spectrum for spectrum, _ in edits], layer.base_norm) if edits else None
        if not edits or measured is None:
            return None
        factors = [each for _, each in edits]
        if layer.wanted.factors:
            return Edit(
                measured, iter(()), [(left * wise, right) for left, right in factors for wise in wises]
            )
        return Edit(
            measured,
            (
                (start, stop, _sums(base, [(left[start:stop], right) for left, right in factors], wises))
                for start, stop, base in layer.bases()
            ),
        )

    def approximated(layer: MatrixLayer, rank: int) -> Edit | None:
        edits = truncate_update(layer.updates, layer.cut.side, splits, rank)
        measured = measures([each.layer for each in edits], layer.base_norm) if edits else None
        if not edits or measured is None:
            return None
        errors = [each.error for each in edits for _ in wises]
        return Edit(
            [{**each, "adapter_error": error} for each, error in zip(measured, errors, strict=True)],
            iter(()),
            [(each.left * wise, each.right) for each in edits for wise in wises],
        )

    return method


def _sums(
    base: torch.Tensor, factors: Sequence[tuple[torch.Tensor, torch.Tensor]], wises: Sequence[float]
) -> Iterator[torch.Tensor]:
    """W0 + wise · left @ right, for the factors of every split and every `wise`."""
    for left, right in factors:
        for wise in wises:
            yield base.addmm(left, right, alpha=wise)


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
