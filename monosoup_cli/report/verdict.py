"""Explain a report in sentences, each with the layers and the figures that it is about.

Every layer counts in at most one finding: the first of `STORIES` that fits. docs/inspect.md has the reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monosoup_cli.methods.monosoup import FAR, MonoSoup
from monosoup_cli.report.records import sources_in
from monosoup_cli.report.rounded import rounding_loss
from monosoup_cli.report.rows import Row
from monosoup_cli.report.steps import step_in, step_of
from monosoup_cli.report.words import plural

__all__ = [
    "AS_LARGE",
    "NEAR",
    "NOISE",
    "Finding",
    "findings",
    "interpolation",
    "outcome",
    "sentences",
    "size",
    "told_by",
    "verdict_of",
]

AS_LARGE = 0.9
"""‖Δ‖/‖W0‖ from which an update is as large as the weights: unrelated weights have 1 or more."""

LORA_RANKS = 0.25
"""Share of r up to which a rank counts as low."""

LORA_GAP = 2.0
"""Factor by which the smallest singular value of a low rank exceeds the next one."""

LORA_LAYERS = 0.9
"""Share of the changed layers that have a low rank in a merged LoRA."""

ROUNDED = 0.25
"""Share of Σσ in singular values no larger than rounding, from which the effective rank counts noise."""

WEAKENED = 0.5
"""λ_high below which MonoSoup removes most of the strong part."""

NO_NOISE = 1e-12
"""Share of ‖Δ‖ up to which nothing is left below the noise edge."""

EXACT = 1e-9
"""How far from 0 or 1 a factor is that is told as such."""

NEAR = 0.05
"""Distance between two sets of weights, as a share of ‖Δ‖, up to which they are nearly the same."""

SMALL_UPDATE = 0.01
"""Mean ‖Δ‖/‖W0‖ below which edits did not gain out of distribution in docs/evidence.md, on average."""

LARGE_UPDATE = 0.05
"""Mean ‖Δ‖/‖W0‖ from which edits of full fine-tunes gained there."""

MEASURED = "In monosoup's measurements on small models, full fine-tunes with a mean"
"""How docs/evidence.md is told to those who do not have it."""

MAX_NAMED = 2

DEFAULT_RULE = asdict(MonoSoup())
"""The arguments with which k and λ follow from the spectrum alone, not from what the user asked for."""


@dataclass(frozen=True)
class Finding:
    """One observation about some layers.

    Attributes:
        kind: Its key in `STORIES`.
        layers: The names of the layers.
        figures: The numbers behind the sentence.
        sentence: The observation in words.
    """

    kind: str
    layers: Sequence[str]
    figures: dict[str, Any]
    sentence: str


def verdict_of(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the `verdict` of a report.

    It has the `findings`, what follows from the `size` of the update, how far the edit is from plain
    `interpolation`, and the `rounding_loss` of edits.

    Args:
        report: The report.
        rows: Its layers, from `rows_of`.
    """
    arguments = report["arguments"]
    is_by_noise = arguments.get("split") == "noise"
    is_default = all(arguments.get(name, value) == value for name, value in DEFAULT_RULE.items())
    is_default = is_default and not arguments.get("layers")
    step = step_of(report)
    has_base, is_mean = bool(sources_in(report, "base")), len(sources_in(report, "finetuned")) > 1
    rows = [] if len(report.get("selection", {}).get("members", ())) == 1 else rows  # a copy of one
    found = findings(rows, is_default=is_default, is_by_noise=is_by_noise, has_base=has_base, step=step)
    is_as_scored = is_default and has_base and not is_mean and step == 1.0
    return {
        "findings": [asdict(finding) for finding in found],
        "size": size(rows) if is_as_scored and not any(each.kind == "lora" for each in found) else None,
        "interpolation": interpolation(rows, wise=step, is_mean=is_mean),
        "rounding_loss": rounding_loss(report),
    }


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """Return the sentences of a verdict, in the order in which they are shown."""
    # reports of older versions have no size and no rounding_loss
    whole = [verdict.get("size"), verdict["interpolation"], verdict.get("rounding_loss")]
    return [each["sentence"] for each in (*verdict["findings"], *whole) if each]


