"""What is computed, one method a file: the formula, its pass over a layer, its settings, measures and paper.

A file of this room has MEASURES. A method that needs no more than its settings also has a COMMAND, a function
with an explicit signature, from which `monosoup NAME` and `monosoup_cli.NAME` are made; a GROUP if the shell
does not list it among what combines checkpoints; and HELPS of shared options that mean something else to it.
Importing this room loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from monosoup_cli.tensors.method import AdapterOrder, Group, Measure, Order

__all__ = ["COMMANDS", "CONTENTS", "MEASURES"]

CONTENTS = ("monosoup", "model_stock", "wise_ft", "lines", "merge", "task_arithmetic", "extraction")
"""The methods, in the order in which tables show their measures and the shell lists their commands."""

_FILES = [import_module(f"{__name__}.{name}") for name in CONTENTS]

MEASURES: Sequence[Measure] = tuple(measure for file in _FILES for measure in file.MEASURES)
"""Everything that methods measure."""

COMMANDS: Mapping[str, tuple[Callable[..., Order | AdapterOrder], Group, Mapping[str, str]]] = {
    file.COMMAND.__name__: (file.COMMAND, getattr(file, "GROUP", "Combine"), getattr(file, "HELPS", {}))
    for file in _FILES
    if hasattr(file, "COMMAND")
}
"""The commands of methods that need no more than their settings, where the shell's help lists them, and what
it says of shared options."""
