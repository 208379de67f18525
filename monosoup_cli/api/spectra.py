"""The report of `inspect_spectrum`: what is measured of every layer, and how several fine-tunes compare."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.sfgs import choices
from monosoup_cli.formats.dtypes import finfo
from monosoup_cli.methods.model_stock import stock_ratio
from monosoup_cli.methods.monosoup import MEASURES, MonoSoup, inspect_product, inspect_update, relative_update
from monosoup_cli.methods.similarity import cosines, gram_matrix, similarity
from monosoup_cli.methods.splits import splits_of
from monosoup_cli.pipeline.engine import Progress, ignore
from monosoup_cli.pipeline.gram import gram_of
from monosoup_cli.pipeline.inspection import Compare, Inspection, MeasureLayer
from monosoup_cli.report.measures import ABOVE_ROUNDING, SPLITS
from monosoup_cli.report.records import histogram, spread, summarise
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import verdict_of
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer

if TYPE_CHECKING:
    import torch

__all__ = ["Inspected"]


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
        measured[-1:] = [*SPLITS, *ABOVE_ROUNDING, measured[-1], "singular_values"]
        sources, grams = self._arguments["finetuned"], dict[str, "torch.Tensor"]()
        is_several = len(sources) > 1
        layers = self.inspection.run(
            _measure(self._rule, with_values=self._arguments["values"]),
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


def _measure(rule: MonoSoup, *, with_values: bool) -> MeasureLayer:
    from monosoup_cli.spectral.rounding import Rounding, above_rounding

    def measure(layer: MatrixLayer, dtypes: Sequence[str]) -> dict[str, Any] | None:
        finetuned = [finfo(dtype) for dtype in dtypes]
        rounding = Rounding(max(finetuned, key=lambda info: info.eps), len(finetuned))
        if layer.factors is None:
            measured = inspect_update(
                lambda: layer.updates(rounding.add), layer.cut.length, layer.cut.side, rule
            )
        else:
            layer.measure_base()
            measured = inspect_product(*layer.factors, rule)
        if measured is None:
            return None
        spectrum, values = measured
        return {
            **asdict(spectrum),
            "relative_update": relative_update(spectrum, layer.base_norm),
            **splits_of(values, layer.cut.length),
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
    """‖τ_i‖/‖W0‖ of every checkpoint, over the layers for which the mean's update gives ‖W0‖."""
    squares, of_base = [0.0] * count, 0.0
    for layer in layers:
        parts = layer.get("slices", [layer])
        if all(part["relative_update"] for part in parts):
            of_base += sum((part["update_norm"] / part["relative_update"]) ** 2 for part in parts)
            own = grams[layer["name"]].diagonal().tolist()
            squares = [total + square for total, square in zip(squares, own, strict=True)]
    return [math.sqrt(square / of_base) if 0.0 < of_base < math.inf else None for square in squares]
