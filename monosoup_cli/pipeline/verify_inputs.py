"""Compare the inputs of a run with its report: files, sizes, headers, configurations, commits and times.

Tensors are not read: a report has no checksum of them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, MonosoupError, some
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.outputs.journal import FACTS
from monosoup_cli.outputs.open_files import as_time
from monosoup_cli.pipeline.provenance import config_sha256
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.folders import is_plain_name
from monosoup_cli.sources.locate import open_checkpoint

__all__ = [
    "TIMES",
    "changed_inputs",
    "check_places",
    "compared_facts",
    "modified_files",
    "modified_words",
    "other_facts",
]

NAMED = 4
"""How many names of files a difference shows."""
GROUPS = ("files", "other_files")
"""Where the record of an input has files: weights, and others."""
TIMES = "times of modification"


def check_places(report: Mapping[str, Any]) -> None:
    """Check that the inputs of a report that were on the disk are at their paths.

    Raises:
        CheckpointError: One is not.
    """
    for record in report["inputs"]:
        _check_place(record)


def _check_place(record: Mapping[str, Any]) -> None:
    source = record["source"]
    if record.get("revision") is None and not os.path.lexists(source):
        link = f"link it: `ln -s WHERE_IT_IS {shlex.quote(source)}`"
        if Path(source).is_absolute():
            raise CheckpointError("no such file or folder", path=source, hint=f"if it was moved, {link}")
        raise CheckpointError(
            "no such file or folder",
            path=source,
            hint=f"run this in a folder from which this path leads to it (all may have moved), or {link}",
        )


def changed_inputs(
    report: Mapping[str, Any], compared: list[Mapping[str, Any]] | None = None
) -> Iterator[MonosoupError]:
    """Find the inputs of a report that cannot be opened any more, or are others.

    Args:
        report: The report.
        compared: Gets the records of the inputs whose files could be compared.
    """
    arguments = report["arguments"]
    state_dict, parts = arguments.get("state_dict"), arguments.get("parts") or ()
    for record in report["inputs"]:
        try:
            _check_place(record)  # it is not to be looked for on the Hub
            with open_checkpoint(record["source"], state_dict, parts).files as files:
                is_compared = yield from _compare(record, files)
            if is_compared and compared is not None:
                compared.append(record)
        except MonosoupError as error:
            yield error


def _compare(record: Mapping[str, Any], files: Files) -> Generator[CheckpointError, None, bool]:
    """Compare the files of an input with their record; returns whether they are files of the same names."""
    source, revision, place = record["source"], record.get("revision"), files.place
    if place.revision != revision:
        yield CheckpointError(
            "another commit than in the report",
            path=source,
            expected=revision or "none",
            found=place.revision or "none",
        )
        return False
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
        return False
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
    if record.get("config_sha256", config := config_sha256(files)) != config:
        yield CheckpointError("another configuration than in the report", path=source)
    return True


def compared_facts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the records of inputs have to compare, in words."""
    files = [file for record in records for file in record.get("files", ())]
    revisions = [record.get("revision") for record in records]
    return [
        *(["sizes", "headers"] if records else []),
        *(["configurations"] if any("config_sha256" in record for record in records) else []),
        *([TIMES] if any("modified" in file for file in files) else []),
        *(["commits"] if any(revisions) else []),
    ]


def modified_files(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The files of inputs on the disk that were modified or removed since the run, with their records.

    Reports of older versions have no times.
    """
    found = {}
    for record in report["inputs"]:
        for file in _files(record):
            if "modified" not in file:
                continue
            path = _place(record, file["name"])
            now: tuple[int, str] | None = None
            with suppress(OSError, ValueError):  # a name in a report can be anything
                status = path.stat()
                now = status.st_size, as_time(status.st_mtime_ns)
            if now != (file["bytes"], file["modified"]):
                found[str(path)] = file
    return found


def modified_words(path: str) -> str:
    """What became of such a file since the run."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} was removed since the run"
    except (OSError, ValueError):
        return f"{path} cannot be read any more"
    return f"{path} was modified since the run"


def other_facts(
    report: Mapping[str, Any], again: Mapping[str, Any], *, of_weights: bool = False
) -> list[str]:
    """What the report of a run that was made again has otherwise of the inputs, in words.

    Args:
        report: The report.
        again: That of the run that was made again.
        of_weights: Leave out files besides weights, on which weights do not depend.
    """
    groups = ("files",) if of_weights else GROUPS
    found: list[str] = []
    touched: set[Path] = set()
    for before, now in zip(report["inputs"], again["inputs"], strict=False):
        files = {file["name"]: file for file in _files(now)}
        for file in _files(before, groups):
            new = files.get(file["name"], {})
            facts = [words for fact, words in FACTS.items() if fact in file and new.get(fact) != file[fact]]
            place = _place(now, file["name"])
            if facts == [FACTS["modified"]]:
                touched.add(place)
            elif facts:
                found.append(f"{place} ({', '.join(facts)})")
        if before.get("config_sha256", now.get("config_sha256")) != now.get("config_sha256"):
            found.append(f"{now['source']} (configuration)")
    if len(touched) > 1:
        found.append(f"{TIMES} of {len(touched):,} files")
    else:
        found += [f"{place} ({FACTS['modified']})" for place in touched]
    return [*dict.fromkeys(found)]


def _files(record: Mapping[str, Any], groups: Sequence[str] = GROUPS) -> Iterator[Mapping[str, Any]]:
    """The files of an input, without those whose names lead out of it."""
    for file in (file for group in groups for file in record.get(group, ())):
        if all(map(is_plain_name, file["name"].split("/"))):
            yield file


def _place(record: Mapping[str, Any], name: str) -> Path:
    """The path of a file of an input, which may be a file itself."""
    path = Path(record["source"])
    with suppress(OSError, ValueError):
        return path / name if path.is_dir() else path
    return path
