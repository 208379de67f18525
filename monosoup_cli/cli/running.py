"""What every writing command does with its job: show the plan, or run it and show the result."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from monosoup_cli.pipeline.adapter_output import factored
from monosoup_cli.report.adapters import notes_on_adapters
from monosoup_cli.report.tables import plan_table, plan_to_json, selection_table, summary_table
from monosoup_cli.report.words import size

if TYPE_CHECKING:
    from monosoup_cli.cli.console import Console
    from monosoup_cli.pipeline.job import Job

__all__ = ["import_torch", "show_and_run"]


def show_and_run(job: Job, console: Console, *, is_dry: bool, as_json: bool) -> None:
    """Print the plan of a dry run; otherwise run the job, with progress, and print what it did."""
    for notice in job.notices:
        console.note(f"note: {notice}")
    as_json = as_json or job.report_path is None
    if not is_dry or job.can_choose_dry or job.is_unranked:
        with console.downloading(job.downloads) as advance:
            job.fetch(advance)
    import_torch()
    if job.is_unranked and job.unsettled is not None:
        with console.progress(factored(job.unsettled)) as progress:
            job.settle(progress)
    if is_dry:
        _show_plan(job, console, as_json=as_json)
        return
    for doubt in () if console.quiet else job.doubts():
        console.note(f"note: {doubt}")
    try:
        with console.progress(job.work) as progress:
            report = job.run(progress)
    except SystemExit:  # a signal
        if job.is_unfinished:
            console.note("note: the same command with --resume goes on from here")
        raise
    if as_json:
        console.data(json.dumps(report, indent=1) + "\n")
    if "selection" in report:
        console.table(selection_table(report["selection"]))
        console.note("")
    console.table(summary_table(report, job.report_path or Path("stdout")))
    for note in notes_on_adapters(report.get("layers", [])):
        console.note(f"note: {note}")
    if len(report.get("selection", {}).get("members", ())) == 1:
        console.note("note: one checkpoint is left, and the output is a copy of its tensors")
    elif not any(output["summary"]["edited"] for output in report.get("outputs", [report])):
        console.note("note: nothing was edited; the report gives the reason for every tensor")
    if job.options.push is not None:
        _push(job, console)


def _push(job: Job, console: Console) -> None:
    nbytes = sum(path.stat().st_size for path in job.output.rglob("*"))
    console.note(f"uploading {size(nbytes)} to {job.options.push}")
    try:
        address = job.push()
    except SystemExit:  # a signal
        console.note(f"note: {job.output} is complete: `{job.upload_command}` sends it")
        raise
    console.note(f"pushed to {address}")


def import_torch() -> None:
    """Import torch; from here on garbage is collected again, see `app.run`."""
    import torch  # noqa: F401

    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _show_plan(job: Job, console: Console, *, as_json: bool) -> None:
    selection = None
    if job.can_choose_dry:
        with console.progress(job.plan.tensors) as progress:
            selection = job.choose(None, progress).selection
    if as_json:
        console.data(json.dumps(plan_to_json(job, selection), indent=1) + "\n")
        return
    console.table(plan_table(job, is_short=selection is not None), to_stdout=True)
    if selection is not None:
        console.data("\n")
        console.table(selection_table(selection), to_stdout=True)
