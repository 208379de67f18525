"""`verify`: whether an output is still as its report says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosoup_cli.options import StrPath

if TYPE_CHECKING:
    from monosoup_cli.api.again import Watch
    from monosoup_cli.formats.files import Advance
    from monosoup_cli.pipeline.verify import Verification
    from monosoup_cli.pipeline.verify_output import Output

__all__ = ["check", "make_again", "verify"]

ONLY_AGAIN = "only --again tells whether that changed the output"


def verify(
    output: StrPath, *, report: StrPath | None = None, inputs: bool = False, again: bool = False
) -> dict[str, Any]:
    """Check a finished output against its report: its files, headers and index, and that no other weights are
    there.

    Args:
        output: A folder, a .safetensors file, or the id of a repository on the Hub.
        report: Where the report is, if not where a run puts it.
        inputs: Also check that the inputs still have the files, sizes, headers, configurations and commits in
            the report. A note names those that were modified since the run.
        again: Also run the command of the report again, into a hidden folder beside the output (or in
            TMPDIR), and compare the bytes. Of a greedy soup, the members in the report are taken: no score
            command is run.

    Returns:
        How many `files`, `tensors` and `bytes` were checked; whether `inputs` were, and in what they were
        `compared`; whether it was made `again`; `differences`, each with `problem`, `path`,
        `tensor`, `expected`, `found` and `hint`; and `notes` on what could not be checked. Without
        differences, the output is as it was written.

    Raises:
        monosoup_cli.errors.MonosoupError: There is no such output, its report cannot be read, or its command
            cannot be run again.
    """
    from monosoup_cli.pipeline.verify_output import open_output

    opened = open_output(os.fspath(output), None if report is None else Path(report))
    found = check(opened, inputs=inputs)
    if again:
        make_again(found, opened, os.fspath(output))
    return found.to_json()


def check(opened: Output, *, inputs: bool, advance: Advance = lambda nbytes: None) -> Verification:
    """Compare an output with its report; `advance` gets the size of each block that is hashed."""
    from monosoup_cli.pipeline.verify import verify as compare

    found = compare(opened, advance)
    if inputs and opened.report["inputs"]:
        from monosoup_cli.pipeline.verify_inputs import (
            TIMES,
            changed_inputs,
            compared_facts,
            modified_files,
            modified_words,
        )

        compared: list[Mapping[str, Any]] = []
        changed = [*changed_inputs(opened.report, compared)]
        modified = modified_files(opened.report).keys() - {one.path for one in changed}
        found.differences += changed
        found.notes += [f"{modified_words(path)}; {ONLY_AGAIN}" for path in sorted(modified)]
        found.inputs = True
        found.compared = [one for one in compared_facts(compared) if one != TIMES or not modified]
    elif inputs:
        found.notes.append("the report names no inputs: not checked")
    return found


def make_again(found: Verification, opened: Output, output: str, watch: Watch | None = None) -> None:
    """Make an output again, and add what differs to what was found."""
    from monosoup_cli.api.again import made_again, other_bytes

    found.differences += other_bytes(opened, made_again(opened, output, watch))
    found.again = True
