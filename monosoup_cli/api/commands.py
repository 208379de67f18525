"""The table of contents: every function that `monosoup_cli` exports and that the shell has as a command."""

from __future__ import annotations

from collections.abc import Mapping

from monosoup_cli.api.command import WritingCommand
from monosoup_cli.api.edit import edit
from monosoup_cli.api.extract import extract
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.api.method_commands import METHODS
from monosoup_cli.api.search import search
from monosoup_cli.api.sfgs import sfgs
from monosoup_cli.api.soup import soup

__all__ = [
    "COMMANDS",
    "edit",
    "extract",
    "inspect_spectrum",
    "lines",
    "merge",
    "search",
    "sfgs",
    "soup",
    "stock",
    "transplant",
    "wise",
]

COMMANDS: Mapping[str, WritingCommand[...]] = {
    "edit": edit,
    "stock": METHODS["stock"],
    "soup": soup,
    "sfgs": sfgs,
    **METHODS,
    "extract": extract,
    "search": search,
}
"""Every command that writes an output, by its name in Python and in the order of the shell's help."""

stock, wise, lines = COMMANDS["stock"], COMMANDS["wise"], COMMANDS["lines"]
merge, transplant = COMMANDS["merge"], COMMANDS["transplant"]