def told_by(verdict: Mapping[str, Any]) -> list[str]:
    """Return the measures that the sentences of a verdict are about, those of its findings last."""
    told = ["equivalent_alpha"] if verdict["interpolation"] else []
    told += ["relative_update"] if verdict.get("size") else []
    told += [measure for each in verdict["findings"] for measure in TOLD.get(str(each.get("kind")), ())]
    return list(dict.fromkeys(told))


def findings(
    rows: Sequence[Row],
    *,
    is_default: bool = True,
    is_by_noise: bool = False,
    has_base: bool = True,
    step: float = 1.0,
) -> list[Finding]:
    """Return what is unusual about the layers. For most fine-tunes that is nothing.

    Args:
        rows: The layers of a report.
        is_default: Whether MonoSoup chose k and λ, not the user.
        is_by_noise: Whether the spectra are split at the edge of the noise.
        has_base: Whether the updates were taken from a base. An adapter needs none.
        step: How far from the base to the edited weights the checkpoint is.
    """
    moved = [
        {**row, "factor": step_in(row, step) * row["equivalent_alpha"]}
        for row in rows
        if row["reason"] is None and row.get("k") is not None
    ]
    own = [row for row in moved if not (has_base and _is_as_large(row))]
    is_lora = sum(map(_is_low, own)) >= max(1, LORA_LAYERS * len(own))
    by_kind: dict[str, list[Row]] = {kind: [] for kind in STORIES}
    by_kind["frozen"] = [row for row in rows if row["reason"] == "unchanged" and math.prod(row["shape"])]
    for row in moved:
        kind = _kind_of(
            row, is_lora=is_lora, is_default=is_default, is_by_noise=is_by_noise, has_base=has_base
        )
        if kind is not None:
            by_kind[kind].append(row)
    return [
        Finding(kind, [row["name"] for row in members], *STORIES[kind](members, len(moved)))
        for kind, members in by_kind.items()
        if members
    ]


def _kind_of(row: Row, *, is_lora: bool, is_default: bool, is_by_noise: bool, has_base: bool) -> str | None:
    if has_base and _is_as_large(row):
        return "wrong_base"
    if is_by_noise:
        if row["k"] == 0:
            return "all_noise"
        if row["cos_alpha"] <= NO_NOISE:
            return "no_noise"
    if is_lora and _is_low(row) and "adapter_rank" not in row:  # of an adapter the rank is known
        return "lora"
    if (row.get("rounding_share") or 0.0) >= ROUNDED:
        return "rounding"
    if not is_default:
        return None
    if row["k"] == row["rank"]:
        return "whole"
    return "weakened" if row["lambda_high"] < WEAKENED else None


def _is_as_large(row: Row) -> bool:
    """Whether the update is as large as the weights, as any update of a base of zeros is."""
    relative = row.get("relative_update")
    return relative is None or relative >= AS_LARGE


def _is_low(row: Row) -> bool:
    """Whether only a few singular values exceed the rounding, with a gap below them."""
    rank, gap = row.get("rank_above_rounding"), row.get("gap_above_rounding")
    if not rank or rank > LORA_RANKS * row["rank"]:
        return False
    return gap is None or gap >= LORA_GAP  # None: there is none below


TOLD = {
    "wrong_base": ("relative_update",),
    "lora": ("rank_above_rounding", "effective_rank"),
    "rounding": ("rank_above_rounding", "effective_rank"),
}
"""The measures that findings are about, beside those that tables always have."""

NOISE = ("all_noise", "no_noise")
"""The kinds of findings on a split at the edge of the noise."""

Story = tuple[dict[str, Any], str]


def _wrong_base(rows: Sequence[Row], of: int) -> Story:
    ratios = [row["relative_update"] for row in rows if row.get("relative_update") is not None]
    range_ = [min(ratios), max(ratios)] if ratios else None
    size = f"‖Δ‖/‖W0‖ {_between(*range_)}" if range_ else "the base is zero"
    large = f"the update is as large as the weights ({size})"
    if 2 * len(rows) > of:
        sentence = (
            "Is BASE the model that was fine-tuned? If not, ignore everything else here:"
            f" {_in(rows, of, lower=True)} {large}."
        )
    else:
        sentence = (
            f"{_in(rows, of)} the weights look newly initialised, like a new head, rather than fine-tuned:"
            f" {large}."
        )
    return {"relative_update": range_}, sentence


