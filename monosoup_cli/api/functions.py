"""Every function that `monosoup_cli` exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monosoup_cli.api.cka import cka
from monosoup_cli.api.commands import COMMANDS, LOOKS
from monosoup_cli.api.finish import finish
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.api.recipe import run
from monosoup_cli.api.reports import compare, read_report
from monosoup_cli.api.scores import scores
from monosoup_cli.api.verify import verify

__all__ = ["FUNCTIONS"]

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **LOOKS,
    **COMMANDS,
    **{
        function.__name__: function
        for function in (cka, compare, finish, inspect_spectrum, read_report, run, scores, verify)
    },
}
"""By name."""
