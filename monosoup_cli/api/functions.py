"""Every function that `monosoup_cli` exports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from monosoup_cli.api.cka import cka
from monosoup_cli.api.command import kinds_of, renamed_options, taken_arguments
from monosoup_cli.api.commands import COMMANDS, LOOKS
from monosoup_cli.api.finish import finish
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.api.recipe import run
from monosoup_cli.api.reports import compare, read_report
from monosoup_cli.api.scores import scores
from monosoup_cli.api.verify import verify
from monosoup_cli.errors import Keyword

__all__ = ["FUNCTIONS"]


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that checks its arguments, and names them in errors, as those of commands do."""
    signature = inspect.signature(function)
    kinds = kinds_of(signature, function)
    flags = {
        f"--{name.rstrip('_').replace('_', '-')}": Keyword(name, kind is bool) for name, kind in kinds.items()
    } | {"-o": Keyword("output")}

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given, keywords = taken_arguments(function.__name__, kinds, signature, args, kwargs)
        with renamed_options(flags):
            return function(*given, **keywords)

    return checked


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **LOOKS,
    **COMMANDS,
    "inspect_spectrum": inspect_spectrum,
    **{
        function.__name__: _checked(function)
        for function in (run, cka, compare, finish, read_report, scores, verify)
    },
}
"""By name."""
