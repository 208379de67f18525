"""What a report says, in words: sentences, each tied to figures of the layers.

Every layer tells at most one story: the first of the `STORIES` that fits it. The thresholds stand
in docs/inspect.md with their reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monosoup_cli.methods.monosoup import MonoSoup
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
"""Share of the moved layers that have a low rank in a merged LoRA."""

ROUNDED = 0.25
"""Share of Σσ at or below the rounding from which the effective rank counts noise."""

WEAKENED = 0.5
"""λ_high below which MonoSoup takes away most of what is strong."""

NEAR = 0.05
"""Distance between two sets of weights, of ‖Δ‖, up to which they are nearly the same."""


MAX_NAMED = 2

BY_DEFAULT = asdict(MonoSoup())
"""The arguments under which k and λ tell of the spectrum, and not of what was asked for."""


@dataclass(frozen=True)
class Finding:
    """A story that some layers tell: its kind, the layers' names, its figures, and the sentence."""

    kind: str
    layers: Sequence[str]
    figures: dict[str, Any]
    sentence: str


def verdict_of(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The report's `verdict`: `findings`, and how far the edit is from plain `interpolation`. `rows`: its."""
    arguments = report["arguments"]
    is_default = all(arguments.get(name, value) == value for name, value in BY_DEFAULT.items())
    wise = arguments.get("wise")
    return {
        "findings": [asdict(each) for each in findings(rows, is_default=is_default)],
        "interpolation": interpolation(
            rows,
            wise=float(wise) if isinstance(wise, (int, float)) else 1.0,
            is_mean=sum(each["role"] == "finetuned" for each in report["inputs"]) > 1,
        ),
    }


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """What people read of a verdict."""
    last = verdict["interpolation"]
    return [*(each["sentence"] for each in verdict["findings"]), *([last["sentence"]] if last else [])]


def findings(rows: Sequence[Row], *, is_default: bool = True) -> list[Finding]:
    """What there is to say of layers that are not as one would expect; of most fine-tunes nothing.

    `is_default`: MonoSoup has chosen k and λ, and not the user.
    """
    moved = [row for row in rows if row["reason"] is None and row.get("k")]
    own = [row for row in moved if not _is_as_large(row)]
    is_lora = sum(map(_is_low, own)) >= max(1, LORA_LAYERS * len(own))
    told: dict[str, list[Row]] = {kind: [] for kind in STORIES}
    told["frozen"] = [row for row in rows if row["reason"] == "unchanged" and math.prod(row["shape"])]
    for row in moved:
        kind = _story(row, is_lora=is_lora, is_default=is_default)
        if kind is not None:
            told[kind].append(row)
    return [
        Finding(kind, [row["name"] for row in found], *STORIES[kind](found, len(moved)))
        for kind, found in told.items()
        if found
    ]


def _story(row: Row, *, is_lora: bool, is_default: bool) -> str | None:
    if _is_as_large(row):
        return "wrong_base"
    if is_lora and _is_low(row) and "adapter_rank" not in row:  # which needs no guess
        return "lora"
    if (row.get("rounding_share") or 0.0) >= ROUNDED:
        return "rounding"
    if not is_default:
        return None
    if row["k"] == row["rank"]:
        return "whole"
    return "weakened" if row["lambda_high"] < WEAKENED else None


def _is_as_large(row: Row) -> bool:
    """As large as the weights; of a base of zeros, the update is all there is."""
    return row["relative_update"] is None or row["relative_update"] >= AS_LARGE


def _is_low(row: Row) -> bool:
    """Whether few singular values lie above the rounding, set apart by a gap."""
    rank, gap = row.get("rank_above_rounding"), row.get("gap_above_rounding")
    if not rank or rank > LORA_RANKS * row["rank"]:
        return False
    return gap is None or gap >= LORA_GAP  # None: nothing lies below


Told = tuple[dict[str, Any], str]


def _wrong_base(found: Sequence[Row], of: int) -> Told:
    ratios = [row["relative_update"] for row in found if row["relative_update"] is not None]
    range_ = [min(ratios), max(ratios)] if ratios else None
    size = f"‖Δ‖/‖W0‖ {_between(*range_)}" if range_ else "the base is zero"
    sentence = f"{_in(found, of)} the update is as large as the weights ({size}): "
    if 2 * len(found) > of:
        sentence += "is BASE what was fine-tuned? If not, nothing else here holds."
    else:
        sentence += "made anew rather than fine-tuned, as a new head is?"
    return {"relative_update": range_}, sentence


def _lora(found: Sequence[Row], of: int) -> Told:
    low, high = _range(found, "rank_above_rounding")
    effective = statistics.median(row["effective_rank"] for row in found)
    values = "singular value stands" if high == 1 else "singular values stand"
    sentence = (
        f"{_in(found, of)} just {_between(low, high)} {values} above rounding: a merged LoRA of rank"
        f" {_between(low, high)}, it seems (or more, if its weakest directions lie below)."
    )
    if effective > high + 1:
        sentence += f" Rounding makes its effective rank {_short(effective)} (median)."
    return {"rank": [low, high], "effective_rank": effective}, sentence


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
    return {}, f"{plural(len(found), 'layer')}{_named(found)} did not move: frozen, or a copy of the base."


STORIES: dict[str, Callable[[Sequence[Row], int], Told]] = {
    "wrong_base": _wrong_base,
    "lora": _lora,
    "rounding": _rounding,
    "whole": _whole,
    "weakened": _weakened,
    "frozen": _frozen,
}


def interpolation(rows: Sequence[Row], *, wise: float = 1.0, is_mean: bool = False) -> dict[str, Any] | None:
    """The α for which (1 − α) base + α fine-tuned is nearest to the edit on all edited layers, the
    distance left, and that from the fine-tuned weights, both relative to the norm of the whole update;
    None where nothing is edited.

    `wise`: how far the edit then goes from the base. `is_mean`: of several fine-tuned checkpoints.
    """
    edited = [row for row in rows if row["reason"] is None and row.get("equivalent_alpha") is not None]
    if not edited:
        return None
    largest = max(row["update_norm"] for row in edited)
    weighed = [(row, (row["update_norm"] / largest) ** 2) for row in edited]
    total = math.fsum(share for _, share in weighed)
    mean = math.fsum(row["equivalent_alpha"] * share for row, share in weighed) / total
    squares = (
        share * (row["anisotropy"] ** 2 + (row["equivalent_alpha"] - mean) ** 2) for row, share in weighed
    )
    alpha, distance = wise * mean, wise * math.sqrt(math.fsum(squares) / total)
    moved = math.hypot(1.0 - alpha, distance)
    tuned = "their mean" if is_mean else "fine-tuned"
    nearest = f"The edit is {_percent(distance)} of ‖Δ‖ from the nearest plain interpolation"
    nearest += f"{' with their mean' if is_mean else ''}, α = {alpha:.3g}"
    if moved <= NEAR:
        sentence = (
            f"The edit leaves these layers nearly as {tuned}: it moves them by {_percent(moved)} of ‖Δ‖."
        )
    elif distance <= NEAR:
        sentence = f"{nearest}, which gives these layers nearly the same weights"
        sentence += "." if is_mean else f": WiSE-FT at {alpha:.3g}."
    else:
        sentence = f"{nearest}: no {'interpolation' if is_mean else 'WiSE-FT'} gives these weights."
    return {"alpha": alpha, "distance": distance, "from_finetuned": moved, "sentence": sentence}


def _in(found: Sequence[Row], of: int, *, lower: bool = False) -> str:
    if len(found) < of:
        words = f"In {len(found):,} of {plural(of, 'layer')}{_named(found)}"
    else:
        words = "In the only layer" if of == 1 else f"In all {of:,} layers"
    return words[0].lower() + words[1:] if lower else words


def _named(found: Sequence[Row]) -> str:
    """A few layers by name."""
    return f" ({', '.join(row['name'] for row in found)})" if len(found) <= MAX_NAMED else ""


def _range(found: Sequence[Row], name: str) -> tuple[float, float]:
    values = [row[name] for row in found]
    return min(values), max(values)


def _between(low: float, high: float) -> str:
    return _short(low) if _short(low) == _short(high) else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _percent(low: float, high: float | None = None) -> str:
    if high is None and 0.0 < low < 1e-4:
        return "less than 0.01 %"
    first, last = (
        f"{100 * value:{'.0f' if value >= 0.1 else '.2g'}}" for value in (low, low if high is None else high)
    )
    return f"{first} %" if first == last else f"{first} to {last} %"
