"""What a report says, in words: sentences, each tied to figures of the layers.

Every layer tells at most one story: the first of the `STORIES` that fits it. The thresholds stand
in docs/inspect.md with their reasons.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monosoup_cli.report.rows import Row
from monosoup_cli.report.words import plural

__all__ = ["Finding", "findings", "interpolation", "sentences", "verdict_of"]

AS_LARGE = 0.9
"""‖Δ‖/‖W0‖ from which an update is as large as the weights: unrelated weights have 1 or more."""

LORA_RANKS = 0.25
"""Share of r up to which a rank counts as low."""

LORA_GAP = 2.0
"""How many times larger than the next the last singular value of a low rank is."""

LORA_LAYERS = 0.9
"""Share of the moved layers that have one and the same low rank in a merged LoRA, of two at least."""

ROUNDED = 0.25
"""Share of Σσ at or below the rounding from which the effective rank counts noise."""

WEAKENED = 0.5
"""λ_high below which MonoSoup takes away most of what is strong."""

NEAR = 0.05
"""Distance between two sets of weights, of ‖Δ‖, up to which they are nearly the same."""


@dataclass(frozen=True)
class Finding:
    """A story that some layers tell: its kind, the layers' names, its figures, and the sentence."""

    kind: str
    layers: Sequence[str]
    figures: dict[str, Any]
    sentence: str


def verdict_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The report's `verdict`: `findings`, and how far the edit is from plain `interpolation`."""
    return {"findings": [asdict(each) for each in findings(rows)], "interpolation": interpolation(rows)}


def sentences(verdict: dict[str, Any]) -> list[str]:
    """What people read of a verdict."""
    last = verdict["interpolation"]
    return [*(each["sentence"] for each in verdict["findings"]), *([last["sentence"]] if last else [])]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """What there is to say of layers that are not as one would expect; of most fine-tunes nothing."""
    moved = [row for row in rows if row["reason"] is None and row.get("k")]
    lora_rank = _lora_rank(moved)
    told: dict[str, list[Row]] = {kind: [] for kind in STORIES}
    told["frozen"] = [row for row in rows if row["reason"] == "unchanged"]
    for row in moved:
        kind = _story(row, lora_rank)
        if kind is not None:
            told[kind].append(row)
    return [
        Finding(kind, [row["name"] for row in found], *STORIES[kind](found, len(moved)))
        for kind, found in told.items()
        if found
    ]


def _story(row: Row, lora_rank: int | None) -> str | None:
    if (row["relative_update"] or 0.0) >= AS_LARGE:
        return "wrong_base"
    if lora_rank is not None and _low_rank(row) == lora_rank:
        return "lora"
    if (row.get("rounding_share") or 0.0) >= ROUNDED:
        return "rounding"
    if row["k"] == row["rank"]:
        return "whole"
    return "weakened" if row["lambda_high"] < WEAKENED else None


def _low_rank(row: Row) -> int | None:
    """The number of singular values above the rounding, if few and set apart by a gap."""
    rank, gap = row.get("rank_above_rounding"), row.get("gap_above_rounding")
    return rank if rank and gap and gap >= LORA_GAP and rank <= LORA_RANKS * row["rank"] else None


def _lora_rank(moved: Sequence[Row]) -> int | None:
    """The low rank that (nearly) all layers have alike; None where they have not."""
    own = [row for row in moved if (row["relative_update"] or 0.0) < AS_LARGE]
    ((rank, count),) = Counter(map(_low_rank, own)).most_common(1) or [(None, 0)]
    return rank if count >= max(2, LORA_LAYERS * len(own)) else None


Told = tuple[dict[str, Any], str]


def _wrong_base(found: Sequence[Row], of: int) -> Told:
    low, high = _range(found, "relative_update")
    sentence = f"{_in(found, of)} the update is as large as the weights (‖Δ‖/‖W0‖ {_between(low, high)}): "
    if 2 * len(found) > of:
        return {
            "relative_update": [low, high]
        }, sentence + "is BASE what was fine-tuned? If not, nothing here holds."
    return {"relative_update": [low, high]}, sentence + "made anew rather than fine-tuned, as a new head is?"


