"""`monosoup scores`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from monosoup_cli.cli.options import LayerFormat, NoProgress, QuietTable

GLOBS = "One glob over the names of tasks and of the harness's groups. Repeatable."


def scores(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The scores of the base: a file or a folder of a harness.")
    ],
    finetuned: Annotated[str, typer.Argument(metavar="FT", help="The scores of the fine-tuned model.")],
    edited: Annotated[
        list[str], typer.Argument(metavar="EDITED", help="The scores of edited models, one or several.")
    ],
    in_: Annotated[
        list[str] | None, typer.Option("--in", metavar="GLOB", help=f"Tasks in distribution. {GLOBS}")
    ] = None,
    out: Annotated[
        list[str] | None, typer.Option("--out", metavar="GLOB", help=f"Tasks out of distribution. {GLOBS}")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="[TASK=]METRIC",
            help="The metric of all tasks that have it, or of those whose names match. Repeatable."
            " By default, the first of each task.",
        ),
    ] = None,
    format: Annotated[
        LayerFormat,
        typer.Option("--format", help="json prints the whole comparison; csv prints a line for each task."),
    ] = "table",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page that shows the comparison, for any browser."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Also put the comparison into the report and the model card of this output, the one edited"
            " model. Weights stay as they are.",
        ),
    ] = None,
    quiet: QuietTable = False,
    no_progress: NoProgress = False,
) -> None:
    """Compare the scores of base, fine-tuned and edited models.

    Reads what evaluation harnesses left: lm-evaluation-harness (with --log_samples), clip_benchmark, or JSONL
    and CSV files with id, and score or correct. The table has the difference of each edited model from the
    fine-tuned one, its 95% interval, and a p-value that is corrected for the number of comparisons. Below is
    what became of the samples: healed (the base was right, the fine-tuned model wrong), preserved (both were
    right), damaged (both were right, the edited model is wrong), retained (the fine-tuned model alone was
    right), and on how many, of those where base and fine-tuned differ, the edited model is as the base.

    Example: monosoup scores evals/base evals/ft evals/edited --in 'gsm8k*' --out mmlu
    """
    from monosoup_cli.api.scores import compare
    from monosoup_cli.cli.console import Console
    from monosoup_cli.cli.writing import import_torch
    from monosoup_cli.report.files import as_text, check_page, write_page
    from monosoup_cli.report.outcome import scores_shown
    from monosoup_cli.report.scores import scores_as_csv

    console = Console(quiet=quiet, live=not no_progress)
    if html is not None:
        check_page(html)

    def progress(samples: int) -> AbstractContextManager[Callable[[int], None]]:
        if samples:
            import_torch()  # or the first line would come long before the second
        return console.count_progress(samples, "comparing", "samples compared", of_bytes=False)

    found = compare(
        base,
        finetuned,
        edited,
        in_=in_ or (),
        out=out or (),
        metric=metric or (),
        into=into,
        progress=progress,
    )
    if format == "json":
        console.data(as_text(found))
    elif format == "csv":
        console.data(scores_as_csv(found))
    elif not (quiet and html):
        console.table(scores_shown(found), to_stdout=True)
    for note in found["notes"]:
        console.note(f"note: {note}")
    if html is not None:
        from monosoup_cli.report.scores_page import scores_page

        text = scores_page(found)
        write_page(html, text)
        console.note(f"wrote {html}")
    if into is not None:
        console.note(f"wrote the comparison into {into}")
