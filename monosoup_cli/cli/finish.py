"""`monosoup finish`."""

from __future__ import annotations

from typing import Annotated

import typer

from monosoup_cli.cli.options import NoProgress, Quiet, TalkFormat


def finish(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of the command with --part.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing OUT, once the new one is complete.")
    ] = False,
    format: Annotated[
        TalkFormat, typer.Option("--format", help="json prints the report on stdout.")
    ] = "table",
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Make OUT of the parts that several machines have made.

    Run it once every --part of the command is done. It checks that all parts are there, whole, and of one
    run; otherwise it says which to make again, and OUT does not appear.

    Example: monosoup finish out
    """
    from monosoup_cli.api.finish import opened
    from monosoup_cli.cli.console import Console
    from monosoup_cli.cli.writing import import_torch, push, show_report

    console = Console(quiet=quiet, live=not no_progress)
    with opened(output, overwrite=overwrite) as parts:
        if parts.planned.examined:  # its ranks or factors are computed here, too
            import_torch()
        with console.progress(parts.planned.plan.tensors) as progress:
            report = parts.finish(progress)
        destination = parts.planned.destination
        is_json = format == "json" or destination.report_path is None
        show_report(report, destination.report_path, console, as_json=is_json)
        if destination.options.push is not None:
            push(parts.planned, console)
