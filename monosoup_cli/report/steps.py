"""The step of `edit --wise` from the base to the edited weights, and what reports have from before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosoup_cli.report.rows import Row

__all__ = ["BEFORE", "OF_THE_EDIT", "before_step", "has_step", "moves_all", "step_in", "step_of"]

OF_THE_EDIT = ("lambda_high", "lambda_low", "equivalent_alpha", "anisotropy")
BEFORE = "λ_high, λ_low, equivalent α and anisotropy are from before --wise"
"""What is said beside the measures that are those of the edit, and not of the output."""


def step_of(report: Mapping[str, Any]) -> float:
    """Return how far from the base to the edited weights a report's checkpoint is: 1, or its `--wise`."""
    wise = report["arguments"].get("wise")
    return float(wise) if isinstance(wise, (int, float)) else 1.0


def step_in(row: Row, step: float) -> float:
    """How far from the base to the edited weights a layer is: by its settings, or as the checkpoint."""
    own = row.get("settings", {}).get("wise", step)
    return float(own) if isinstance(own, (int, float)) else 1.0


def has_step(arguments: Mapping[str, Any]) -> bool:
    """Whether `wise` among the arguments of an edit, or in the settings of its layers, moves anything."""
    wise = arguments.get("wise")
    steps = [*(wise if isinstance(wise, list) else [wise]), *_of_layers(arguments)]
    return any(step not in (None, 1) for step in steps)


def moves_all(arguments: Mapping[str, Any]) -> bool:
    """Whether `wise` among the arguments of an edit moves the whole output, and not some layers alone."""
    return has_step({**arguments, "layers": None})


def _of_layers(arguments: Mapping[str, Any]) -> list[Any]:
    return [own["wise"] for own in (arguments.get("layers") or {}).values() if "wise" in own]


def before_step(report: Mapping[str, Any]) -> str:
    """Return `BEFORE`, with the step; "" where all measures are those of the output."""
    arguments = report["arguments"]
    if report["command"] != "edit" or not has_step(arguments):
        return ""
    wise = arguments.get("wise")
    is_one = isinstance(wise, (int, float)) and not _of_layers(arguments)
    return f"{BEFORE} {wise:g}" if is_one else BEFORE
