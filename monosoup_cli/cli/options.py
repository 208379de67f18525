"""Shell options: those that the Python functions declare, and those for a command's messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from monosoup_cli.errors import UsageError
from monosoup_cli.options import DeclaredOption

__all__ = [
    "LayerFormat",
    "NoProgress",
    "Quiet",
    "QuietTable",
    "TalkFormat",
    "add_options",
    "parameter_of",
    "shell_help",
]

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print errors only, and what other options ask for, such as --format json."
    ),
]
QuietTable = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no notes, and no table if a page or picture is written.")
]
"""Of commands whose table is what was asked for."""
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")]
TalkFormat = Literal["table", "json"]
LayerFormat = Literal["table", "json", "csv"]


def parameter_of(declared: DeclaredOption) -> inspect.Parameter:
    """Return the typer parameter for an option."""
    option = declared.option
    kind = option.shell or declared.type
    is_optional = declared.default is not inspect.Parameter.empty
    default: Any = declared.default if is_optional else inspect.Parameter.empty
    if kind == list[str] and is_optional:
        default = None  # this is how typer spells an empty list
    if is_optional and default is None:
        kind = kind | None
    if option.is_argument:
        info = typer.Argument(metavar=option.metavar, help=option.help)
    else:
        flags = option.flags
        if kind is bool:
            flags = ("/".join(flags),) if flags else (declared.flag,)
        info = typer.Option(*flags, metavar=option.metavar, help=option.help, min=option.minimum)
    return inspect.Parameter(
        declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def add_options(
    command: Callable[..., None], name: str, text: str, declared: Mapping[str, DeclaredOption]
) -> Callable[..., None]:
    """Make a function for typer that passes the declared options to `command`.

    Args:
        command: Takes the declared options as one dict, then its own options as keywords.
        name: The name of the Python function behind it.
        text: The help.
        declared: The options that come before the command's own.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    declared = {key: one for key, one in declared.items() if one.option.in_shell}
    parameters = [*(parameter_of(one) for one in declared.values()), *own]

    def shell(**words: Any) -> None:
        arguments = {key: _from_shell(one, words.pop(key)) for key, one in declared.items()}
        command(arguments, **words)

    shell.__name__ = shell.__qualname__ = name
    shell.__doc__ = text
    shell.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    shell.__annotations__ = {one.name: one.annotation for one in parameters}
    return shell


def _from_shell(declared: DeclaredOption, value: Any) -> Any:
    """Return the Python argument for a value from the shell."""
    if value is None and declared.option.shell == list[str]:
        return ()
    if declared.option.is_list and isinstance(value, str):
        return _numbers(declared.flag, value)
    return value


def _numbers(flag: str, text: str) -> list[float]:
    """Parse numbers that are separated by commas."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} must be numbers separated by commas", found=repr(text)) from None


def shell_help(function: Callable[..., Any]) -> str:
    """Return the help of a command: the docstring of its declaration."""
    return inspect.cleandoc(inspect.unwrap(function).__doc__ or "")
