"""The Python functions behind the commands, with the same words; `prepare_…` stops before the first byte."""

from __future__ import annotations

from monosoup_cli.api.edit import edit, prepare_edit
from monosoup_cli.api.inspect_spectrum import inspect_spectrum, prepare_inspect_spectrum
from monosoup_cli.api.lines import lines, prepare_lines
from monosoup_cli.api.sfgs import prepare_sfgs, sfgs
from monosoup_cli.api.soup import prepare_soup, soup
from monosoup_cli.api.stock import prepare_stock, stock
from monosoup_cli.api.wise import prepare_wise, wise

__all__ = [
    "edit",
    "inspect_spectrum",
    "lines",
    "prepare_edit",
    "prepare_inspect_spectrum",
    "prepare_lines",
    "prepare_sfgs",
    "prepare_soup",
    "prepare_stock",
    "prepare_wise",
    "sfgs",
    "soup",
    "stock",
    "wise",
]
