"""monosoup: better checkpoints from the ones you have, by editing the spectra of their updates.

The functions here are the commands, with the same words. They load torch when called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monosoup_cli.version import __version__

if TYPE_CHECKING:
    from monosoup_cli.api.cka import cka
    from monosoup_cli.api.commands import (
        edit,
        extract,
        inspect_spectrum,
        lines,
        merge,
        search,
        sfgs,
        soup,
        stock,
        transplant,
        wise,
    )
    from monosoup_cli.api.diff import diff
    from monosoup_cli.api.finish import finish
    from monosoup_cli.api.info import info
    from monosoup_cli.api.scores import scores
    from monosoup_cli.api.verify import verify

__all__ = [
    "__version__",
    "cka",
    "diff",
    "edit",
    "extract",
    "finish",
    "info",
    "inspect_spectrum",
    "lines",
    "merge",
    "scores",
    "search",
    "sfgs",
    "soup",
    "stock",
    "transplant",
    "verify",
    "wise",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = name if name in ("cka", "diff", "finish", "info", "scores", "verify") else "commands"
        return getattr(import_module(f"monosoup_cli.api.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
