"""The table of contents, and `main`: the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from monosoup_cli.cli.compare import compare
from monosoup_cli.cli.console import Console
from monosoup_cli.cli.edit import edit
from monosoup_cli.cli.inspect_spectrum import inspect_spectrum
from monosoup_cli.cli.lines import lines
from monosoup_cli.cli.report import report
from monosoup_cli.cli.sfgs import sfgs
from monosoup_cli.cli.soup import soup
from monosoup_cli.cli.stock import stock
from monosoup_cli.cli.wise import wise
from monosoup_cli.errors import MonosoupError, ScoreError
from monosoup_cli.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="monosoup",
    help="Better checkpoints from the ones you have: edit the spectra of fine-tuning updates.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
for command in (edit, stock, soup, sfgs, wise, lines, inspect_spectrum, report, compare):
    app.command()(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        Console().data(f"monosoup {__version__}\n")
        raise typer.Exit


@app.callback()
def monosoup(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Better checkpoints from the ones you have: edit the spectra of fine-tuning updates."""


class Interrupted(SystemExit):
    """SIGINT or SIGTERM; `code` is what the shell expects, 130 or 143."""


@contextmanager
def _signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises Interrupted; the second ends the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        raise Interrupted(128 + number)

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv[1:]); returns the exit code."""
    console = Console()
    # torch says at import that it has no NumPy; nothing here needs it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # λ and × where the terminal knows only ASCII
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals():
            app(None if argv is None else list(argv))
    except MonosoupError as error:
        if os.environ.get("MONOSOUP_DEBUG") == "1":
            raise
        console.error(error)
        if isinstance(error, ScoreError):
            console.detail(error.stderr)
        return error.exit_code
    except Interrupted as error:
        console.error("interrupted")
        return int(error.code or 1)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def run() -> None:
    """The console script."""
    gc.disable()  # imports take a quarter less time; `show_and_run` enables it
    sys.exit(main())
