"""`finish`: the output of the parts that several machines have made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosoup_cli.api.progress import Watch, watched
from monosoup_cli.errors import CheckpointError, OutputExistsError
from monosoup_cli.options import StrPath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.part import FinishedPart
    from monosoup_cli.pipeline.planned import Planned

__all__ = ["Parts", "finish", "opened"]


def finish(output: StrPath, *, overwrite: bool = False, progress: Watch = None) -> dict[str, Any]:
    """Make an output of the parts that a command with `part` has made, and remove them.

    Args:
        output: The output of that command.
        overwrite: Replace an existing output, once the new one is complete.
        progress: A class of progress bars, such as tqdm; or a function that is called with each tensor and
            True when it is in its place.

    Returns:
        The report, as the command without `part` would have written it, but for times and machines.

    Raises:
        monosoup_cli.errors.MonosoupError: A part is missing or damaged, or they are not of one run.
    """
    with opened(output, overwrite=overwrite) as parts:
        with watched(progress, parts.planned.plan.tensors, "finish") as moved:
            report = parts.finish(moved)
        if parts.planned.destination.options.push is not None:
            parts.planned.destination.push(parts.planned.task.call)
        return report


@dataclass(frozen=True)
class Parts:
    """All parts of an output, and the run that they are of, opened again."""

    found: Sequence[FinishedPart]
    planned: Planned

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Make the output, and remove the parts."""
        from monosoup_cli.pipeline.parts import finish

        return finish(self.planned, self.found, progress)


@contextmanager
def opened(output: StrPath, *, overwrite: bool = False) -> Iterator[Parts]:
    """Find the parts of an output, and open what they were made of.

    Raises:
        MonosoupError: A part is missing, or the inputs cannot be opened.
    """
    from monosoup_cli.api.again import recorded_call
    from monosoup_cli.outputs.workplace import finish_replacing
    from monosoup_cli.pipeline.part import find_parts, typical

    finish_replacing(Path(output))
    parts = find_parts(Path(output))
    facts = typical(parts).facts
    here: dict[str, Any] = {
        "output": os.fspath(output),
        "device": "cpu",
        "workers": None,
        "overwrite": overwrite,
        "resume": True,
    }
    command, arguments = recorded_call(
        facts["command"], {**facts["arguments"], **here}, dict(facts["revisions"])
    )
    try:
        planned = command.prepare(**arguments)
    except OutputExistsError as error:
        error.problem = "the output already exists"
        error.hint = "to replace it, pass --overwrite; if it is of these parts, remove them"
        raise
    except CheckpointError as error:
        is_elsewhere = not Path(str(error.path)).is_absolute() and facts["cwd"] != str(Path.cwd())
        if is_elsewhere and not Path(str(error.path)).exists():
            error.hint = f"the parts were made in another folder: run finish in {facts['cwd']}"
        raise
    with planned:
        yield Parts(parts, planned)
