"""Run the command of a report again, and compare what comes out."""

from __future__ import annotations

import fcntl
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import CheckpointError, MonosoupError, ReportError, UsageError, crop, mapped
from monosoup_cli.sources.folders import is_plain_name
from monosoup_cli.sources.hub_ids import pinned_id

if TYPE_CHECKING:
    from monosoup_cli.api.command import WritingCommand
    from monosoup_cli.outputs.writer import PartialOutput
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.pipeline.inputs import Inputs
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.task import Choice, ChooserContext
    from monosoup_cli.pipeline.verify_output import Output
    from monosoup_cli.tensors.plan import PlannedTensor, Selection

    Watch = Callable[[Sequence[PlannedTensor]], AbstractContextManager[Progress]]
    """Gets the tensors of a run, and watches its progress."""

__all__ = ["made_again", "other_bytes", "recorded_call", "recorded_step"]

SCRATCH = ".monosoup-verify-"
"""How the names of the folders begin in which outputs are made again."""
ELSEWHERE: Mapping[str, Any] = {
    "report": None,
    "workers": None,
    "overwrite": False,
    "resume": False,
    "push": None,
    "public": False,
    "part": None,
    "engine": "threads",
    "insecure_cluster": False,
    "strict": False,
}
"""The options of the run that the bytes do not depend on."""


@dataclass(frozen=True)
class _AsRecorded:
    """Chooses the members that a report names, so that no command of the report is run."""

    members: Sequence[int]
    selection: Mapping[str, Any]
    drafts: int = 0
    trials: int = 0
    candidates: int = 0

    def check(self, inputs: Inputs, selection: Selection) -> None:
        """Nothing: the choice was made."""

    def choose(self, context: ChooserContext, partial: PartialOutput | None, progress: Progress) -> Choice:
        """The recorded members."""
        from monosoup_cli.pipeline.task import Choice

        return Choice(self.members, dict(self.selection))


def made_again(opened: Output, output: str, watch: Watch | None = None) -> dict[str, Any]:
    """Run the command of a report again into a temporary folder, and return the new report.

    A greedy soup takes the members that the report names: its score command is not run.

    Args:
        opened: The output and its report.
        output: Its path; what is made is beside it for a moment, or in the temporary folder of the system.
        watch: Watches the run.

    Raises:
        MonosoupError: The command cannot be run again, or fails.
    """
    from monosoup_cli.pipeline.verify_inputs import check_places

    try:
        check_places(opened.report)
        return _make(opened.report, output, watch)
    except (ReportError, UsageError) as error:
        error.path = error.path or opened.report_path
        raise


def _make(report: Mapping[str, Any], output: str, watch: Watch | None) -> dict[str, Any]:
    beside = Path(output).resolve().parent
    is_writable = os.path.lexists(output) and os.access(beside, os.W_OK)
    with _scratch(beside if is_writable else Path(tempfile.gettempdir())) as folder:
        name = Path(str(report["arguments"].get("output"))).name
        place = folder / (name if is_plain_name(name) else "out")
        _, arguments, opened = recorded_step(report, str(place))
        with opened(arguments) as planned:
            is_recorded = isinstance(planned.task.chooser, _AsRecorded)
            return _run(planned, watch, passes=2 if planned.task.chooser and not is_recorded else 1)


Opened = Callable[[Mapping[str, Any]], AbstractContextManager["Planned"]]
"""Opens the inputs of a recorded call, whose arguments it gets."""


