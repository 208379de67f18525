"""The kinds of adapters, and what reads each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from monosoup_cli.adapters.lora import Adapter
from monosoup_cli.adapters.pipeline_names import Wanted
from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.files import Kind, LoraFile, PeftAdapter
from monosoup_cli.sources.source import Source
from monosoup_cli.sources.transfer import fetch

__all__ = ["READERS", "ReadAdapter"]

ReadAdapter: TypeAlias = "Callable[[Source, Source | None, Sequence[Rename], Wanted], Adapter]"
"""Finds what an adapter changes in its base: takes its own file, the base, renames, and the parts of a
pipeline that are edited."""


def _read_peft(own: Source, base: Source | None, renames: Sequence[Rename], wanted: Wanted) -> Adapter:
    from monosoup_cli.adapters.peft import read_adapter

    settings = own.files.kind.settings or {}
    if base is None:
        return read_adapter(own, settings, None, renames)
    return read_adapter(own, settings, base.tensors, renames, base.files)


def _read_lora_file(own: Source, base: Source | None, renames: Sequence[Rename], wanted: Wanted) -> Adapter:
    from monosoup_cli.adapters.lora_file import read_lora_file

    if base is None:
        raise CheckpointError(
            "a single LoRA file names its layers as the base does, and cannot be read without it",
            path=own.path,
            hint="give the base",
        )
    fetch(own.select(None))  # its scales are among the tensors, and it is small
    return read_lora_file(own, base.tensors, renames, wanted)


READERS: Mapping[type[Kind], ReadAdapter] = {PeftAdapter: _read_peft, LoraFile: _read_lora_file}
