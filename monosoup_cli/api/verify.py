"""`verify`: whether an output is still as its report says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monosoup_cli.options import StrPath

__all__ = ["verify"]


def verify(output: StrPath, *, report: StrPath | None = None) -> dict[str, Any]:
    """Check a finished output against its report: its files, headers and index, and that no other weights are
    there.

    Args:
        output: A folder, a .safetensors file, or the id of a repository on the Hub.
        report: Where the report is, if not where a run puts it.

    Returns:
        How many `files`, `tensors` and `bytes` were checked; `differences`, each with `problem`, `path`,
        `tensor`, `expected`, `found` and `hint`; and `notes` on what could not be checked. Without
        differences, the output is as it was written.

    Raises:
        monosoup_cli.errors.MonosoupError: There is no such output, or its report cannot be read.
    """
    from monosoup_cli.pipeline.verify import open_output
    from monosoup_cli.pipeline.verify import verify as check

    found = check(open_output(os.fspath(output), None if report is None else Path(report)))
    return {
        "files": found.files,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "differences": [one.to_json() for one in found.differences],
        "notes": found.notes,
    }