def recorded_step(
    report: Mapping[str, Any], output: str
) -> tuple[WritingCommand[...], dict[str, Any], Opened]:
    """The call of a report with another output: the command, the arguments, and what opens the inputs.

    A greedy soup takes the members that the report names. No program of the report is run.

    Raises:
        ReportError: The command cannot be run again.
    """
    arguments = {**report["arguments"], **ELSEWHERE}
    is_greedy = bool(arguments.get("greedy"))
    if is_greedy:
        recorded = str(arguments.get("score_command"))  # it has to be there, and is not run
        arguments["score_command"] = recorded if "{}" in recorded else "{}"
    if "score" in arguments:
        arguments["score"] = []
    commits = {record["source"]: record.get("revision") for record in report["inputs"]}
    command, arguments = recorded_call(report["command"], arguments, commits)
    if "," in str(arguments.get("device")):
        arguments["device"] = "auto"
    chooser = None
    if is_greedy:
        members = _members(report)
        names = dict(zip(report["arguments"]["finetuned"], arguments["finetuned"], strict=True))
        selection = mapped(report["selection"], lambda text: names.get(text, text))
        chooser = _AsRecorded(members, selection)

    @contextmanager
    def opened(arguments: Mapping[str, Any]) -> Iterator[Planned]:
        with command.prepare(**arguments) as planned:
            is_kept = chooser is None
            yield planned if is_kept else replace(planned, task=replace(planned.task, chooser=chooser))

    return command, {**arguments, "output": output}, opened


def recorded_call(
    name: str, arguments: Mapping[str, Any], commits: Mapping[str, str | None]
) -> tuple[WritingCommand[...], dict[str, Any]]:
    """A command, and the arguments of a recorded call of it, with the commits that were read on the Hub.

    Raises:
        ReportError: There is no such command, or it does not take these arguments.
    """
    from monosoup_cli.api.commands import COMMANDS

    command = COMMANDS.get(name)
    if command is None:
        raise ReportError("has a command that writes no checkpoint", found=crop(repr(name)))
    for argument, value in arguments.items():
        declared = command.declared.get(argument)
        if declared is None or not declared.accepts(value):
            raise ReportError(f"has an argument that {name} does not take", found=crop(repr(argument)))
    for one in command.declared.values():
        if one.default is inspect.Parameter.empty and one.name not in arguments:
            raise ReportError(f"has no {one.name}, which {name} needs")
    pinned = dict(arguments)
    for role in ("base", "finetuned", "onto"):
        value = pinned.get(role)
        if isinstance(value, list):
            pinned[role] = [pinned_id(one, commits.get(one)) for one in value]
        elif value is not None:
            pinned[role] = pinned_id(value, commits.get(value))
    return command, pinned


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Make a folder for a while; those that killed runs left in the same place are removed."""
    for left in place.glob(f"{SCRATCH}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(dir=place, prefix=SCRATCH, ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        with suppress(OSError):  # without a lock, as on NFS, no run takes another's folder for left
            stack.enter_context(_locked(Path(folder)))
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        OSError: Another run holds it, or there is no such lock here.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _run(planned: Planned, watch: Watch | None, passes: int) -> dict[str, Any]:
    from monosoup_cli.pipeline.engine import ignore
    from monosoup_cli.pipeline.execute import execute
    from monosoup_cli.pipeline.ready import make_ready

    ready = make_ready(planned)
    with watch([*ready.plan.tensors] * passes) if watch else nullcontext(ignore) as progress:
        return execute(ready, progress)


def _members(report: Mapping[str, Any]) -> list[int]:
    """The numbers of the checkpoints that were averaged."""
    sources: Sequence[str] = report["arguments"]["finetuned"]
    members = report.get("selection", {}).get("members", ())
    if not members or not set(members) <= set(sources):
        raise ReportError("does not say which checkpoints were averaged")
    return [sources.index(name) for name in members]


def other_bytes(opened: Output, again: Mapping[str, Any]) -> Iterator[MonosoupError]:
    """Compare the files of an output's report with those of another report of the same command.

    The model card, which has the name of the output, and scores that were put in later are left out.
    """
    from monosoup_cli.pipeline.repeated import checksums, why_others

    made, why = checksums(again), why_others(opened.report, again)
    for name, sha256 in checksums(opened.report).items():
        if made.get(name) != sha256:
            yield CheckpointError(
                "made again, it has other bytes" if name in made else "made again, this file is missing",
                path=opened.shown(name),
                expected=sha256 if name in made else None,
                found=made.get(name),
                hint=f"{why}; go back to what the run had, or make the output again",
            )
