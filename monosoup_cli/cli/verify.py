"""`monosoup verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monosoup_cli.cli.options import NoProgress, Quiet, TalkFormat


def verify(
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="A folder, a .safetensors file, or an id on the Hub.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="Where the report is, if not where a run puts it."),
    ] = None,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="Also check that the inputs still have the files, sizes, headers, configurations and commits"
            " in the report. A note names those that were modified since the run.",
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Also run the command of the report again, into a hidden folder beside OUT (or in TMPDIR),"
            " and compare the bytes. Of a greedy soup, the members in the report are taken: no score command"
            " is run.",
        ),
    ] = False,
    format: Annotated[
        TalkFormat, typer.Option("--format", help="json prints what was found on stdout.")
    ] = "table",
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Check an output against its report.

    Every file must have the size and the SHA-256 in the report, headers and index must fit it, and there must
    be no other weights that a loader may read. The exit code is 1 if anything differs.

    Example: monosoup verify out
    """
    from monosoup_cli.api.verify import check, make_again
    from monosoup_cli.cli.console import Console
    from monosoup_cli.cli.writing import import_torch
    from monosoup_cli.pipeline.verify_output import open_output
    from monosoup_cli.report.words import plural, size

    console = Console(quiet=quiet, live=not no_progress)
    opened = open_output(output, report)
    with console.count_progress(opened.nbytes, "hashing", "hashed") as advance:
        found = check(opened, inputs=inputs, advance=advance)
    if again:
        import_torch()
        console.note("making it again")
        make_again(found, opened, output, console.progress)
    for note in found.notes:
        console.note(f"note: {note}")
    for difference in found.differences:
        console.error(difference)
    if format == "json":
        console.data(json.dumps(found.to_json(), indent=1) + "\n")
    elif not found.differences and not quiet:
        counts = f"{plural(found.files, 'file')}, {plural(found.tensors, 'tensor')}, {size(found.nbytes)}"
        of_inputs = f"; inputs as in the run: {', '.join(found.compared)}" if found.inputs else ""
        of_again = "; made again: the same bytes" if found.again else ""
        console.text(f"{output} is as its report says: {counts}{of_inputs}{of_again}")
    if found.differences:
        raise typer.Exit(1)
