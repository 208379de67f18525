"""The commands that write an output, made from the Python functions, with the options for their messages."""

from __future__ import annotations

import gc
import inspect
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monosoup_cli.api.command import execute_by_engine, passes_over
from monosoup_cli.api.commands import COMMANDS
from monosoup_cli.cli.console import Console
from monosoup_cli.cli.options import NoProgress, Quiet, TalkFormat, add_options, shell_help
from monosoup_cli.cli.trials import of_scores, of_soup
from monosoup_cli.errors import OutputError
from monosoup_cli.report.words import size

if TYPE_CHECKING:
    from monosoup_cli.api.command import Command
    from monosoup_cli.pipeline.planned import Planned
    from monosoup_cli.pipeline.ready import Ready
    from monosoup_cli.pipeline.task import OnScore
    from monosoup_cli.report.preview import Preview

__all__ = ["WRITING", "import_torch", "push", "run_planned", "shell_command", "show_report"]

M_MMAP_THRESHOLD = -3
"""The number of the option in glibc's malloc.h."""


def shell_command(command: Command[..., Planned]) -> Callable[..., None]:
    """The shell command for a Python function that writes an output."""

    def run(
        arguments: dict[str, Any],
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run",
                help="Check whatever can be checked from headers, print the plan and an estimate of the time,"
                " and write nothing. Data is read only where the plan depends on it.",
            ),
        ] = False,
        format: Annotated[
            TalkFormat,
            typer.Option("--format", help="json prints the report, or the plan of a dry run, on stdout."),
        ] = "table",
        quiet: Quiet = False,
        no_progress: NoProgress = False,
    ) -> None:
        console = Console(quiet=quiet, live=not no_progress)
        with console.growing_table() as show:
            if "watch" in inspect.signature(command).parameters:
                arguments["watch"] = of_soup(show)
            with command.prepare(**arguments) as planned:
                run_planned(planned, console, of_scores(show), is_dry=dry_run, as_json=format == "json")

    return add_options(run, command.__name__, shell_help(command), command.declared)


def run_planned(
    planned: Planned,
    console: Console,
    on_score: OnScore,
    *,
    is_dry: bool,
    as_json: bool,
    take: Callable[[str], object] | None = None,
) -> None:
    """Print the plan of a dry run; otherwise run the task, with progress, and print what it did.

    Args:
        planned: The task on its opened inputs.
        console: Where to print.
        on_score: Is told of scores.
        is_dry: Whether to plan alone.
        as_json: Whether stdout gets JSON.
        take: Takes the JSON of the report in the place of stdout.
    """
    from monosoup_cli.api.plan import chooses_dry
    from monosoup_cli.outputs.workplace import partial_path, parts_path
    from monosoup_cli.pipeline.notices import notices_of
    from monosoup_cli.pipeline.ready import doubts_of_headers, foresee, make_ready
    from monosoup_cli.sources.transfer import fetch

    if is_dry and planned.draft.is_foreseeable:
        ready = foresee(planned)
    elif planned.examined:
        with console.download_progress(planned.downloads) as advance:
            fetch(planned.downloads, advance)
        import_torch()
        with console.progress(planned.examined, "examining") as progress:
            ready = make_ready(planned, progress)
    else:
        ready = make_ready(planned)
    is_refused = planned.destination.options.strict and not is_dry  # then the first doubt is the error
    refusal = doubts_of_headers(planned.inputs, ready.plan)[:1] if is_refused else []
    noted = notices_of(ready)
    for notice in noted:
        if notice not in refusal:
            console.note(f"note: {notice}")
    report_path, chooses = planned.destination.report_path, chooses_dry(planned)
    as_json = as_json or report_path is None
    if not is_dry or chooses:
        with console.download_progress(ready.downloads) as advance:
            fetch(ready.downloads, advance)
    import_torch()
    if is_dry:
        _show_plan(ready, console, chooses=chooses, as_json=as_json)
        return
    if ready.share.part is not None:
        _make_part(ready, console, as_json=as_json)
        return
    for doubt in () if console.quiet else ready.doubts[is_refused:]:
        if doubt not in noted:
            console.note(f"note: {doubt}")
    doing = "writing" if planned.examined else ""
    with _noting_what_is_left(planned, console), console.progress(passes_over(ready), doing) as progress:
        report = execute_by_engine(ready, progress, on_score)
    show_report(report, report_path, console, as_json=as_json, take=take)
    if planned.task.repeats is not None:  # then it was compared with that report
        for notice in (one for one in report["notes"] if one not in noted):
            console.note(f"note: {notice}")
    left_over = partial_path(planned.destination.path)
    if left_over.exists():
        console.note(f"note: {left_over} cannot be removed whole; remove it yourself")
    parts = parts_path(planned.destination.path)
    if parts.is_dir():
        console.note(f"note: {parts} has parts of an output, which this run did not use; it stays as it is")
    if planned.destination.options.push is not None:
        push(planned, console)


@contextmanager
def _noting_what_is_left(planned: Planned, console: Console) -> Iterator[None]:
    """Say how to go on, where a run ends early and has left some work."""
    try:
        yield
    except (SystemExit, MemoryError, OSError, RuntimeError):  # a signal, or the system gives no more
        destination = planned.destination
        if destination.is_unfinished:
            options = "--overwrite --resume" if destination.options.overwrite else "--resume"
            console.note(f"note: rerun the command with {options} to continue from here")
        raise


