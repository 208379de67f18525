"""Notes on results that were made from adapters, or that are adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.report.records import measures_of

__all__ = ["notes_on_adapters"]


def notes_on_adapters(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on the layers of a report.

    They count the updates without a weak part within their adapter's rank, and give the share of an
    update that the factors of an extracted adapter leave out.
    """
    edited = [layer for layer in layers if layer["action"] == "edited"]
    ranks = [
        (part["k"], layer["adapter_rank"])
        for layer in edited
        if layer.get("adapter_rank") and (layer.get("k") or "slices" in layer)
        for part in measures_of([layer])
        if part.get("k")
    ]
    notes = []
    whole = sum(k >= rank for k, rank in ranks)
    if whole:
        notes.append(
            f"in {whole:,} of {len(ranks):,} updates, k reaches the adapter's rank: all of their"
            " directions are similar in size, so they stay as fine-tuned"
        )
    errors = [layer["adapter_error"] for layer in edited if "adapter_error" in layer]
    if errors:
        mean = sum(errors) / len(errors)
        notes.append(
            f"the factors leave out {min(errors):.1%} to {max(errors):.1%} of an edited update"
            f" (in norm; {mean:.1%} on average): raise --adapter-rank or --adapter-energy to keep more"
        )
    return notes
