"""What a run did, as frozen records that become the report's JSON (docs/report.schema.json)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monosoup_cli.report.measures import derived_measures, with_aliases
from monosoup_cli.tensors.method import Measure
from monosoup_cli.tensors.plan import Matrices

__all__ = [
    "SCHEMA_VERSION",
    "LayerRecord",
    "SliceRecord",
    "histogram",
    "measures_of",
    "outputs_in",
    "slice_record",
    "sources_in",
    "spread",
    "summarise",
    "summary_in",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SliceRecord:
    """One matrix of a tensor that has several.

    Attributes:
        index: Its number.
        measures: The measures by name; None if it did not change.
        name: The name that it has where it is stored by itself; empty in a stack.
        shape: Its rows and columns, of a matrix with a name.
    """

    index: int
    measures: Mapping[str, Any] | None
    name: str = ""
    shape: tuple[int, ...] = ()


def slice_record(matrices: Matrices, index: int, measures: Mapping[str, Any] | None) -> SliceRecord:
    """The record of matrix `index` of a tensor."""
    part = matrices.part(index)
    return SliceRecord(index, measures, part.name, (part.cut.rows, part.cut.columns))


@dataclass(frozen=True)
class LayerRecord:
    """One tensor of the output.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype in the fine-tuned checkpoint, as the format names it.
        reason: Why it was kept; None if it was edited.
        measures: The measures by name; None where nothing was measured.
        slices: The matrices of a stack or a fused tensor, which have `measures` of their own.
        together: Measures of the whole tensor over several checkpoints.
        shared_rows: How many rows were edited, where the inputs differ in their number of rows.
        update_of: Facts about the update that are known from adapters: rank and scale.
        is_substituted: Whether the CPU computed it because a card had no memory for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str | None
    measures: Mapping[str, Any] | None = None
    slices: tuple[SliceRecord, ...] | None = None
    together: Mapping[str, Any] | None = None
    shared_rows: int | None = None
    update_of: Mapping[str, Any] | None = None
    is_substituted: bool = False

    @property
    def is_edited(self) -> bool:
        return self.reason is None

    def to_json(self, measured: Sequence[str]) -> dict[str, Any]:
        """Return the entry in the report; of the measures that `measured` names, missing ones are null."""
        nothing = dict.fromkeys(measured)
        entry: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            **({"shared_rows": self.shared_rows} if self.is_edited and self.shared_rows is not None else {}),
            "dtype": self.dtype,
            "action": "edited" if self.is_edited else "kept",
            "reason": self.reason,
            **(self.update_of or {} if self.is_edited else {}),
            **({"computed_on": "cpu"} if self.is_substituted else {}),
            **(self.together or {}),
        }
        if self.slices is None:
            return with_aliases({**entry, **nothing, **_plain(self.measures)})
        slices = [
            with_aliases(
                {
                    "index": part.index,
                    **({"name": part.name, "shape": list(part.shape)} if part.name else {}),
                    "reason": "unchanged" if part.measures is None else None,
                    **nothing,
                    **_plain(part.measures),
                }
            )
            for part in self.slices
        ]
        return {**entry, "slices": slices}


def _plain(measures: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the measures as JSON has them, where lists are the only sequences."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in (measures or {}).items()
    }


def outputs_in(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the checkpoints that a report is on: one, those of a sweep, or none for an inspection."""
    return report.get("outputs") or ([report["output"]] if "output" in report else [])


def summary_in(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the summary of a report; of a sweep, that of its first checkpoint."""
    summary: Mapping[str, Any] = (report["outputs"][0] if "outputs" in report else report)["summary"]
    return summary


def sources_in(report: Mapping[str, Any], role: str) -> list[str]:
    """Return the paths or ids of the inputs that have a role, as the user gave them."""
    return [entry["source"] for entry in report["inputs"] if entry["role"] == role]


def measures_of(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries that were measured: edited layers, or the edited matrices of stacked ones."""
    parts = [part for layer in layers for part in layer.get("slices", [layer])]
    return [part for part in parts if part["reason"] is None]


def summarise(layers: Sequence[Mapping[str, Any]], measures: Sequence[Measure] = ()) -> dict[str, Any]:
    """Summarise a report: counts, and over edited layers the mean and range or the sum of each measure.

    Args:
        layers: The entries of the report.
        measures: What the method measures.
    """
    edited = [layer for layer in layers if layer["action"] == "edited"]
    reasons = Counter(layer["reason"] for layer in layers if layer["action"] == "kept")
    summary: dict[str, Any] = {
        "tensors": len(layers),
        "edited": len(edited),
        "kept": dict(sorted(reasons.items())),
        "parameters": sum(math.prod(layer["shape"]) for layer in layers),
        "parameters_edited": sum(math.prod(layer["shape"]) for layer in edited),
        "means": {},
        "ranges": {},
    }
    parts = measures_of(edited)
    for measure in measures:
        name = measure.name
        if measure.summary == "mean":
            values = spread(
                [part[name] if measure.is_stored else derived_measures(part)[name] for part in parts]
            )
            summary["means"][name] = values and values["mean"]
            summary["ranges"][name] = values and [values["min"], values["max"]]
        elif measure.summary == "sum":
            summary[name] = sum(part[name] for part in parts)
    return {**summary, **{name: with_aliases(summary[name]) for name in ("means", "ranges")}}


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return mean, minimum and maximum of the values that are not None; None if all are."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    low, high = min(present), max(present)
    mean = sum(value / len(present) for value in present)  # may be rounded out of their range
    return {"mean": min(max(mean, low), high), "min": low, "max": high}


BINS = 40


def histogram(cosines: Iterable[float]) -> dict[str, Any]:
    """Count cosines in `BINS` equal bins from −1 to 1. A bin includes its lower edge, the last also 1."""
    counts = [0] * BINS
    for cosine in cosines:
        # rounding may put a value on an edge just below it
        counts[min(math.floor((cosine + 1.0) / 2.0 * BINS + 1e-9), BINS - 1)] += 1
    return {"edges": [round(2.0 * number / BINS - 1.0, 9) for number in range(BINS + 1)], "counts": counts}
