"""What a checkpoint is, as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from monosoup_cli.errors import some
from monosoup_cli.report.grid import grid
from monosoup_cli.report.words import parameters, plural, printable, rough, size

__all__ = ["info_table"]

NAMED = 6
"""How many names a line has."""


def info_table(found: Mapping[str, Any]) -> Table:
    """A line for everything that is known.

    Args:
        found: What `info` returns.
    """
    table = grid("what", "how")
    for what, words in _lines(found):
        table.add_row(what, Text(words))
    return table


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    revision = f" at {found['revision']}" if found["revision"] else ""
    yield found["kind"], printable(f"{found['source']}{revision}")
    family = [found["library"], found["model_type"], *(found["architectures"] or ())]
    if any(family):
        yield "family", printable(", ".join(str(one) for one in family if one))
    total = found["parameters"]
    files = f"{size(found['bytes'])} in {plural(len(found['files']), 'file')} ({', '.join(found['formats'])})"
    yield "weights", f"{plural(found['tensors'], 'tensor')}, {parameters(total, None)}, {files}"
    counts = [f"{one['dtype']} {plural(one['tensors'], 'tensor')}" for one in found["dtypes"]]
    yield "dtypes", some(counts, NAMED)
    for words, count in found["encodings"].items():
        yield "stored as", f"{words} ({plural(count, 'tensor')})"
    if found["ties"]:
        ties = [f"{printable(one)} = {printable(two)}" for one, two in found["ties"].items()]
        yield "tied", some(ties, NAMED)
    adapter = found["adapter"]
    if adapter is not None:
        if adapter["base"]:
            yield "base", printable(adapter["base"])
        ranks = [f"{rank} ({plural(count, 'layer')})" for rank, count in adapter["ranks"].items()]
        yield "ranks", some(ranks, NAMED) + (", with DoRA" if adapter["is_dora"] else "")
        targets = [f"{printable(one)} {count}" for one, count in adapter["targets"].items()]
        yield "changes", some(targets, NAMED)
        if adapter["replaced"]:
            yield "replaces", plural(adapter["replaced"], "tensor")
    edit = found["edit"]
    if edit is not None and edit["layers"]:
        cores = os.cpu_count() or 1
        share = parameters(edit["parameters"], None if found["kind"] == "adapter" else total)
        seconds = edit["core_seconds"] / cores
        time = f"about {rough(seconds)} on {plural(cores, 'core')}" if seconds >= 1 else "less than a second"
        yield "edit", f"changes {plural(edit['layers'], 'layer')}, {share}, in {time}"
