"""`monosoup cka`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monosoup_cli.cli.options import LayerFormat, NoProgress, QuietTable


def cka(
    features: Annotated[
        list[str],
        typer.Argument(
            metavar="FEATURES",
            help="Two or more .npy files of shape (samples, features). Or models: folders with an .npy file"
            " for each block, or .safetensors files with a tensor for each block.",
        ),
    ],
    matching: Annotated[
        bool, typer.Option("--matching", help="Compare blocks of models with those of the same name alone.")
    ] = False,
    format: Annotated[LayerFormat, typer.Option("--format", help="json and csv print all digits.")] = "table",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with the tables, for any browser.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write heat maps, as .png, .svg or .pdf (needs matplotlib)."),
    ] = None,
    quiet: QuietTable = False,
    no_progress: NoProgress = False,
) -> None:
    """Compare the features of blocks by linear CKA.

    Files are compared with each other. Of models, every block of the first is compared with every block of
    the others. 1 means that features are alike up to rotation and scale.

    Example: monosoup cka base-features ft-features edited-features --matching
    """
    from monosoup_cli.api.cka import opened
    from monosoup_cli.cli.console import Console
    from monosoup_cli.cli.writing import import_torch
    from monosoup_cli.report import cka as shown
    from monosoup_cli.report.files import check_page, write_page
    from monosoup_cli.report.plots import check_plot, save

    console = Console(quiet=quiet, live=not no_progress)
    if html is not None:
        check_page(html)
    if plot is not None:
        check_plot(plot)
    with opened(features, matching=matching) as alignment:
        import_torch()
        with console.count_progress(alignment.nbytes, "reading", "read") as advance:
            found = alignment.run(advance)
    if format == "json":
        console.data(json.dumps(found, indent=1, allow_nan=False) + "\n")
    elif format == "csv":
        console.data(shown.as_csv(found))
    elif not (quiet and (html or plot)):
        tables = ["\n".join(shown.as_lines(one, console.width)) for one in found["maps"]]
        console.data("\n\n".join(tables) + "\n")
    for note in shown.notes_on(found, max(one.shape[1] for one in alignment.matrices)):
        console.note(f"note: {note}")
    if html is not None:
        text = shown.page(found)
        write_page(html, text)
        console.note(f"wrote {html}")
    if plot is not None:
        save(lambda: shown.figure(found), plot)
        console.note(f"wrote {plot}")
