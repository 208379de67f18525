"""How many edits are too small for the dtype of the output, so that rounding undoes most of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monosoup_cli.report.records import measures_of
from monosoup_cli.report.steps import step_in, step_of
from monosoup_cli.report.words import plural

__all__ = ["rounding_loss"]

SHORT = {"BF16": "bfloat16", "F16": "float16"}
"""The dtypes of 16 bits as files have them, and as --dtype has them."""
HALF_STEP = {"bfloat16": 2.0**-9, "float16": 2.0**-12}
"""Half the spacing of a dtype's numbers, as a share of those just below a power of two."""
LOST = 0.35
"""‖edit‖/‖W0‖, in half steps, below which rounding undoes most of an edit. docs/method.md has why."""
FEW_STEPS = 1 / 3
"""Up to which share of its update an edit is less than half a step where the update is one step."""
LEAST = 0.0005
"""The share of its update from which an edit moves the weights."""


def rounding_loss(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the part of an edit's verdict on updates whose edit rounding undoes; None if they are few.

    The fine-tuned weights must be numbers of a 16-bit dtype: an adapter's, a mean and decoded ones are not.

    Args:
        report: The report, with its layers.
    """
    arguments, step = report["arguments"], step_of(report)
    if report["command"] != "edit" or arguments.get("as_adapter"):
        return None
    edited = [layer for layer in report.get("layers", ()) if layer["action"] == "edited"]
    tuned = [one for one in report["inputs"] if one["role"] == "finetuned"]
    if len(tuned) != 1 or "decoded" in tuned[0] or any("adapter_rank" in layer for layer in edited):
        return None
    moves, lost = 0, list[str]()
    for layer in edited:
        stored = SHORT.get(layer["dtype"], "")
        written = stored if arguments.get("dtype", "keep") == "keep" else arguments["dtype"]
        is_on_grid = HALF_STEP.get(stored, 0.0) >= HALF_STEP.get(written, 1.0)
        for part in measures_of([layer]) if step_in({**layer}, step) == 1.0 else ():
            moved = math.hypot(1.0 - part["equivalent_alpha"], part["anisotropy"])
            moves += moved >= LEAST
            if is_on_grid and LEAST <= moved < FEW_STEPS and part["relative_update"] is not None:
                lost += [written] * (moved * part["relative_update"] < LOST * HALF_STEP[written])
    if not lost or 2 * len(lost) < moves:
        return None
    dtypes = " or ".join(sorted({*lost}))
    return {
        "updates": len(lost),
        "of": moves,
        "sentence": f"{len(lost):,} of {plural(moves, 'update')}: rounding to {dtypes} undoes most of the"
        " edit, because it is smaller than the steps of that dtype; add --dtype float32 to keep it.",
    }
