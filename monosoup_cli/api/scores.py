"""`scores`: did it help? What evaluation harnesses left of the base, the fine-tuned and the edited models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import UsageError
from monosoup_cli.options import StrPath, as_list, path_list

if TYPE_CHECKING:
    from monosoup_cli.evaluation.comparison import Progress

__all__ = ["scores"]


def scores(
    base: StrPath,
    finetuned: StrPath,
    edited: StrPath | Sequence[StrPath],
    *,
    in_: str | Sequence[str] = (),
    out: str | Sequence[str] = (),
    metric: str | Sequence[str] = (),
    into: StrPath | None = None,
) -> dict[str, Any]:
    """Compare the scores that evaluation harnesses left of a base, its fine-tune, and edits of that.

    Each model is a file or a folder of lm-evaluation-harness, of clip_benchmark, or JSONL or CSV with id, and
    score or correct.

    Args:
        base: The scores of the base.
        finetuned: The scores of the fine-tuned model.
        edited: The scores of each edited model.
        in_: Globs over the names of tasks, and of the harness's groups, that are in distribution.
        out: The same for those out of distribution.
        metric: `METRIC` for all tasks that have it, or `TASK=METRIC`. By default, the first of each task.
        into: An output on the disk, whose report and model card get the comparison. There must be one edited
            model.

    Returns:
        A dict with `tasks`, `groups` and `notes`; docs/scores.md explains them.

    Raises:
        monosoup_cli.errors.MonosoupError: Scores cannot be read, or are not of the same samples.
    """
    return compare(
        os.fspath(base),
        os.fspath(finetuned),
        path_list(edited),
        in_=as_list(in_),
        out=as_list(out),
        metric=as_list(metric),
        into=None if into is None else os.fspath(into),
    )


def compare(
    base: str,
    finetuned: str,
    edited: Sequence[str],
    *,
    in_: Sequence[str],
    out: Sequence[str],
    metric: Sequence[str],
    into: str | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Do what `scores` does; errors name the options of the shell."""
    from monosoup_cli.evaluation.comparison import compare_scores

    groups = {"in": in_, "out": out}
    if into is None:
        return compare_scores(base, finetuned, edited, groups, metric, progress)
    from monosoup_cli.pipeline.scored import open_scored, put_scores

    if len(edited) != 1:
        raise UsageError("--into takes the scores of one edited model", found=f"those of {len(edited)}")
    opened = open_scored(into)
    found = compare_scores(base, finetuned, edited, groups, metric, progress)
    put_scores(opened, found)
    return found
