"""The commands of methods that need no more than their settings (methods/)."""

from __future__ import annotations

from collections.abc import Mapping

from monosoup_cli.api.command import WritingCommand, command
from monosoup_cli.methods import COMMANDS

__all__ = ["METHODS"]

METHODS: Mapping[str, WritingCommand[...]] = {
    name: command(group, helps)(order) for name, (order, group, helps) in COMMANDS.items()
}