def _make_part(ready: Ready, console: Console, *, as_json: bool) -> None:
    """Make a part, with progress, and print what it has."""
    from monosoup_cli.pipeline.parts import make_part
    from monosoup_cli.report.tables import part_table

    destination = ready.planned.destination
    with _noting_what_is_left(ready.planned, console), console.progress(ready.share.tensors) as progress:
        part = make_part(ready, progress)
    if as_json:
        console.data(json.dumps(part.facts, indent=1) + "\n")
    console.table(part_table(part.facts, part.path))
    if not part.facts["records"]:
        console.note("note: this part has nothing to make: fewer parts are enough for this output")
    if not part.is_new:
        console.note("note: this part was complete already, and is as it was")
    again = " --overwrite" if destination.options.overwrite and os.path.lexists(destination.path) else ""
    command = f"monosoup finish {shlex.quote(str(destination.path))}{again}"
    console.note(f"note: once all parts are made, `{command}`")


def show_report(
    report: Mapping[str, Any],
    path: Path | None,
    console: Console,
    *,
    as_json: bool,
    take: Callable[[str], object] | None = None,
) -> None:
    """Print what a run did; `take` takes the JSON in the place of stdout."""
    from monosoup_cli.report.files import as_text
    from monosoup_cli.report.notes import notes_on
    from monosoup_cli.report.searched import made_by, search_table
    from monosoup_cli.report.selections import selection_table
    from monosoup_cli.report.tables import averaged_table, summary_table

    if as_json:
        try:
            (take or console.data)(as_text(report))
        except OutputError as error:
            if path is None:
                error.problem += "; the output is complete, but its report is lost"
                error.hint = "run it again with --overwrite"
            raise
    if "averaged" in report:
        console.table(averaged_table(report["averaged"]))
        console.note("")
    if "selection" in report:
        console.table(selection_table(report["selection"]))
        console.note("")
    if "search" in report:
        console.table(search_table(report))
        console.note(made_by(report), is_to_copy=True)
        console.note("")
    console.table(summary_table(report, path or Path("stdout")))
    for note in notes_on(report):
        console.note(f"note: {note}")
    if len(report.get("selection", {}).get("members", ())) == 1:
        console.note("note: only one checkpoint is left, so the output is a copy of its tensors")
    elif not any(output["summary"]["edited"] for output in report.get("outputs", [report])):
        console.note("note: nothing was edited; the report gives the reason for every tensor")


def push(planned: Planned, console: Console) -> None:
    """Upload a finished output."""
    destination = planned.destination
    nbytes = sum(path.stat().st_size for path in destination.path.rglob("*"))
    console.note(f"uploading {size(nbytes)} to {destination.options.push}")
    try:
        address = destination.push(planned.task.call)
    except SystemExit:  # a signal
        console.note(f"note: {destination.path} is complete: `{destination.upload_command}` uploads it")
        raise
    console.note(f"pushed to {address}")


def import_torch() -> None:
    """Import torch, and enable the garbage collector again, which `__main__.run` disabled. It runs rarely,
    because it would walk over the plan and all records many times, and they have no cycles."""
    import torch  # noqa: F401

    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(100_000)
        gc.enable()
    _give_freed_buffers_back()


def _give_freed_buffers_back() -> None:
    """Have glibc map every buffer of a megabyte or more on its own, and so give it back when it is freed.

    Otherwise that limit grows to the largest buffer that was freed, up to 32 MB. What lies between smaller
    ones then stays with the process, more of it with every tensor.
    """
    from ctypes import CDLL

    if "MALLOC_MMAP_THRESHOLD_" in os.environ:  # the user has chosen
        return
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _show_plan(ready: Ready, console: Console, *, chooses: bool, as_json: bool) -> None:
    from monosoup_cli.api.plan import preview_of
    from monosoup_cli.pipeline.engine import ignore
    from monosoup_cli.pipeline.notices import notices_of
    from monosoup_cli.report.selections import selection_table
    from monosoup_cli.report.tables import plan_table, plan_to_json

    with console.progress(ready.plan.tensors) if chooses else nullcontext(ignore) as progress:
        plan, selection = preview_of(ready, progress)
    if as_json:
        console.data(json.dumps(plan_to_json(plan, notices_of(ready), selection), indent=1) + "\n")
        return
    if selection is None:
        _show_tensors(plan, console)
        console.data("\n")
    console.table(plan_table(plan), to_stdout=True)
    if selection is not None:
        console.data("\n")
        console.table(selection_table(selection), to_stdout=True)


def _show_tensors(plan: Preview, console: Console) -> None:
    """Print a row for each tensor: folded in a terminal if they are few, and as lines otherwise."""
    from rich.text import Text

    from monosoup_cli.report.grid import Name, aligned, grid
    from monosoup_cli.report.tables import MAX_FOLDED_ROWS, plan_rows

    rows = [*plan_rows(plan)]
    if console.width is None or len(rows) > MAX_FOLDED_ROWS:
        console.data(aligned(rows))
        return
    table = grid("", "", "")
    for name, *rest in rows:
        table.add_row(Name(name), *map(Text, rest))
    console.table(table, to_stdout=True)


WRITING = {name: shell_command(command) for name, command in COMMANDS.items()}
"""The shell commands that write an output."""