def _lora(found: Sequence[Row], of: int) -> Told:
    rank = found[0]["rank_above_rounding"]
    effective = statistics.median(row["effective_rank"] for row in found)
    values = "singular value stands" if rank == 1 else "singular values stand"
    sentence = (
        f"{_in(found, of)} just {rank} {values} above rounding: a merged LoRA of rank {rank}, it seems."
    )
    if effective > rank + 1:
        sentence += f" Rounding makes its effective rank {_short(effective)} (median), and k with it."
    return {"rank": rank, "effective_rank": effective}, sentence


def _rounding(found: Sequence[Row], of: int) -> Told:
    low, high = _range(found, "rounding_share")
    above = statistics.median(row["rank_above_rounding"] for row in found)
    effective = statistics.median(row["effective_rank"] for row in found)
    figures = {"rounding_share": [low, high], "rank_above_rounding": above, "effective_rank": effective}
    return figures, (
        f"{_in(found, of)} {_percent(low, high)} of Σσ lies at or below what rounding to the stored dtype"
        f" makes: noise, but the effective rank ({_short(effective)} in the median) counts it; above it stand"
        f" {_short(above)} singular values in the median. A checkpoint stored in more bits has less."
    )


def _whole(found: Sequence[Row], of: int) -> Told:
    return {}, (
        f"{_in(found, of)} k = r, the spectrum has no weak part: MonoSoup leaves"
        f" {'it' if len(found) == 1 else 'them'} as fine-tuned."
    )


def _weakened(found: Sequence[Row], of: int) -> Told:
    low, high = _range(found, "lambda_high")
    return {"lambda_high": [low, high]}, (
        f"Warning: {_in(found, of, lower=True)} the spectrum is nearly flat, but k < r: λ_high falls to"
        f" {_between(low, high)}, and most of the update is taken away. --exclude keeps such layers."
    )


def _frozen(found: Sequence[Row], of: int) -> Told:
    return {}, f"{plural(len(found), 'layer')} did not move: frozen, or a copy of the base."


STORIES: dict[str, Callable[[Sequence[Row], int], Told]] = {
    "wrong_base": _wrong_base,
    "lora": _lora,
    "rounding": _rounding,
    "whole": _whole,
    "weakened": _weakened,
    "frozen": _frozen,
}


def interpolation(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The α for which (1 − α) base + α fine-tuned is nearest to the edit on all edited layers, the
    distance left, and that from the fine-tuned weights, both relative to the norm of the whole update;
    None where nothing is edited."""
    edited = [row for row in rows if row["reason"] is None and row.get("equivalent_alpha") is not None]
    if not edited:
        return None
    largest = max(row["update_norm"] for row in edited)
    shares = [(row["update_norm"] / largest) ** 2 for row in edited]
    total = math.fsum(shares)
    alpha = (
        math.fsum(row["equivalent_alpha"] * share for row, share in zip(edited, shares, strict=True)) / total
    )
    squares = (
        share * (row["anisotropy"] ** 2 + (row["equivalent_alpha"] - alpha) ** 2)
        for row, share in zip(edited, shares, strict=True)
    )
    distance = math.sqrt(math.fsum(squares) / total)
    moved = math.hypot(1.0 - alpha, distance)
    nearest = f"{_percent(distance)} of ‖Δ‖ from the nearest plain interpolation, α = {alpha:.3g}"
    if moved <= NEAR:
        sentence = (
            f"The edit leaves these layers nearly as fine-tuned: it moves them by {_percent(moved)} of ‖Δ‖."
        )
    elif distance <= NEAR:
        sentence = (
            f"The edit is {nearest}: WiSE-FT at {alpha:.3g} would give these layers nearly the same weights."
        )
    else:
        sentence = f"The edit is {nearest}: no WiSE-FT gives these weights."
    return {"alpha": alpha, "distance": distance, "from_finetuned": moved, "sentence": sentence}


def _in(found: Sequence[Row], of: int, *, lower: bool = False) -> str:
    if len(found) < of:
        words = f"In {len(found):,} of {plural(of, 'layer')}"
    else:
        words = "In the only layer" if of == 1 else f"In all {of:,} layers"
    return words[0].lower() + words[1:] if lower else words


def _range(found: Sequence[Row], name: str) -> tuple[float, float]:
    values = [row[name] for row in found]
    return min(values), max(values)


def _between(low: float, high: float) -> str:
    return _short(low) if _short(low) == _short(high) else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _percent(low: float, high: float | None = None) -> str:
    first, last = (
        f"{100 * value:{'.0f' if value >= 0.1 else '.2g'}}" for value in (low, low if high is None else high)
    )
    return f"{first} %" if first == last else f"{first} to {last} %"
