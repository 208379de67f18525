"""Every function that `monosoup_cli` exports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from monosoup_cli.api.cka import cka
from monosoup_cli.api.command import check_keywords
from monosoup_cli.api.commands import COMMANDS, LOOKS
from monosoup_cli.api.finish import finish
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.api.recipe import run
from monosoup_cli.api.reports import compare, read_report
from monosoup_cli.api.scores import scores
from monosoup_cli.api.verify import verify

__all__ = ["FUNCTIONS"]


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that names the keyword that is nearest to an unknown one, as those of commands do."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_keywords(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return checked


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **LOOKS,
    **COMMANDS,
    "inspect_spectrum": inspect_spectrum,
    "run": run,
    **{
        function.__name__: _checked(function)
        for function in (cka, compare, finish, read_report, scores, verify)
    },
}
"""By name."""
