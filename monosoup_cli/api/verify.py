"""`verify`: whether an output is still as its report says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosoup_cli.options import StrPath

if TYPE_CHECKING:
    from monosoup_cli.formats.files import Advance
    from monosoup_cli.pipeline.verify import Output

__all__ = ["check", "verify"]


def verify(
    output: StrPath, *, report: StrPath | None = None, inputs: bool = False, again: bool = False
) -> dict[str, Any]:
    """Check a finished output against its report: its files, headers and index, and that no other weights are
    there.

    Args:
        output: A folder, a .safetensors file, or the id of a repository on the Hub.
        report: Where the report is, if not where a run puts it.
        inputs: Also check that the inputs still have the files, sizes, headers and commits in the report.
        again: Also run the command of the report again, into a temporary folder, and compare the bytes. Of a
            greedy soup, the members in the report are taken: no score command is run.

    Returns:
        How many `files`, `tensors` and `bytes` were checked; `differences`, each with `problem`, `path`,
        `tensor`, `expected`, `found` and `hint`; and `notes` on what could not be checked. Without
        differences, the output is as it was written.

    Raises:
        monosoup_cli.errors.MonosoupError: There is no such output, its report cannot be read, or its command
            cannot be run again.
    """
    from monosoup_cli.pipeline.verify import open_output

    opened = open_output(os.fspath(output), None if report is None else Path(report))
    return check(opened, os.fspath(output), inputs=inputs, again=again)


def check(
    opened: Output, output: str, *, inputs: bool, again: bool, advance: Advance = lambda nbytes: None
) -> dict[str, Any]:
    """`verify` for an opened output; `advance` gets the size of each block that is hashed."""
    from monosoup_cli.pipeline.verify import verify as compare

    found = compare(opened, advance)
    if inputs:
        from monosoup_cli.pipeline.verify_inputs import changed_inputs

        found.differences += changed_inputs(opened.report)
    if again:
        from monosoup_cli.api.again import made_again, other_bytes, other_environment

        new = made_again(opened.report, output)
        others = list(other_bytes(opened.report, new))
        found.differences += others
        if others and (changed := other_environment(opened.report, new)):
            found.notes.append(f"the bytes may depend on what is not as in the run: {', '.join(changed)}")
    return {
        "files": found.files,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "differences": [one.to_json() for one in found.differences],
        "notes": found.notes,
    }
