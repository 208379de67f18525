"""Notes on results: how adapters limit them, and where they were computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.methods.monosoup import FAR
from monosoup_cli.report.records import measures_of
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.searched import notes_on_search
from monosoup_cli.report.steps import step_of
from monosoup_cli.report.verdict import NEAR, NOISE, outcome, verdict_of
from monosoup_cli.report.words import plural

__all__ = ["notes_on"]

SHOWN = 0.0005
"""The smallest share that is more than 0.0%."""
NOTHING: Mapping[str, Any] = {"findings": (), "interpolation": None}
"""The verdict where nothing was edited."""


def notes_on(report: Mapping[str, Any]) -> list[str]:
    """Return notes on the layers of a report.

    They count the updates without a weak part within their adapter's rank, those that are all noise or have
    none, and the tensors for which a card had no memory. They give the share of an update that the factors of
    an extracted adapter leave out, and the way back to the base of an edit that goes far. An edit that does
    next to nothing is said to, or that rounding undoes, and what docs/evidence.md has of edited adapters.
    """
    notes = notes_on_search(report) if "search" in report else []
    layers = report.get("layers", [])
    edited = [layer for layer in layers if layer["action"] == "edited"]
    verdict = _verdict_on(report) if edited else NOTHING
    if report["arguments"].get("split") == "noise":
        sentences = [finding["sentence"] for finding in verdict["findings"] if finding["kind"] in NOISE]
        notes += map(_as_note, sentences)
    else:
        notes += _notes_on_ranks(edited, step_of(report))
    nearest = verdict["interpolation"] if step_of(report) == 1.0 else None
    if nearest is not None and nearest["alpha"] < FAR:
        notes.append(
            f"the edit goes {1.0 - nearest['alpha']:.0%} of the way back to the base (its equivalent α is"
            f" {nearest['alpha']:.2g})"
        )
    if nearest is not None and nearest.get("from_finetuned", 1.0) <= NEAR:  # older reports lack it
        notes.append(_as_note(nearest["sentence"]))
    if loss := verdict.get("rounding_loss"):
        notes.append(_as_note(loss["sentence"]))
    if report["command"] == "edit" and edited and all(layer.get("adapter_rank") for layer in edited):
        notes.append("in monosoup's measurements, the edit made no difference to LoRA fine-tunes that shows")
    errors = [layer["adapter_error"] for layer in edited if "adapter_error" in layer]
    if max(errors, default=0.0) >= SHOWN:
        mean = sum(errors) / len(errors)
        notes.append(
            f"the factors leave out {min(errors):.1%} to {max(errors):.1%} of an edited update"
            f" (in norm; {mean:.1%} on average): raise --adapter-rank or --adapter-energy to keep more"
        )
    left_out = sum(layer.get("reason") == "no_room" for layer in layers)
    if left_out:
        notes.append(
            f"--max-size has no room for {plural(left_out, 'layer')}: the adapter has nothing of their"
            " updates, which the mean error does not count"
        )
    substituted = sum("computed_on" in layer for layer in layers)
    if substituted:
        notes.append(f"the CPU computed {plural(substituted, 'tensor')} for which a card had no memory")
    return notes


def _verdict_on(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The verdict that a report has; or one of its layers, where it has none with the figures for notes."""
    stored: Mapping[str, Any] | None = report.get("verdict")
    if stored is not None:
        nearest = stored["interpolation"]
        has_alpha = nearest is None or isinstance(nearest.get("alpha"), (int, float))
        if has_alpha and all("kind" in finding for finding in stored["findings"]):
            return stored
    return verdict_of(report, rows_of(report))


def _as_note(sentence: str) -> str:
    return f"{sentence[0].lower()}{sentence[1:].rstrip('.')}"


def _notes_on_ranks(edited: Sequence[Mapping[str, Any]], step: float) -> list[str]:
    """Count the updates by adapters that have no weak part. By noise, these are said to have no noise."""
    parts = [
        (part, layer["adapter_rank"])
        for layer in edited
        if layer.get("adapter_rank") and (layer.get("k") or "slices" in layer)
        for part in measures_of([layer])
        if part.get("k")
    ]
    factors = [step * part["equivalent_alpha"] for part, rank in parts if part["k"] >= rank]
    if not factors:
        return []
    return [
        f"in {len(factors):,} of {len(parts):,} updates, the update has no weak part, and {outcome(factors)}:"
        " k reaches the adapter's rank"
    ]