def _all_noise(rows: Sequence[Row], of: int) -> Story:
    return {}, (
        f"{_in(rows, of)} the whole update looks like noise, and {_outcome(rows)}: no singular value exceeds"
        " the noise (k = 0), so all of it is the weak part."
    )


def _no_noise(rows: Sequence[Row], of: int) -> Story:
    return {}, (
        f"{_in(rows, of)} the update has no noise to split off, and {_outcome(rows)}: it has exactly low"
        " rank, so all of it is the strong part."
    )


def _lora(rows: Sequence[Row], of: int) -> Story:
    low, high = _range(rows, "rank_above_rounding")
    effective = statistics.median(row["effective_rank"] for row in rows)
    values = "singular value exceeds" if high == 1 else "singular values exceed"
    sentence = (
        f"{_in(rows, of)} the update looks like a merged LoRA of rank {_between(low, high)} (or higher, if"
        f" noise hides its weakest directions): only {_between(low, high)} {values} the rounding noise."
    )
    if effective > high + 1:
        sentence += f" Rounding raises the effective rank to {_short(effective)} (median)."
    return {"rank": [low, high], "effective_rank": effective}, sentence


def _rounding(rows: Sequence[Row], of: int) -> Story:
    low, high = _range(rows, "rounding_share")
    above = statistics.median(row["rank_above_rounding"] for row in rows)
    effective = statistics.median(row["effective_rank"] for row in rows)
    figures = {"rounding_share": [low, high], "rank_above_rounding": above, "effective_rank": effective}
    return figures, (
        f"{_in(rows, of)} much of the update may be noise from rounding to the stored dtype:"
        f" {_percent(low, high)} of Σσ comes from singular values no larger than the error of rounding. The"
        f" effective rank (median {_short(effective)}) counts them; the median number of larger ones is"
        f" {_short(above)}. A checkpoint stored with more bits has less of this noise."
    )


def _whole(rows: Sequence[Row], of: int) -> Story:
    return {}, f"{_in(rows, of)} the update has no weak part, and {_outcome(rows)} (k = r)."


def _weakened(rows: Sequence[Row], of: int) -> Story:
    low, high = _range(rows, "lambda_high")
    return {"lambda_high": [low, high]}, (
        f"Warning: {_in(rows, of, lower=True)} MonoSoup removes most of the update: the spectrum is nearly"
        f" flat, but k < r, so λ_high falls to {_between(low, high)}. --exclude leaves such layers out of the"
        " edit."
    )


def _frozen(rows: Sequence[Row], of: int) -> Story:
    return {}, f"{plural(len(rows), 'layer')}{_named(rows)} did not change: frozen, or copied from the base."


STORIES: dict[str, Callable[[Sequence[Row], int], Story]] = {
    "wrong_base": _wrong_base,
    "all_noise": _all_noise,
    "no_noise": _no_noise,
    "lora": _lora,
    "rounding": _rounding,
    "whole": _whole,
    "weakened": _weakened,
    "frozen": _frozen,
}


