"""The table of contents: the commands whose Python and shell functions are made of one declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosoup_cli.api.command import WritingCommand
from monosoup_cli.api.diff import diff
from monosoup_cli.api.edit import edit
from monosoup_cli.api.info import info
from monosoup_cli.api.look import LookingCommand
from monosoup_cli.api.method_commands import METHODS
from monosoup_cli.api.search import search
from monosoup_cli.api.sfgs import sfgs
from monosoup_cli.api.soup import soup

__all__ = ["COMMANDS", "LOOKS"]


def _named(*functions: Any) -> dict[str, Any]:
    return {function.__name__: function for function in functions}


LOOKS: Mapping[str, LookingCommand[...]] = _named(info, diff)
"""Every command that only looks, and whose shell command follows from its function (api/look.py)."""
COMMANDS: Mapping[str, WritingCommand[...]] = _named(edit, METHODS["stock"], soup, sfgs) | {
    **METHODS,
    "search": search,
}
"""Every command that writes an output, by its name in Python and in the order of the shell's help."""
