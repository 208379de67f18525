"""`diff`: what differs between two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from monosoup_cli.options import StrPath, as_list

__all__ = ["diff"]


def diff(
    a: StrPath,
    b: StrPath,
    *,
    headers: bool = False,
    rename: str | Sequence[str] = (),
    state_dict: str | None = None,
    parts: str | Sequence[str] = (),
) -> dict[str, Any]:
    """Compare two checkpoints: names, shapes, dtypes and configs, then the values of every tensor.

    Args:
        a: A file of weights, a folder, an id on the Hub, or a LoRA adapter.
        b: Another one. A checkpoint and an adapter are compared as if the adapter were merged.
        headers: Read no values.
        rename: OLD=NEW, replaced in the names of one so that they match the other's.
        state_dict: Which state dict to read of files that have several.
        parts: Which part of a pipeline to read.

    Returns:
        `same`: whether nothing differs. `only_in_a`, `only_in_b`, `shapes`, `dtypes` and `config` by headers.
        `values`: the tensors whose values differ, each with how many elements are `changed`, `max_abs`, the
        largest absolute difference, and `relative`, the norm of the difference over that of a. `compared`:
        how many tensors were compared; None with `headers`. File layout does not count.

    Raises:
        monosoup_cli.errors.MonosoupError: One of them cannot be read.
    """
    from monosoup_cli.pipeline.difference import as_json, opened
    from monosoup_cli.sources.transfer import fetch

    with opened(os.fspath(a), os.fspath(b), as_list(rename), state_dict, as_list(parts)) as found:
        if not headers:
            fetch(found.downloads)
            found.compare(lambda nbytes: None)
        return as_json(found)
