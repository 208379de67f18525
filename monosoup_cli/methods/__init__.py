"""What is computed, one method a file: the formula, its pass over a layer, its settings, measures and paper.

A method that needs no more than its settings is a command, too: one line in COMMANDS makes `monosoup NAME`
and `monosoup_cli.NAME` of the function that its file has for it. Importing this room loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.methods import lines, model_stock, monosoup, wise_ft
from monosoup_cli.tensors.method import Measure

__all__ = ["COMMANDS", "MEASURES"]

COMMANDS = {"stock": model_stock.stock, "wise": wise_ft.wise, "lines": lines.lines}
"""The methods that are commands by themselves."""

MEASURES: Sequence[Measure] = (*monosoup.MEASURES, *model_stock.MEASURES, *wise_ft.MEASURES, *lines.MEASURES)
"""Everything that methods measure, in the order in which tables show it."""
