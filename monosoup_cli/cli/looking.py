"""The shell commands that only look, made from what declares them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from monosoup_cli.api.commands import LOOKS
from monosoup_cli.api.look import LookingCommand
from monosoup_cli.cli.console import Console
from monosoup_cli.cli.options import LayerFormat, NoProgress, TalkFormat, add_options, shell_help
from monosoup_cli.errors import MonosoupError
from monosoup_cli.report.sheet import as_csv, sheet_table

__all__ = ["LOOKING", "shell_command"]

TROUBLE = 2
"""The exit code where a command that has a verdict has none, as that of diff(1)."""


def shell_command(command: LookingCommand[...]) -> Callable[..., None]:
    """The shell command for a Python function that only looks."""

    def run(
        arguments: dict[str, Any],
        *,
        format: str = "table",
        top: int | None = None,
        exit_zero: bool = False,
        quiet: bool = False,
        no_progress: bool = False,
    ) -> None:
        console = Console(quiet=quiet, live=not no_progress)
        try:
            found = _found(command, arguments, console)
        except MonosoupError as error:
            if command.verdict is not None:
                error.exit_code = TROUBLE
            raise
        for note in found["notes"]:
            console.note(f"note: {note}")
        if format == "csv" and command.verdict is not None and found[command.verdict] is False:
            console.note("note: csv has the rows of the table; json has what else differs")
        if format == "json":
            console.data(json.dumps(found, indent=1) + "\n")
        elif format == "csv":
            console.data(as_csv(command.sheet, found, top))
        elif not quiet:
            console.table(sheet_table(command.sheet, found, top), to_stdout=True)
        if command.verdict is not None and found[command.verdict] is False and not exit_zero:
            raise typer.Exit(1)

    own = _options(command)
    taken = inspect.Parameter("arguments", inspect.Parameter.POSITIONAL_ONLY)
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            taken,
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                for name, (kind, default) in own.items()
            ),
        ]
    )
    return add_options(run, command.__name__, shell_help(command), command.declared)


def _found(command: LookingCommand[...], arguments: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Open the inputs, download what is missing, and look."""
    from monosoup_cli.sources.transfer import fetch

    with command.open(**arguments) as opened:
        with console.download_progress(opened.downloads) as advance:
            fetch(opened.downloads, advance)
        with console.count_progress(opened.nbytes, opened.doing, opened.done) as advance:
            return opened.run(advance)


def _options(command: LookingCommand[...]) -> Mapping[str, tuple[Any, Any]]:
    """The types and defaults of the shell's own options: those that make sense for what is found."""
    options: dict[str, tuple[Any, Any]] = {}
    if command.sheet.rows is None:
        helps = "json prints everything on stdout."
        options["format"] = Annotated[TalkFormat, typer.Option("--format", help=helps)], "table"
    else:
        helps = "json prints everything on stdout; csv, the rows of the table."
        options["format"] = Annotated[LayerFormat, typer.Option("--format", help=helps)], "table"
        top = typer.Option(metavar="N", min=1, help="Show N rows at most, in a table or csv.")
        options["top"] = Annotated[int | None, top], None
    if command.verdict is not None:
        zero = typer.Option("--exit-zero", help="Exit with 0 where the exit code would be 1.")
        options["exit_zero"] = Annotated[bool, zero], False
    quiet = "Print no table and no notes, only errors, json and csv."
    options["quiet"] = Annotated[bool, typer.Option("--quiet", "-q", help=quiet)], False
    options["no_progress"] = NoProgress, False
    return options


LOOKING = {name: shell_command(command) for name, command in LOOKS.items()}
"""The shell commands that only look."""
