"""The checkpoints of one training run, by the steps in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from monosoup_cli.errors import UsageError
from monosoup_cli.formats.table import METADATA, WEIGHTS, is_standard

__all__ = ["CHECKPOINT", "checkpoints_of", "steps_of"]

CHECKPOINT = re.compile(
    r"(?:checkpoint|global_step|global-step|step|iter|epoch|ckpt)[-_=]?(\d+)", re.IGNORECASE
)
"""What training programs call folders: checkpoint-500, global_step500, step_500, iter_0000500."""
FSDP = "pytorch_model_fsdp_0"
NUMBER = re.compile(r"\d+")
COMMIT = re.compile(r"@[0-9a-f]{40}$")


def checkpoints_of(run: str) -> list[str]:
    """The checkpoints in the folder of a training run, in the order of their steps; none for another path."""
    place = Path(run)
    if not place.is_dir():
        return []
    found = [(one, CHECKPOINT.fullmatch(one.name)) for one in place.iterdir() if one.is_dir()]
    steps = [(int(match[1]), os.path.join(run, one.name)) for one, match in found if match]  # noqa: PTH118
    return [_with_chunks(path) for _, path in sorted(steps)]


def _with_chunks(checkpoint: str) -> str:
    """The folder of the weights inside a checkpoint of accelerate's FSDP; of others the same path."""
    inner = os.path.join(checkpoint, FSDP)  # noqa: PTH118
    is_whole = any(is_standard(one.name) for one in Path(checkpoint).iterdir())
    return inner if Path(inner, METADATA).is_file() and not is_whole else checkpoint


def steps_of(checkpoints: Sequence[str]) -> list[int]:
    """The steps of checkpoints, by their names; 0, 1, … where no name has one.

    A step is the number in a name such as checkpoint-500, of the file or of its folder; otherwise the last
    number in the name.

    Raises:
        UsageError: Only some names have a number, or two have the same.
    """
    found = [_step_in(path) for path in checkpoints]
    if all(step is None for step in found):
        return list(range(len(found)))
    steps: list[int] = []
    for path, step in zip(checkpoints, found, strict=True):
        if step is None:
            raise UsageError("its name has no step, and those of others have one", path=path, hint=GIVEN)
        if step in steps:
            raise UsageError(
                "two checkpoints have the same step in their names", path=path, found=step, hint=GIVEN
            )
        steps.append(step)
    return steps


GIVEN = "--steps gives the step of each instead"


def _step_in(path: str) -> int | None:
    place = Path(COMMIT.sub("", path.rstrip("/")))
    name = place.stem if place.suffix in WEIGHTS else place.name
    for words in (name, place.parent.name):
        if called := CHECKPOINT.findall(words):
            return int(called[-1])
    numbers = NUMBER.findall(name)
    return int(numbers[-1]) if numbers else None