def size(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Say what the size of a full fine-tune's update lets one expect of the default edit.

    Args:
        rows: The layers of a report.

    Returns:
        The mean `relative_update` of the edited layers and the `sentence`; None where docs/evidence.md shows
        nothing for updates of this size, or for adapters.
    """
    edited = [row for row in rows if row["reason"] is None and row.get("k") is not None]
    if not edited or any("adapter_rank" in row or _is_as_large(row) for row in edited):
        return None
    mean = statistics.fmean(row["relative_update"] for row in edited)
    if mean < SMALL_UPDATE:
        sentence = (
            "Score the edit before you use it: fine-tuning changed the weights little (mean ‖Δ‖/‖W0‖"
            f" {_short(mean)}). {MEASURED} below {SMALL_UPDATE:g} did not gain from the edit on"
            " data other than what they were trained for, on average."
        )
    elif mean >= LARGE_UPDATE:
        sentence = (
            "The edit may help on data other than what the model was trained for: fine-tuning changed the"
            f" weights a lot (mean ‖Δ‖/‖W0‖ {_short(mean)}). {MEASURED} of {LARGE_UPDATE:g} or more"
            " gained on such data, on average."
        )
    else:
        return None
    return {"relative_update": mean, "sentence": sentence}


def interpolation(rows: Sequence[Row], *, wise: float = 1.0, is_mean: bool = False) -> dict[str, Any] | None:
    """Compare the edit with plain interpolation, (1 − α) base + α fine-tuned, on all edited layers together.

    Args:
        rows: The layers of a report.
        wise: How far the edit is then interpolated from the base, as by `--wise`.
        is_mean: Whether the fine-tuned weights are a mean of several checkpoints.

    Returns:
        The nearest `alpha`, also as `equivalent_alpha`, its `distance` from the edit, the edit's distance
        `from_finetuned`, both as shares of the norm of the whole update, and the `sentence`; None where
        nothing is edited.
    """
    edited = [row for row in rows if row["reason"] is None and row.get("equivalent_alpha") is not None]
    if not edited:
        return None
    largest = max(row["update_norm"] for row in edited)
    weighted = [(row, step_in(row, wise), (row["update_norm"] / largest) ** 2) for row in edited]
    total = math.fsum(share for *_, share in weighted)
    alpha = math.fsum(step * row["equivalent_alpha"] * share for row, step, share in weighted) / total
    away = (
        (math.hypot(step * row["anisotropy"], step * row["equivalent_alpha"] - alpha), share)
        for row, step, share in weighted
    )
    squares = math.fsum(share * far * far for far, share in away)  # ** raises where * is infinite
    distance = math.sqrt(squares / total)
    moved = math.hypot(1.0 - alpha, distance)
    tuned = "mean of the checkpoints" if is_mean else "fine-tuned weights"
    mix = (
        f"mix of the base and the {tuned}: the nearest plain interpolation ({'' if is_mean else 'WiSE-FT, '}"
        f"equivalent α = {alpha:.3g}) is {_percent(distance)} of ‖Δ‖ away."
    )
    it, then = (
        ("The edit", "") if all(step == 1.0 for _, step, _ in weighted) else ("The result", ", after --wise,")
    )
    if moved <= NEAR:
        them = "the weights" if is_mean else "them"
        sentence = f"{it} barely changes the {tuned}: it moves {them} by {_percent(moved)} of ‖Δ‖."
    elif distance <= NEAR:
        sentence = f"{it} is nearly a plain {mix}"
    else:
        sentence = f"{it} differs from every {mix}"
    names = ("equivalent_alpha", "anisotropy")
    means = [_short(statistics.fmean(step * row[name] for row, step, _ in weighted)) for name in names]
    if moved > NEAR and means != [_short(alpha), _short(distance)]:
        sentence += (
            " These two figures weigh layers by the size of their update. The plain means over the"
            f" layers{then} are {means[0]} (equivalent α) and {means[1]} (anisotropy)."
        )
    if alpha < FAR:
        sentence += f" {it} goes {_percent(1.0 - alpha)} of the way back to the base."
    if min(moved, distance) > NEAR:
        sentence += " Only scores tell whether it is better than that interpolation."
    return {
        "alpha": alpha,
        "equivalent_alpha": alpha,
        "distance": distance,
        "from_finetuned": moved,
        "sentence": sentence,
    }


def outcome(factors: Sequence[float]) -> str:
    """Say what an edit does to updates that it multiplies as a whole, by these factors."""
    low, high = min(factors), max(factors)
    if low >= 1.0 - EXACT:
        return "the edit keeps it"
    return "the edit removes it" if high <= EXACT else f"the edit multiplies it by {_between(low, high)}"


def _outcome(rows: Sequence[Row]) -> str:
    return outcome([row["factor"] for row in rows])


def _in(rows: Sequence[Row], of: int, *, lower: bool = False) -> str:
    if len(rows) < of:
        words = f"In {len(rows):,} of {plural(of, 'layer')}{_named(rows)}"
    else:
        words = "In the only layer" if of == 1 else f"In all {of:,} layers"
    return f"{words[0].lower() + words[1:] if lower else words},"


def _named(rows: Sequence[Row]) -> str:
    """The names of the layers in parentheses, where they are few."""
    return f" ({', '.join(row['name'] for row in rows)})" if len(rows) <= MAX_NAMED else ""


def _range(rows: Sequence[Row], name: str) -> tuple[float, float]:
    values = [row[name] for row in rows]
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
