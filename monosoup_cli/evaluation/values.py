"""Numbers in JSON that somebody else wrote."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping
from typing import Any, TypeGuard

from monosoup_cli.errors import CheckpointError, crop

__all__ = ["MAX_SIZE", "is_number", "is_number_or_missing", "not_a_number", "plain", "value_of"]

MAX_SIZE = 1e100
"""The largest number that is read as a score: sums of a million do not overflow."""


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that can be a score; JSON's true is none, and NaN neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_SIZE


def is_number_or_missing(value: Any) -> bool:
    """Whether a value is a number, or what stands for one that could not be computed: NaN, Infinity, null."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def value_of(task: str, metric: str, metrics: Mapping[str, Any], path: str) -> float:
    """The value of the metric that was chosen of a task.

    Raises:
        CheckpointError: It is no finite number.
    """
    value = metrics[metric]
    if is_number(value):
        return float(value)
    raise not_a_number(value, task, metric, metrics, path)


def not_a_number(
    value: Any, task: str, metric: str, metrics: Mapping[str, Any], path: str, of: str = ""
) -> CheckpointError:
    """The error for the value of a metric that cannot be compared; `of` names the sample, if it is of one."""
    shown = crop("NaN" if value != value else repr(value), 40)
    others = [name for name, other in metrics.items() if is_number(other) and name != metric]
    return CheckpointError(
        f"the {crop(plain(metric), 80)} of the task {crop(repr(task), 80)} is {shown}{of}",
        path=path,
        hint=f"choose another: --metric {shlex.quote(f'{glob.escape(task)}={plain(others[0])}')}"
        if others
        else "evaluate this task again, or remove its result",
    )


def plain(metric: str) -> str:
    """The name of a metric without the filter that is none."""
    return metric.removesuffix(",none")
