"""The checkpoints of one training run, by the steps in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from monosoup_cli.errors import UsageError

__all__ = ["checkpoints_of", "steps_of"]

CHECKPOINT = re.compile(r"(checkpoint|global_step|global-step|step|iter|epoch|ckpt)[-_]?(\d+)", re.IGNORECASE)
"""The folders that training programs make: checkpoint-500, global_step500, step_500, iter_0000500."""
NUMBER = re.compile(r"\d+")


def checkpoints_of(run: str) -> list[str]:
    """The checkpoints in the folder of a training run, in the order of their steps; none for another path."""
    place = Path(run)
    if not place.is_dir():
        return []
    found = [(one, CHECKPOINT.fullmatch(one.name)) for one in place.iterdir() if one.is_dir()]
    steps = [(int(match[2]), os.path.join(run, one.name)) for one, match in found if match]  # noqa: PTH118
    return [path for _, path in sorted(steps)]


def steps_of(checkpoints: Sequence[str]) -> list[int]:
    """The steps of checkpoints, by the last number in each name; 0, 1, … where no name has one.

    Raises:
        UsageError: Only some names have a number, or two have the same.
    """
    names = [Path(path.rstrip("/")).name for path in checkpoints]
    found = [NUMBER.findall(Path(name).stem if name.endswith(".safetensors") else name) for name in names]
    if not any(found):
        return list(range(len(names)))
    for path, numbers in zip(checkpoints, found, strict=True):
        if not numbers:
            raise UsageError("its name has no step, and those of others have one", path=path)
    steps = [int(numbers[-1]) for numbers in found]
    for number, step in enumerate(steps):
        if step in steps[:number]:
            raise UsageError(
                "two checkpoints have the same step in their names",
                path=checkpoints[number],
                found=step,
                hint="--weights takes a weight for each instead",
            )
    return steps
