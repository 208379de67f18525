"""The plan of a command, without its run: what `--dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monosoup_cli.api.progress import Watch, watched

if TYPE_CHECKING:
    from monosoup_cli.pipeline.planned import Planned

__all__ = ["plan_of"]


def plan_of(planned: Planned, watch: Watch) -> dict[str, Any]:
    """What a run would do to each tensor, and what it needs, as `--dry-run --format json` prints it.

    Args:
        planned: The task on its opened inputs.
        watch: Is told of the tensors that have to be read for the plan.
    """
    from monosoup_cli.pipeline.cost import estimate
    from monosoup_cli.pipeline.execute import choose
    from monosoup_cli.pipeline.notices import notices_of
    from monosoup_cli.pipeline.preview import preview
    from monosoup_cli.pipeline.ready import foresee, make_ready
    from monosoup_cli.report.tables import plan_to_json
    from monosoup_cli.sources.transfer import fetch

    is_foreseen = planned.draft.is_foreseeable
    with watched(watch, planned.examined) as progress:
        ready = foresee(planned) if is_foreseen else make_ready(planned, progress)
    selection = members = None
    chooser = planned.task.chooser
    if chooser is not None and not chooser.drafts:
        fetch(ready.downloads)
        with watched(watch, ready.plan.tensors) as progress:
            choice = choose(ready, None, progress)
        selection, members = choice.selection, choice.members
    return plan_to_json(preview(ready, estimate(ready, members)), notices_of(ready), selection)
