"""Check that the inputs of a run still have the files, sizes, headers and commits in its report.

Tensors are not read: a report has no checksum of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from monosoup_cli.errors import CheckpointError, MonosoupError, some
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.locate import open_checkpoint

__all__ = ["changed_inputs", "check_places"]

NAMED = 4
"""How many names of files a difference shows."""


def check_places(report: Mapping[str, Any]) -> None:
    """Check that the inputs of a report that were on the disk are at their paths.

    Raises:
        CheckpointError: One is not.
    """
    for record in report["inputs"]:
        _check_place(record)


def _check_place(record: Mapping[str, Any]) -> None:
    if record.get("revision") is None and not os.path.lexists(record["source"]):
        raise CheckpointError(
            "no such file or folder",
            path=record["source"],
            hint="run this where the command of the report ran",
        )


def changed_inputs(report: Mapping[str, Any]) -> Iterator[MonosoupError]:
    """Find the inputs of a report that cannot be opened any more, or are others."""
    arguments = report["arguments"]
    state_dict, parts = arguments.get("state_dict"), arguments.get("parts") or ()
    for record in report["inputs"]:
        try:
            _check_place(record)  # it is not to be looked for on the Hub
            with open_checkpoint(record["source"], state_dict, parts).files as files:
                yield from _compare(record, files)
        except MonosoupError as error:
            yield error


def _compare(record: Mapping[str, Any], files: Files) -> Iterator[CheckpointError]:
    """Compare the files of an input with their record."""
    source, revision, place = record["source"], record.get("revision"), files.place
    if place.revision != revision:
        yield CheckpointError(
            "another commit than in the report",
            path=source,
            expected=revision or "none",
            found=place.revision or "none",
        )
        return
    expected = {one["name"]: (one["bytes"], one["header_sha256"]) for one in record.get("files", ())}
    found = {
        name: (file.nbytes, shard.header_sha256)
        for shard in files.shards
        for name, file in stored_files(shard).items()
    }
    if expected.keys() != found.keys():
        yield CheckpointError(
            "other files of weights than in the report",
            path=source,
            expected=some(sorted(expected), NAMED),
            found=some(sorted(found), NAMED),
        )
        return
    for name, (nbytes, header) in expected.items():
        shown = source if place.folder is None else place.folder.shown(name)
        if found[name][0] != nbytes:
            yield CheckpointError(
                "another size than in the report",
                path=shown,
                expected=f"{nbytes:,} bytes",
                found=f"{found[name][0]:,}",
            )
        elif found[name][1] != header:
            yield CheckpointError("another header than in the report", path=shown)
