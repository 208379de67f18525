"""Notes on results: how adapters limit them, and where they were computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosoup_cli.report.records import measures_of
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.searched import notes_on_search
from monosoup_cli.report.verdict import NOISE, findings
from monosoup_cli.report.words import plural

__all__ = ["notes_on"]

SHOWN = 0.0005
"""The smallest share that is more than 0.0%."""


def notes_on(report: Mapping[str, Any]) -> list[str]:
    """Return notes on the layers of a report.

    They count the updates without a weak part within their adapter's rank, those that are all noise or have
    none, and the tensors for which a card had no memory. They give the share of an update that the factors of
    an extracted adapter leave out.
    """
    notes = notes_on_search(report) if "search" in report else []
    layers = report.get("layers", [])
    edited = [layer for layer in layers if layer["action"] == "edited"]
    ranks = [
        (part["k"], layer["adapter_rank"])
        for layer in edited
        if layer.get("adapter_rank") and (layer.get("k") or "slices" in layer)
        for part in measures_of([layer])
        if part.get("k")
    ]
    if report["arguments"].get("split") == "noise":
        notes += [
            f"{finding.sentence[0].lower()}{finding.sentence[1:].rstrip('.')}"
            for finding in findings(rows_of(report), is_default=False, is_by_noise=True)
            if finding.kind in NOISE
        ]
    whole = sum(k >= rank for k, rank in ranks)
    if whole:
        notes.append(
            f"in {whole:,} of {len(ranks):,} updates, k reaches the adapter's rank: all of their"
            " directions are similar in size, so they stay as fine-tuned"
        )
    errors = [layer["adapter_error"] for layer in edited if "adapter_error" in layer]
    if max(errors, default=0.0) >= SHOWN:
        mean = sum(errors) / len(errors)
        notes.append(
            f"the factors leave out {min(errors):.1%} to {max(errors):.1%} of an edited update"
            f" (in norm; {mean:.1%} on average): raise --adapter-rank or --adapter-energy to keep more"
        )
    substituted = sum("computed_on" in layer for layer in layers)
    if substituted:
        notes.append(f"the CPU computed {plural(substituted, 'tensor')} for which a card had no memory")
    return notes
