"""Make the functions of commands that only look out of what declares them.

A command is declared once, by a generator with an explicit signature: it opens its inputs, yields a `Look`,
and closes them. `look` makes the public Python function of it; cli/looking.py makes the shell command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast

from monosoup_cli.api.command import document, kinds_of, renamed_options, taken_arguments
from monosoup_cli.declaration import keywords_of
from monosoup_cli.options import DeclaredOption, declared_in
from monosoup_cli.report.sheet import Sheet

if TYPE_CHECKING:
    from monosoup_cli.formats.files import Advance, Download

__all__ = ["Look", "LookingCommand", "look"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Look:
    """Opened inputs that are looked at.

    Attributes:
        run: Looks, and returns what was found, as JSON has it, with `notes`. It calls its argument with the
            number of bytes that it has read since.
        downloads: What has to be downloaded first.
        nbytes: How many bytes `run` reads.
        doing: What it does to them, for the progress.
        done: What has been done to them.
    """

    run: Callable[[Advance], dict[str, Any]]
    downloads: list[Download] = field(default_factory=list)
    nbytes: int = 0
    doing: str = "reading"
    done: str = "read"


class LookingCommand(Protocol[P]):
    """A Python function that runs a command, and returns what it found.

    Attributes:
        open: Takes the same arguments, and opens the inputs.
        declared: The options of the command.
        sheet: How people see what was found.
        verdict: The key of what was found that is False where the shell exits with 1; None for no such key.
    """

    __name__: str
    __doc__: str | None
    open: Callable[P, AbstractContextManager[Look]]
    declared: Mapping[str, DeclaredOption]
    sheet: Sheet
    verdict: str | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]: ...


def look(
    sheet: Sheet, *, returns: str, verdict: str | None = None
) -> Callable[[Callable[P, Iterator[Look]]], LookingCommand[P]]:
    """Make a command that only looks.

    Args:
        sheet: How people see what was found.
        returns: What was found, key by key, for the docstring.
        verdict: The key of what was found that is False where the shell exits with 1, and with 2 for errors.
    """

    def make(declaration: Callable[P, Iterator[Look]]) -> LookingCommand[P]:
        declared = declared_in(declaration)
        opened = contextmanager(declaration)

        parameters = [
            one.replace(annotation=declared[name].type)
            for name, one in inspect.signature(declaration).parameters.items()
        ]
        signature = inspect.Signature(parameters, return_annotation="dict[str, Any]")
        kinds = kinds_of(signature, declaration)

        def public(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
            from monosoup_cli.sources.transfer import fetch

            given, keywords = taken_arguments(declaration.__name__, kinds, signature, args, kwargs)
            with renamed_options(keywords_of(declared)), opened(*given, **keywords) as found:
                fetch(found.downloads)
                return found.run(lambda nbytes: None)

        document(public, declaration, declared, signature, returns=returns)
        made = cast("LookingCommand[P]", public)
        made.open, made.declared, made.sheet, made.verdict = opened, declared, sheet, verdict
        return made

    return make
