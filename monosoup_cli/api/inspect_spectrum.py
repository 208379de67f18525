"""`inspect_spectrum`: the spectra of the updates, and what the methods would make of them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.command import document
from monosoup_cli.api.edit import NO_BASE
from monosoup_cli.api.sfgs import choices
from monosoup_cli.api.split import EnergySplit, RankFractionSplit, RankSplit, Weigh
from monosoup_cli.formats.dtypes import finfo
from monosoup_cli.methods.model_stock import stock_ratio
from monosoup_cli.methods.monosoup import MEASURES, MonoSoup, inspect_product, inspect_update, relative_update
from monosoup_cli.methods.similarity import cosines, gram_matrix, similarity
from monosoup_cli.methods.spectral_edit import SpectralEdit
from monosoup_cli.options import (
    Base,
    Computing,
    ComputingKeywords,
    Declared,
    Finetuned,
    Option,
    Selecting,
    SelectingKeywords,
    Stacked,
    as_list,
    as_paths,
    declared_in,
)
from monosoup_cli.pipeline.engine import Progress, ignore
from monosoup_cli.pipeline.gram import gram_of
from monosoup_cli.pipeline.inspection import Compare, Inspection, MeasureLayer
from monosoup_cli.report.measures import ABOVE_ROUNDING
from monosoup_cli.report.records import histogram, spread, summarise
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import verdict_of
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["Inspected", "inspect_spectrum", "prepare_inspect_spectrum"]


class InspectKeywords(SelectingKeywords, ComputingKeywords, total=False):
    """The shared options that an inspection has, but for `include`, which is called `layer`."""


class Inspected:
    """An inspection that is ready to run; a context manager, because it holds the inputs' files.

    Attributes:
        inspection: The opened inputs and the plan.
    """

    def __init__(self, inspection: Inspection, rule: MonoSoup, arguments: Mapping[str, Any]) -> None:
        self.inspection = inspection
        self._rule, self._arguments = rule, arguments

    def run(self, progress: Progress = ignore) -> dict[str, Any]:
        """Measure all layers, and return the report."""
        started = time.monotonic()
        measured = [measure.name for measure in MEASURES if measure.is_stored]
        measured[-1:] = [*ABOVE_ROUNDING, measured[-1], "singular_values"]
        sources, grams = self._arguments["finetuned"], dict[str, "torch.Tensor"]()
        is_several = len(sources) > 1
        layers = self.inspection.run(
            _measure(self._rule, len(sources), with_values=self._arguments["values"]),
            measured,
            _compare(grams) if is_several else None,
            progress,
        )
        report = {
            **self.inspection.head("inspect-spectrum", self._arguments, started),
            **({"similarity": _similarity(sources, grams, layers)} if is_several else {}),
            "summary": summarise(layers, MEASURES),
            "layers": layers,
        }
        return {**report, "verdict": verdict_of(report, rows_of(report))}

    def __enter__(self) -> Inspected:
        return self

    def __exit__(self, *_: object) -> None:
        self.inspection.__exit__()


def prepare_inspect_spectrum(
    base: Base,
    finetuned: Finetuned,
    *,
    layer: Annotated[
        str | Sequence[str],
        Option("Only layers with such names; repeatable.", metavar="GLOB", shell=list[str]),
    ] = (),
    values: Annotated[bool, Option("All singular values, in json and csv.")] = False,
    energy: EnergySplit = None,
    rank: RankSplit = None,
    rank_fraction: RankFractionSplit = None,
    weighting: Weigh = "monosoup",
    stacked: Stacked = (),
    **options: Unpack[InspectKeywords],
) -> Inspected:
    """Show the spectra of a fine-tune, and what `edit` would make of them; writes no checkpoint.

    For every layer: where the spectrum is split, the coefficients, how far the edit is from plain
    interpolation; and below the table, in words, what to know before trusting it. For several fine-tunes, the
    mean is inspected, and how similar their updates are. An adapter needs no BASE (-).

    Example: monosoup inspect-spectrum base.safetensors ft.safetensors
    """
    shared = dict(options)
    shared.pop("progress", None)
    for keyword in shared:
        if keyword not in SHARED:
            raise TypeError(f"inspect_spectrum() got an unexpected keyword argument {keyword!r}")
    rule = MonoSoup(energy, rank, rank_fraction, weighting)
    of_group = {name: value for name, value in shared.items() if name in declared_in(Selecting)}
    selecting = Selecting(include=as_list(layer), **of_group)  # type: ignore[arg-type]
    computing = Computing(**{name: value for name, value in shared.items() if name not in of_group})  # type: ignore[arg-type]
    arguments = {
        "base": os.fspath(base),
        "finetuned": as_paths(finetuned),
        "layer": as_list(layer),
        "exclude": selecting.exclude,
        "values": values,
        **asdict(rule),
        "stacked": as_list(stacked),
        "rename": selecting.rename,
        "on_mismatch": selecting.on_mismatch,
        "on_nonfinite": selecting.on_nonfinite,
    }
    inspection = Inspection.open(
        None if arguments["base"] == NO_BASE else arguments["base"],
        arguments["finetuned"],
        selecting,
        computing,
        SpectralEdit([rule]),
        arguments["stacked"],
    )
    return Inspected(inspection, rule, arguments)


SHARED: Mapping[str, Declared] = {
    name: option
    for name, option in {**declared_in(Selecting), **declared_in(Computing)}.items()
    if name != "include"
}
"""The shared options that `inspect_spectrum` has."""


def inspect_spectrum(*args: Any, progress: Progress = ignore, **kwargs: Any) -> dict[str, Any]:
    """Replaced by the signature and the docstring of what prepares it."""
    with prepare_inspect_spectrum(*args, **kwargs) as inspected:
        return inspected.run(progress)


_OPTIONS = {**declared_in(prepare_inspect_spectrum), **SHARED}
document(
    inspect_spectrum,
    prepare_inspect_spectrum,
    _OPTIONS,
    "dict[str, Any]",
    "The report (docs/report.schema.json) as a dict; its layers have the fields of `edit`'s.",
)
inspect_spectrum.__name__ = inspect_spectrum.__qualname__ = "inspect_spectrum"


def _measure(rule: MonoSoup, count: int, *, with_values: bool) -> MeasureLayer:
    from monosoup_cli.spectral.rounding import Rounding, above_rounding

    def measure(layer: MatrixLayer) -> dict[str, Any] | None:
        finetuned = [finfo(dtype) for dtype in layer.dtypes[-count:]]
        rounding = Rounding(max(finetuned, key=lambda info: info.eps), len(finetuned))
        if layer.factors is None:
            measured = inspect_update(lambda: layer.updates(rounding.add), layer.cut.side, rule)
        else:
            layer.measure_base()
            measured = inspect_product(*layer.factors, rule)
        if measured is None:
            return None
        spectrum, values = measured
        return {
            **asdict(spectrum),
            "relative_update": relative_update(spectrum, layer.base_norm),
            **asdict(above_rounding(values, rounding.sigma(spectrum.update_norm))),
            "singular_values": values.tolist() if with_values else None,
        }

    return measure


def _compare(grams: dict[str, torch.Tensor]) -> Compare:
    def compare(layer: FlatLayer) -> dict[str, Any]:
        gram = gram_of(layer, gram_matrix).cpu()
        has_moved = gram.diagonal() > 0.0
        if not has_moved.any():
            return {}
        grams[layer.name] = gram
        stock = stock_ratio(gram)
        rows = cosines(gram).tolist()
        return {
            "cosine": float(stock.cosine),
            "ratio": float(stock.ratio),
            "clamped": int(stock.is_clamped),
            "cosines": [
                rows[one][other] if has_moved[one] or has_moved[other] else None
                for one, other in combinations(range(len(rows)), 2)
            ],
        }

    return compare


def _similarity(
    sources: Sequence[str], grams: Mapping[str, torch.Tensor], layers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How similar the updates are, and what `sfgs` and `stock` would make of it."""
    compared = [layer for layer in layers if layer["name"] in grams]
    in_order = [grams[layer["name"]] for layer in compared]
    matrix = similarity(in_order, len(sources)).tolist()
    return {
        "layers": len(compared),
        "candidates": list(sources),
        "relative_updates": _relative_updates(len(sources), grams, compared),
        "similarity": matrix,
        "thresholds": choices(matrix, range(len(sources)), sources),
        "histogram": histogram(
            [cosine for layer in compared for cosine in layer["cosines"] if cosine is not None]
        ),
        "stock": {
            **{name: spread([layer[name] for layer in compared]) for name in ("cosine", "ratio")},
            "clamped": sum(layer["clamped"] for layer in compared),
        },
    }


def _relative_updates(
    count: int, grams: Mapping[str, torch.Tensor], layers: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """‖τ_i‖/‖W0‖ of each checkpoint, over the layers whose base is known by the mean's update."""
    squares, of_base = [0.0] * count, 0.0
    for layer in layers:
        parts = layer.get("slices", [layer])
        if all(part["relative_update"] for part in parts):
            of_base += sum((part["update_norm"] / part["relative_update"]) ** 2 for part in parts)
            own = grams[layer["name"]].diagonal().tolist()
            squares = [total + each for total, each in zip(squares, own, strict=True)]
    return [math.sqrt(each / of_base) if 0.0 < of_base < math.inf else None for each in squares]
