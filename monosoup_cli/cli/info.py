"""`monosoup info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from monosoup_cli.cli.options import TalkFormat


def info(
    source: Annotated[
        str,
        typer.Argument(metavar="X", help="A file of weights, a folder, an id on the Hub, or a LoRA adapter."),
    ],
    state_dict: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Which state dict to read of files that have several, by its key."),
    ] = None,
    parts: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Which part of a pipeline to read.")
    ] = None,
    format: Annotated[
        TalkFormat, typer.Option("--format", help="json prints everything on stdout.")
    ] = "table",
) -> None:
    """Show what a checkpoint is, from headers alone.

    Format, family, dtypes, parameters, ties, encoding and files; of an adapter its base and ranks; and what
    `edit` would change and how long that takes. Nothing else is read, also of a repository on the Hub.

    Example: monosoup info ft.safetensors
    """
    from monosoup_cli.api.info import info as function
    from monosoup_cli.cli.console import Console
    from monosoup_cli.report.info import info_table

    console = Console()
    found = function(source, state_dict=state_dict, parts=parts or ())
    if format == "json":
        console.data(json.dumps(found, indent=1) + "\n")
        return
    console.table(info_table(found), to_stdout=True)
    for note in found["notes"]:
        console.note(f"note: {note}")
