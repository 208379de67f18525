"""What is scored while a command runs: as a live table, or as lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from monosoup_cli.report.words import joined_label, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from monosoup_cli.methods.model_soup import Trial

__all__ = ["Show", "of_scores", "of_soup"]

Show: TypeAlias = "Callable[[Callable[[], RenderableType], str], None]"
"""Shows what a function makes where there is a live table, and a line otherwise."""


def of_soup(show: Show) -> Callable[[str, Trial | float | None, int], None]:
    """Show the trials of a greedy soup."""
    done: list[tuple[str, float, bool]] = []

    def watch(source: str, trial: Trial | float | None, count: int) -> None:
        others = f" averaged with {plural(count - 1, 'other')}" if count > 1 else ""
        now = f"scoring {source}{others}" if trial is None else ""
        if trial is not None and not isinstance(trial, float):
            done.append((source, trial.score, trial.joined))

        def table() -> RenderableType:
            from monosoup_cli.report.selections import trials_table

            return trials_table(done, now)

        if trial is None:
            show(table, now)
        elif isinstance(trial, float):  # of the checkpoint alone
            show(table, f"{source}: {trial:g}")
        else:
            show(table, f"trial {len(done)}: {source}: {trial.score:g}, {joined_label(trial.joined)}")

    return watch


def of_scores(show: Show) -> Callable[[str, Mapping[str, float] | None], None]:
    """Show the scores of checkpoints."""
    done: list[tuple[str, Mapping[str, float]]] = []

    def on_score(label: str, scores: Mapping[str, float] | None) -> None:
        now = f"scoring {label}" if scores is None else ""
        if scores is not None:
            done.append((label, scores))

        def table() -> RenderableType:
            from monosoup_cli.report.searched import scoring_table

            return scoring_table(done, now)

        words = ", ".join(f"{name} {score:g}" for name, score in (scores or {}).items())
        show(table, now or f"{label}: {words}")

    return on_score
