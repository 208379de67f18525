"""`monosoup run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monosoup_cli.api.recipe import OF_THE_RUN, TAKEN, read_steps, waiting
from monosoup_cli.cli.console import Console
from monosoup_cli.cli.options import NoProgress, Quiet, TalkFormat, add_options
from monosoup_cli.cli.trials import of_scores
from monosoup_cli.cli.writing import run_planned

__all__ = ["run"]

TEXT = """Run a recipe, or the command of a report again.

A recipe is a YAML file with a command, or with steps whose outputs are inputs of later ones. mergekit's
configurations are read, too (linear, task_arithmetic, model_stock). A report gives the same bytes again,
from the same inputs. Scores and other programs are not run. With --resume, complete steps are not run again.
--report, --push and --public are for the last step.

Example: monosoup run recipe.yaml
"""


def _run(
    arguments: dict[str, Any],
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe, a configuration of mergekit, a report, or the output that has one.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where the output of the last step goes."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan of the first step that would run; write nothing."),
    ] = False,
    format: Annotated[
        TalkFormat,
        typer.Option(
            "--format",
            help="json prints the report on stdout, of several steps a list of those that ran; or the plan of"
            " a dry run.",
        ),
    ] = "table",
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    console = Console(quiet=quiet, live=not no_progress)
    steps = read_steps(recipe, output)
    given = {name: value for name, value in arguments.items() if value != OF_THE_RUN[name].default}
    reports: list[str] = []
    is_list = format == "json" and len(steps) > 1 and not dry_run
    try:
        for step, own in waiting(steps, given, lambda text: console.note(f"note: {text}")):
            if len(steps) > 1:
                console.note(f"{step.command.__name__} → {step.output}")
            if step.is_of_mergekit:
                console.note(f"runs: {step.command_line}", is_to_copy=True)
            with console.growing_table() as show, step.prepare(**own) as planned:
                run_planned(
                    planned,
                    console,
                    of_scores(show),
                    is_dry=dry_run,
                    as_json=format == "json",
                    take=reports.append if is_list else None,
                )
            if dry_run:
                if step is not steps[-1]:
                    console.note("note: of the steps after this one, only the arguments were checked")
                return
    finally:  # the reports of the steps before one that fails, too
        if is_list:
            console.data(f"[{','.join(reports)}]\n")


run = add_options(_run, "run", TEXT, {name: OF_THE_RUN[name] for name in TAKEN})
"""The shell command."""
