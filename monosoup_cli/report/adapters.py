"""What people should know of a result that adapters go into, or that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.report.records import measures_of

__all__ = ["notes_on_adapters"]


def notes_on_adapters(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the entries of a report: how many updates had no weak part within the rank of their
    factors; and what factors of a whole fine-tune leave out."""
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
            f"in {whole:,} of {len(ranks):,} updates k reaches the adapter's rank: all of their directions"
            " are alike, none is weak, and they stay as fine-tuned"
        )
    errors = [layer["adapter_error"] for layer in edited if "adapter_error" in layer]
    if errors:
        mean = sum(errors) / len(errors)
        notes.append(
            f"the factors leave out {min(errors):.1%} to {max(errors):.1%} of an edited update"
            f" (‖·‖, {mean:.1%} in the mean): a higher --adapter-rank or --adapter-energy leaves out less"
        )
    return notes
