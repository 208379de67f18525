"""`inspect_spectrum`: the spectra of the updates, and what the methods would make of them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.command import StrPath, paths, running
from monosoup_cli.api.edit import AVERAGED, relative_update
from monosoup_cli.api.sfgs import choices
from monosoup_cli.formats.header import FLOATING
from monosoup_cli.pipeline.engine import Progress
from monosoup_cli.pipeline.gram import gram_of
from monosoup_cli.pipeline.inspection import Compare, Inspection, Measure
from monosoup_cli.pipeline.options import Mismatch, RunOptions, Strictness, as_list
from monosoup_cli.report.records import histogram, spread, summarise
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import verdict_of

if TYPE_CHECKING:
    import torch

    from monosoup_cli.methods.monosoup import MonoSoup, Weighting
    from monosoup_cli.tensors.flat import FlatLayer
    from monosoup_cli.tensors.matrix import MatrixLayer

__all__ = ["Inspected", "inspect_spectrum", "prepare_inspect_spectrum"]


class Inspected:
    """An inspection that is ready to run; a context manager, because it holds the inputs' files."""

    def __init__(self, inspection: Inspection, monosoup: MonoSoup, arguments: Mapping[str, Any]) -> None:
        self.inspection, self._monosoup, self._arguments = inspection, monosoup, arguments

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """The report."""
        from monosoup_cli.methods.monosoup import LayerSpectrum
        from monosoup_cli.spectral.rounding import AboveRounding

        started = time.monotonic()
        with_values = self._arguments["values"]
        measured = [field.name for each in (LayerSpectrum, AboveRounding) for field in fields(each)]
        measured += ["relative_update", "singular_values"]
        sources, grams = self._arguments["finetuned"], dict[str, "torch.Tensor"]()
        is_several = len(sources) > 1
        layers = self.inspection.run(
            _measure(self._monosoup, with_values=with_values),
            measured,
            _compare(grams) if is_several else None,
            progress,
        )
        report = {
            **self.inspection.head("inspect-spectrum", self._arguments, started),
            **({"similarity": _similarity(sources, grams, layers)} if is_several else {}),
            "summary": summarise(layers, AVERAGED),
            "layers": layers,
        }
        return {**report, "verdict": verdict_of(report, rows_of(report))}

    def __enter__(self) -> Inspected:
        return self

    def __exit__(self, *_: object) -> None:
        self.inspection.__exit__()


def prepare_inspect_spectrum(
    base: StrPath,
    finetuned: StrPath | Sequence[StrPath],
    *,
    layer: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    values: bool = False,
    energy: float | None = None,
    rank: int | None = None,
    rank_fraction: float | None = None,
    weighting: Weighting = "monosoup",
    stacked: str | Sequence[str] = (),
    rename: str | Sequence[str] = (),
    on_mismatch: Mismatch = "error",
    on_nonfinite: Strictness = "error",
    device: str = "auto",
    workers: int | None = None,
) -> Inspected:
    """The spectrum of every layer's update, and what MonoSoup reads off it; writes nothing.

    The command `monosoup inspect-spectrum` (docs/cli.md). `base`, `finetuned`: files, folders
    or ids on the Hub; of several the mean is looked at, as `edit` would edit it, and how alike their updates
    are. `layer`, `exclude`: globs over the names of what is read, or not. `values`: all singular
    values are in the report. The other options are those of `edit`.

    Returns the report (docs/report.schema.json) as a dict; its layers have the fields of `edit`'s.
    Raises `monosoup_cli.errors.MonosoupError`.
    """
    from monosoup_cli.methods.monosoup import MonoSoup

    monosoup = MonoSoup(energy, rank, rank_fraction, weighting)
    options = RunOptions(
        include=as_list(layer),
        exclude=as_list(exclude),
        rename=as_list(rename),
        on_mismatch=on_mismatch,
        on_nonfinite=on_nonfinite,
        device=device,
        workers=workers,
    )
    arguments = {
        "base": os.fspath(base),
        "finetuned": paths(finetuned),
        "layer": as_list(layer),
        "exclude": as_list(exclude),
        "values": values,
        **asdict(monosoup),
        "stacked": as_list(stacked),
        "rename": as_list(rename),
        "on_mismatch": on_mismatch,
        "on_nonfinite": on_nonfinite,
    }
    inspection = Inspection.open(arguments["base"], arguments["finetuned"], options, arguments["stacked"])
    return Inspected(inspection, monosoup, arguments)


inspect_spectrum = running(prepare_inspect_spectrum)


def _measure(monosoup: MonoSoup, *, with_values: bool) -> Measure:
    import torch

    from monosoup_cli.methods.monosoup import inspect_product, inspect_update
    from monosoup_cli.spectral.rounding import Rounding, above_rounding

    def measure(layer: MatrixLayer) -> dict[str, Any] | None:
        _, *finetuned = (torch.finfo(getattr(torch, FLOATING[dtype])) for dtype in layer.dtypes)
        rounding = Rounding(max(finetuned, key=lambda info: info.eps), len(finetuned))
        if layer.factors is None:
            found = inspect_update(lambda: layer.updates(rounding.add), layer.cut.side, monosoup)
        else:
            layer.measure_base()
            found = inspect_product(*layer.factors, monosoup)
        if found is None:
            return None
        spectrum, values = found
        return {
            **asdict(spectrum),
            "relative_update": relative_update(spectrum, layer.base_norm),
            **asdict(above_rounding(values, rounding.sigma(spectrum.update_norm))),
            "singular_values": values.tolist() if with_values else None,
        }

    return measure


def _compare(grams: dict[str, torch.Tensor]) -> Compare:
    from monosoup_cli.methods.model_stock import stock_ratio
    from monosoup_cli.methods.similarity import cosines, gram_matrix

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
    """How alike the updates are, and what `sfgs` and `stock` would make of it."""
    from monosoup_cli.methods.similarity import similarity

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
