"""What every writing command does with its job: show the plan, or run it and show the result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from monosoup_cli.report.tables import plan_table, plan_to_json, summary_table

if TYPE_CHECKING:
    from monosoup_cli.cli.console import Console
    from monosoup_cli.pipeline.job import Job

__all__ = ["show_and_run"]


def show_and_run(job: Job, console: Console, *, is_dry: bool, as_json: bool) -> None:
    """Print the plan of a dry run; otherwise run the job, with progress, and print what it did."""
    for notice in job.notices:
        console.note(f"note: {notice}")
    if is_dry:
        if as_json or job.report_path is None:
            console.data(json.dumps(plan_to_json(job), indent=1) + "\n")
        else:
            console.table(plan_table(job), to_stdout=True)
        return
    try:
        with console.progress(job.plan.tensors) as progress:
            report = job.run(progress)
    except SystemExit:  # a signal
        if job.is_unfinished:
            console.note("note: the same command with --resume goes on from here")
        raise
    if as_json or job.report_path is None:
        console.data(json.dumps(report, indent=1) + "\n")
    console.table(summary_table(report, job.report_path))
    if not report["summary"]["edited"]:
        console.note("note: nothing was edited; the report gives the reason for every tensor")
