"""The list of commands, and `main`, which turns errors into a line and an exit code."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, get_args

import typer

from monosoup_cli.api.commands import COMMANDS as WRITTEN
from monosoup_cli.cli.cka import cka
from monosoup_cli.cli.compare import compare
from monosoup_cli.cli.console import Console
from monosoup_cli.cli.finish import finish
from monosoup_cli.cli.inspect_spectrum import inspect_spectrum
from monosoup_cli.cli.jobs import lines_of_jobs
from monosoup_cli.cli.looking import LOOKING
from monosoup_cli.cli.process import Interrupted, interruptible, refuse_shortage
from monosoup_cli.cli.report import report
from monosoup_cli.cli.run import run
from monosoup_cli.cli.scores import scores
from monosoup_cli.cli.usage import Command, CommandGroup, with_own_words
from monosoup_cli.cli.verify import verify
from monosoup_cli.cli.writing import WRITING
from monosoup_cli.errors import MonosoupError, ScoreError, UsageError
from monosoup_cli.tensors.method import Group
from monosoup_cli.version import __version__

__all__ = ["app", "main"]

GROUPS: Mapping[str, Sequence[Callable[..., None]]] = {
    "Look": (*LOOKING.values(), inspect_spectrum, cka),
    **{
        group: [WRITING[name] for name, one in WRITTEN.items() if one.group == group]
        for group in get_args(Group)
    },
    "Repeat": (run, finish),
    "Check": (scores, report, compare, verify),
}
"""The commands by what people want, in the order of the help."""
COMMANDS = [one for some in GROUPS.values() for one in some]


class _Grouped(CommandGroup):
    """Lists commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group, some in GROUPS.items():
            names = [_name(one) for one in some]
            with formatter.section(group):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])


def _name(command: Callable[..., None]) -> str:
    """What the shell calls a command."""
    return command.__name__.replace("_", "-")


app = typer.Typer(
    name="monosoup",
    cls=_Grouped,
    help="Get better checkpoints out of the ones you have: edit the spectra of their updates.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
for command in COMMANDS:
    app.command(cls=Command)(with_own_words(command))


def _print_version(is_asked: bool) -> None:
    if is_asked:
        Console().data(f"monosoup {__version__}\n")
        raise typer.Exit


@app.callback()
def monosoup(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Get better checkpoints out of the ones you have: edit the spectra of their updates."""
    if context.invoked_subcommand is None:
        for line in lines_of_jobs():
            Console().note(line)
        raise typer.Exit(UsageError.exit_code)


def _takes(argv: Sequence[str], option: str) -> bool:
    """Whether the command of a command line has an option of this name."""
    named = (each for each in COMMANDS if _name(each) in argv[:1])
    return any(option in inspect.signature(each).parameters for each in named)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, on streams that `guard_streams` has seen to.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    console, words = Console(), list(sys.argv[1:] if argv is None else argv)
    # torch warns at import if NumPy is missing; nothing here needs NumPy
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        if words in (["help"], ["help", "help"]):
            console.data("".join(f"{line}\n" for line in lines_of_jobs()))
            return 0
        if words[:1] == ["help"]:  # as `monosoup COMMAND --help`
            if len(words) > 2:
                raise UsageError("help takes one command", found=" ".join(map(repr, words[1:])))
            words = [*words[1:], "--help"]
        with interruptible(), refuse_shortage(partial(_takes, words)):
            app(words, prog_name="monosoup")
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
