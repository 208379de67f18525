"""`monosoup diff`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from monosoup_cli.cli.options import LayerFormat, NoProgress
from monosoup_cli.errors import MonosoupError

TROUBLE = 2
"""The exit code where nothing could be compared, as that of diff(1)."""


def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A file of weights, a folder, an id on the Hub, or a LoRA adapter."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Compare headers and configs; read no values.")
    ] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Replace OLD with NEW in the names of one, so that they match."),
    ] = None,
    state_dict: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Which state dict to read of files that have several, by its key."),
    ] = None,
    parts: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Which part of a pipeline to compare.")
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Show N tensors at most.")] = None,
    format: Annotated[
        LayerFormat,
        typer.Option("--format", help="json prints all differences on stdout; csv, the tensors that differ."),
    ] = "table",
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 also where something differs.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only; the exit code tells.")
    ] = False,
    no_progress: NoProgress = False,
) -> None:
    """Show what differs between two checkpoints.

    First the headers: names, shapes, dtypes and config.json. Then the values: which tensors differ, and by
    how much. A model and an adapter are compared as if the adapter were merged. The exit code is 0 if nothing
    differs, 1 if something does, and 2 if they cannot be compared.

    Example: monosoup diff base.safetensors ft.safetensors
    """
    from monosoup_cli.cli.console import Console
    from monosoup_cli.pipeline.difference import as_json, opened
    from monosoup_cli.report.difference import as_csv, difference_table
    from monosoup_cli.sources.transfer import fetch

    console = Console(quiet=quiet, live=not no_progress)
    try:
        with opened(a, b, rename or (), state_dict, parts or ()) as found:
            if not headers:
                with console.download_progress(found.downloads) as advance:
                    fetch(found.downloads, advance)
                total = sum(tensor.nbytes for tensor in found.waiting)
                with console.count_progress(total, "comparing", "compared") as advance:
                    found.compare(advance)
            differences = as_json(found)
    except MonosoupError as error:
        error.exit_code = TROUBLE
        raise
    for note in differences["notes"]:
        console.note(f"note: {note}")
    if format == "json":
        console.data(json.dumps(differences, indent=1) + "\n")
    elif format == "csv":
        console.data(as_csv(differences))
    elif not quiet:
        console.table(difference_table(differences, top), to_stdout=True)
    if not differences["same"] and not exit_zero:
        raise typer.Exit(1)
