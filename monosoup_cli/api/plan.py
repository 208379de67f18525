"""The plan of a command, without its run: what `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.progress import Watch, watched

if TYPE_CHECKING:
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.ready import Ready
    from monosoup_cli.report.preview import Preview

__all__ = ["chooses_dry", "plan_of", "preview_of"]


def plan_of(planned: Planned, watch: Watch) -> dict[str, Any]:
    """What a run would do to each tensor, and what it needs, as `--dry-run --format json` prints it.

    Args:
        planned: The task on its opened inputs.
        watch: Is told of the tensors that have to be read for the plan.
    """
    from monosoup_cli.pipeline.notices import notices_of
    from monosoup_cli.pipeline.ready import foresee, make_ready
    from monosoup_cli.report.tables import plan_to_json
    from monosoup_cli.sources.transfer import fetch

    is_foreseen = planned.draft.is_foreseeable
    with watched(watch, planned.examined, "examining") as progress:
        ready = foresee(planned) if is_foreseen else make_ready(planned, progress)
    if chooses_dry(planned):
        fetch(ready.downloads)
    with watched(watch, ready.plan.tensors if chooses_dry(planned) else (), "comparing") as progress:
        plan, selection = preview_of(ready, progress)
    return plan_to_json(plan, notices_of(ready), selection)


def chooses_dry(planned: Planned) -> bool:
    """Whether a dry run chooses among the inputs, for which it reads them."""
    chooser = planned.task.chooser
    return chooser is not None and not chooser.drafts


def preview_of(ready: Ready, progress: Progress) -> tuple[Preview, Mapping[str, Any] | None]:
    """The plan of a run, and the choice among the inputs that a dry run makes; None where it makes none."""
    from monosoup_cli.pipeline.cost import estimate
    from monosoup_cli.pipeline.execute import choose
    from monosoup_cli.pipeline.preview import preview

    if not chooses_dry(ready.planned):
        return preview(ready, estimate(ready)), None
    choice = choose(ready, None, progress)
    return preview(ready, estimate(ready, choice.members)), choice.selection
