"""Whether an output that is there is what a run would make, so that `run --resume` need not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import MonosoupError, OutputExistsError, masked, some

if TYPE_CHECKING:
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.task import Task

__all__ = ["another", "check_doubts", "refusal_of", "to_make_anew"]

NAMED = 3
"""How many files a message names."""


def another(output: str, which: str = "another call or of other inputs") -> OutputExistsError:
    """The error for an output that is not what a run would make; `which` it is of instead."""
    return to_make_anew(f"the output is of {which}", output)


def to_make_anew(problem: str, output: str) -> OutputExistsError:
    """The error for an output that has to be made anew."""
    return OutputExistsError(
        problem, path=output, hint="pass --resume --overwrite to make it and what follows anew"
    )


def refusal_of(task: Task) -> OutputExistsError | None:
    """Why the output of a task is not what a run would make; None where its weights are there, of this
    call and these inputs.

    Inputs are compared as an interrupted run compares them, except that a new side file is not noticed.
    """
    from monosoup_cli.pipeline.verify_inputs import changed_inputs, modified_files
    from monosoup_cli.report.files import read_report

    call, output = task.call, task.order.output
    try:
        report = read_report(Path(output))
        is_same = _plain(call.identity(call.arguments)) == call.identity(report["arguments"])
        if not (_has_weights(report) and is_same and report["command"] == call.command):
            return another(output)
        for error in changed_inputs(report):
            return another(output, f"other inputs: {error.path}: {error.problem}")
        modified = modified_files(report)
    except (MonosoupError, OSError):
        return another(output)
    return _of_modified(output, modified) if modified else None


def _plain(arguments: Mapping[str, Any]) -> Any:
    """Arguments as a report has them."""
    return json.loads(json.dumps(masked(dict(arguments)), default=os.fspath))


def _has_weights(report: Mapping[str, Any]) -> bool:
    """Whether the files of weights in a report are there in their sizes. Other files are not looked at."""
    from monosoup_cli.report.records import outputs_in

    return all(
        (place if place.is_file() else place / file["name"]).stat().st_size == file["bytes"]
        for place, files in ((Path(output["path"]), output["files"]) for output in outputs_in(report))
        for file in files
    )


def _of_modified(output: str, modified: Mapping[str, Mapping[str, Any]]) -> OutputExistsError:
    """The error for an output some of whose inputs were modified since; with their records then."""
    from monosoup_cli.outputs.open_files import to_set_times
    from monosoup_cli.pipeline.verify_inputs import modified_words

    error = another(output, f"other inputs: {some([*map(modified_words, modified)], NAMED)}")
    if all(_has_size(path, file["bytes"]) for path, file in modified.items()):
        times = to_set_times({path: file["modified"] for path, file in modified.items()})
        error.hint = f"{error.hint}; if only the times are new, set the old ones: {times}"
    return error


def _has_size(path: str, nbytes: int) -> bool:
    with suppress(OSError, ValueError):
        return Path(path).stat().st_size == nbytes
    return False


def check_doubts(output: str, prepare: Callable[[], AbstractContextManager[Planned]]) -> None:
    """Refuse a complete output of which a run with `strict` has doubts.

    Args:
        output: The output.
        prepare: Opens its inputs. They are looked at where its run did not have `strict`.

    Raises:
        MismatchError: There are doubts.
    """
    from monosoup_cli.pipeline.ready import doubts_of, refuse_doubts
    from monosoup_cli.report.files import read_report

    report = read_report(Path(output))
    refuse_doubts(report.get("doubts", ()))
    if not report["arguments"].get("strict"):
        with prepare() as planned:
            refuse_doubts(doubts_of(planned.inputs, planned.plan))
