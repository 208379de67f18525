"""What a wrong command line is told, in the words of monosoup and not in those of the option parser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import typer.core

from monosoup_cli.errors import UsageError
from monosoup_cli.values import check_choice, did_you_mean

__all__ = ["Command", "CommandGroup", "with_own_words"]

PARSER_ERROR: Any = typer.BadParameter.__base__
"""What the option parser raises: typer's own class, or click's where typer is older."""


class Command(typer.core.TyperCommand):
    """A command whose usage is what people type, and whose errors are `UsageError`s."""

    allow_extra_args = True  # refused here

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for one in self.params:
            if one.param_type_name == "argument":
                one.display_type_rich = lambda ctx: None  # type: ignore[attr-defined]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments, the options that are required, and a place for the others."""
        pieces = []
        for one in self.params:
            if one.param_type_name == "argument":
                pieces.append(f"{one.metavar}{'...' if one.nargs != 1 else ''}")
            elif one.required:
                pieces.append(f"{min(one.opts, key=len)} {one.metavar}")
        return [*pieces, "[OPTIONS]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line.

        Raises:
            UsageError: It is wrong.
        """
        with _own_words(ctx):
            rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            raise UsageError("too many arguments", found=" ".join(map(repr, rest)), hint=_usage(ctx))
        return rest


class CommandGroup(typer.core.TyperGroup):
    """Commands under one name, whose errors are `UsageError`s."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line up to the name of the command."""
        if not args:  # the help is printed, by an error
            return super().parse_args(ctx, args)
        with _own_words(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            meant = did_you_mean(args[0], [*self.commands, "help"])
            hint = meant or f"`{ctx.command_path} --help` lists them"
            raise UsageError(f"there is no command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)


@contextmanager
def _own_words(ctx: Any) -> Iterator[None]:
    """Raise what the parser raises as a UsageError."""
    try:
        yield
    except PARSER_ERROR as error:
        option, message = getattr(error, "option_name", None), error.format_message().rstrip(".")
        hint = _usage(ctx)
        if hasattr(error, "param_type"):
            is_argument = error.param.param_type_name == "argument"
            problem = f"{error.param.metavar if is_argument else error.param.opts[0]} is missing"
        elif hasattr(error, "possibilities"):
            problem = f"there is no option {option}"
            flags = [flag for one in ctx.command.params for flag in one.opts]
            hint = did_you_mean(str(option), flags) or hint
        elif option is not None:
            problem = f"{option} {'takes no value' if 'not take' in message else 'needs a value'}"
        else:
            problem = f"{message[0].lower()}{message[1:]}"
        raise UsageError(problem, hint=hint) from None


def _usage(ctx: Any) -> str:
    line = f"{ctx.command_path} {' '.join(ctx.command.collect_usage_pieces(ctx))}"
    return f"the usage is `{line}`; `{ctx.command_path} --help` has the options"


def with_own_words(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command's choices and numbers refused in own words."""
    parameters = [*map(_in_own_words, inspect.signature(command, eval_str=True).parameters.values())]

    @wraps(command)
    def complete(**words: Any) -> None:
        command(**words)

    complete.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    complete.__annotations__ = {one.name: one.annotation for one in parameters}
    return complete


def _in_own_words(parameter: inspect.Parameter) -> inspect.Parameter:
    kind, info = get_args(parameter.annotation)
    members = () if get_origin(kind) is Literal else get_args(kind)
    plain = next((one for one in members if one is not type(None)), kind)
    is_choice = get_origin(plain) is Literal
    if not is_choice and plain not in (int, float):
        return parameter
    info, least = copy(info), info.min
    flag = (info.param_decls or (f"--{parameter.name.replace('_', '-')}",))[0]

    def read(text: Any) -> Any:
        return _read(flag, plain, least, text) if isinstance(text, str) else text

    info.parser, info.min = read, None
    if is_choice:
        info.metavar = info.metavar or f"<{'|'.join(get_args(plain))}>"
    if least is not None:
        info.help += f" At least {least:g}."
    return parameter.replace(annotation=Annotated[kind, info])


def _read(flag: str, kind: Any, least: float | None, text: str) -> Any:
    """A choice or a number that the user typed.

    Raises:
        UsageError: It is none, or the number is too small.
    """
    if get_origin(kind) is Literal:
        check_choice(flag.removeprefix("--"), text, kind)
        return text
    try:
        value = kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(f"{flag} cannot be read", expected=expected, found=repr(text)) from None
    if least is not None and value < least:
        raise UsageError(f"{flag} is out of range", expected=f"at least {least:g}", found=text)
    return value
