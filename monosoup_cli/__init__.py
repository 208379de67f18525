"""monosoup: better checkpoints from the ones you have, by editing the spectra of their updates.

The functions here are the commands, with the same words (api/functions.py). They load torch when called.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import ON_WINDOWS
from monosoup_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from monosoup_cli import errors as errors
    from monosoup_cli.api.cka import cka as cka
    from monosoup_cli.api.command import WritingCommand
    from monosoup_cli.api.diff import diff as diff
    from monosoup_cli.api.edit import edit as edit
    from monosoup_cli.api.finish import finish as finish
    from monosoup_cli.api.info import info as info
    from monosoup_cli.api.inspect_spectrum import inspect_spectrum as inspect_spectrum
    from monosoup_cli.api.recipe import run as run
    from monosoup_cli.api.reports import compare as compare
    from monosoup_cli.api.reports import read_report as read_report
    from monosoup_cli.api.scores import scores as scores
    from monosoup_cli.api.search import search as search
    from monosoup_cli.api.sfgs import sfgs as sfgs
    from monosoup_cli.api.soup import soup as soup
    from monosoup_cli.api.verify import verify as verify

    stock: WritingCommand[...]
    wise: WritingCommand[...]
    lines: WritingCommand[...]
    merge: WritingCommand[...]
    transplant: WritingCommand[...]
    extract: WritingCommand[...]


def _functions() -> Mapping[str, Callable[..., Any]]:
    if os.name == "nt":
        raise ImportError(ON_WINDOWS)
    from monosoup_cli.api.functions import FUNCTIONS

    return FUNCTIONS


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name == "errors":
        return import_module("monosoup_cli.errors")
    if name.startswith("_") or name not in _functions():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _functions()[name]


def __dir__() -> list[str]:
    return ["__version__", "errors", *sorted(_functions())]
