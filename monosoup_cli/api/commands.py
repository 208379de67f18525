"""The table of contents: every function that `monosoup_cli` exports and that the shell has as a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from monosoup_cli.api.command import Command, command
from monosoup_cli.api.edit import edit
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.api.sfgs import sfgs
from monosoup_cli.api.soup import soup
from monosoup_cli.methods import COMMANDS as METHODS

if TYPE_CHECKING:
    from monosoup_cli.pipeline.planned import Planned

__all__ = ["COMMANDS", "edit", "inspect_spectrum", "lines", "sfgs", "soup", "stock", "wise"]

_METHODS = {name: command(order) for name, order in METHODS.items()}

COMMANDS: Mapping[str, Command[..., Planned]] = {
    "edit": edit,
    "stock": _METHODS["stock"],
    "soup": soup,
    "sfgs": sfgs,
    **_METHODS,
}
"""Every command that writes an output, by its name in Python and in the order of the shell's help."""

stock, wise, lines = COMMANDS["stock"], COMMANDS["wise"], COMMANDS["lines"]
