"""Check a finished output against its report.

Everything that differs is found, not only the first: the checks yield differences as errors, which are not
raised. Files are hashed block by block; of a repository on the Hub, large files are compared by the SHA-256
under which it stores them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from monosoup_cli.errors import CheckpointError, MonosoupError, ReportError, UsageError, crop, some
from monosoup_cli.formats.files import Advance, InputFile, read_header, sha256_of
from monosoup_cli.formats.header import Header
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.pipeline.recorded import (
    RecordedCheckpoint,
    RecordedFile,
    recorded_checkpoint,
    recorded_sweep,
)
from monosoup_cli.pipeline.verify_output import Output, has, read_report_in
from monosoup_cli.report.files import REPORT_NAME
from monosoup_cli.sources.folders import Folder, read_config
from monosoup_cli.sources.library_files import ADAPTER_CONFIG, CARD_NAME, is_training_state
from monosoup_cli.sources.shards import file_of_index

__all__ = ["Verification", "verify"]

NAMED = 4
"""How many names a difference or a note shows."""
RESTORE = "copy it here again, or make the output again"
AT_ONCE = 4
"""How many files are hashed at once."""


@dataclass
class Verification:
    """What was checked, and what differs from the report.

    Attributes:
        files: How many files were compared.
        tensors: How many tensors their headers have.
        nbytes: The size of these files.
        inputs: Whether the inputs were checked.
        compared: In what they were, in words: what could be, without times that differ.
        again: Whether the output was made again.
        differences: What differs, by file.
        notes: What could not be checked.
    """

    files: int = 0
    tensors: int = 0
    nbytes: int = 0
    inputs: bool = False
    compared: list[str] = field(default_factory=list)
    again: bool = False
    differences: list[MonosoupError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What was found, as JSON has it."""
        return {
            "files": self.files,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "inputs": self.inputs,
            "compared": self.compared,
            "again": self.again,
            "differences": [one.to_json() for one in self.differences],
            "notes": self.notes,
        }


def verify(output: Output, advance: Advance = lambda nbytes: None) -> Verification:
    """Compare an output with its report.

    Args:
        output: The output.
        advance: Gets the size of each block that is hashed.

    Raises:
        ReportError: What the report says of its files cannot be.
    """
    found, shown = Verification(), output.report_path
    if "outputs" in output.report:
        if output.file:
            raise UsageError("the report is that of several checkpoints, not of a file", path=shown)
        _check_sweep(output, found, advance)
        return found
    recorded = recorded_checkpoint(output.report, shown)
    if output.file:
        if len(recorded.files) != 1:
            raise UsageError("the report is that of a folder, not of a file", path=shown)
        recorded = replace(recorded, weights=[replace(recorded.weights[0], name=output.file)])
        _check(output.folder, recorded, found, advance)
        return found
    _check(output.folder, recorded, found, advance)
    found.differences += _strays(output.folder, "", recorded, found.notes)
    return found


def _check_sweep(output: Output, found: Verification, advance: Advance) -> None:
    """Compare every checkpoint of a sweep with the reports of both; nothing else may be in the folder."""
    folder, members = output.folder, recorded_sweep(output.report, output.report_path)
    for name, recorded in members.items():
        report = f"{name}/{REPORT_NAME}"
        inside = _below(recorded, name)
        if not has(folder, name):
            found.differences.append(
                CheckpointError("the checkpoint is missing", path=folder.shown(name), hint=RESTORE)
            )
            continue
        try:
            if not has(folder, report):
                raise ReportError("is missing", path=folder.shown(report), hint=RESTORE)
            own = recorded_checkpoint(read_report_in(folder, report), folder.shown(report))
        except MonosoupError as error:
            found.differences.append(error)
        else:
            if own.files != recorded.files:
                found.differences.append(
                    ReportError(f"says otherwise than {output.report_path}", path=folder.shown(report))
                )
            inside = replace(inside, tensors=own.tensors)
        _check(folder, inside, found, advance)
        found.differences += _strays(folder, f"{name}/", inside, found.notes)
    for name in folder.names():
        is_extra = name not in members and not name.startswith(".")
        held = folder.names(name) if is_extra and folder.is_folder(name) else ()
        if is_extra and (_is_read(name) or REPORT_NAME in held or any(map(_is_read, held))):
            found.differences.append(_stray(folder, name))


def _below(recorded: RecordedCheckpoint, name: str) -> RecordedCheckpoint:
    """A checkpoint with the names of its files in the folder around it."""

    def moved(files: Sequence[RecordedFile]) -> list[RecordedFile]:
        return [replace(file, name=f"{name}/{file.name}") for file in files]

    others = None if recorded.others is None else moved(recorded.others)
    carried = [f"{name}/{one}" for one in recorded.carried]
    return replace(recorded, weights=moved(recorded.weights), others=others, carried=carried)


def _check(folder: Folder, recorded: RecordedCheckpoint, found: Verification, advance: Advance) -> None:
    """Compare the files of a checkpoint, their headers and their index with what is recorded."""
    differing = _compare_all(folder, recorded.files, advance)
    found.differences += differing.values()
    headers: dict[str, Header] = {}
    for file in recorded.weights:
        try:
            if file.name not in differing:
                with closing(folder.open(file.name)) as opened:
                    headers[file.name] = read_header(opened)
        except CheckpointError as error:
            found.differences.append(error)
    found.files += len(recorded.files)
    found.nbytes += sum(file.nbytes for file in recorded.files)
    found.tensors += sum(len(header.tensors) for header in headers.values())
    if recorded.tensors is not None:
        found.differences += _compare_tensors(folder, headers, recorded)
    found.differences += _compare_index(folder, headers, recorded, differing)
    if recorded.others is None:
        unchecked = some([PurePosixPath(name).name for name in recorded.carried], NAMED)
        found.notes.append(
            f"the report has no checksums of other files than weights, as of older versions: not checked"
            f"{f': {unchecked}' if unchecked else ''}"
        )


def _compare_all(
    folder: Folder, files: Sequence[RecordedFile], advance: Advance
) -> dict[str, CheckpointError]:
    """Compare files with what is recorded, several at once; an interrupt ends it between two blocks.

    Returns:
        What differs, by the name of the file.
    """
    is_over = threading.Event()

    def go_on(nbytes: int) -> None:
        if is_over.is_set():
            raise InterruptedError
        advance(nbytes)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            compared = list(pool.map(lambda file: _compare(folder, file, go_on), files))
        except BaseException:
            is_over.set()
            raise
    return {file.name: one for file, one in zip(files, compared, strict=True) if one is not None}


def _compare(folder: Folder, file: RecordedFile, advance: Advance) -> CheckpointError | None:
    """Compare the size and the SHA-256 of a file with what is recorded."""
    from monosoup_cli.sources.hub import sha256_on_hub

    shown = folder.shown(file.name)
    try:
        if not has(folder, file.name):
            return CheckpointError("the file is missing", path=shown, hint=RESTORE)
        nbytes = folder.nbytes(file.name)
        if nbytes != file.nbytes:
            return CheckpointError(
                "another size than in the report",
                path=shown,
                expected=f"{file.nbytes:,} bytes",
                found=f"{nbytes:,}",
                hint=RESTORE,
            )
        sha256 = sha256_on_hub(folder, file.name)
        if sha256 is None:
            with closing(InputFile(folder.path(file.name), shown)) as opened:
                sha256 = sha256_of(opened, advance)
    except CheckpointError as error:
        return error
    if sha256 != file.sha256:
        return CheckpointError(
            "the SHA-256 is not the one in the report",
            path=shown,
            expected=file.sha256,
            found=sha256,
            hint=RESTORE,
        )
    return None


def _compare_tensors(
    folder: Folder, headers: Mapping[str, Header], recorded: RecordedCheckpoint
) -> Iterator[CheckpointError]:
    """Compare the names, dtypes and shapes in headers with the layers of the report."""
    expected = recorded.tensors or {}
    counts = Counter(name for header in headers.values() for name in header.tensors)
    for file, header in headers.items():
        for name, tensor in header.tensors.items():
            if name not in expected:
                yield CheckpointError("not in the report", path=folder.shown(file), tensor=name)
            elif (tensor.dtype, tensor.shape) != expected[name]:
                dtype, shape = expected[name]
                yield CheckpointError(
                    "another dtype or shape than in the report",
                    path=folder.shown(file),
                    tensor=name,
                    expected=f"{dtype} {list(shape)}",
                    found=f"{tensor.dtype} {list(tensor.shape)}",
                )
            elif counts[name] > 1:
                yield CheckpointError("the tensor is in two shards", path=folder.shown(file), tensor=name)
    lacking = [crop(repr(name)) for name in expected if name not in counts]
    if lacking and len(headers) == len(recorded.weights):
        yield CheckpointError(
            "tensors of the report are in no file", path=folder.source, found=some(lacking, NAMED)
        )


def _compare_index(
    folder: Folder, headers: Mapping[str, Header], recorded: RecordedCheckpoint, differing: Collection[str]
) -> Iterator[CheckpointError]:
    """Compare an index of these weights with their headers, unless it is known to differ."""
    inner = _folder_of(recorded.weights[0].name)
    prefix = _in_folder(inner, "")
    weights = {file.name.removeprefix(prefix) for file in recorded.weights}
    others = {name.removeprefix(prefix) for name in recorded.carried}
    stored = {
        tensor: file.removeprefix(prefix) for file, header in headers.items() for tensor in header.tensors
    }
    for index in _indexes(folder, inner):
        shown = folder.shown(f"{prefix}{index}")
        if f"{prefix}{index}" in differing:
            continue
        try:
            content = read_config(folder, f"{prefix}{index}")
        except CheckpointError as error:
            yield error
            continue
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict):
            yield CheckpointError("the index has no weight_map", path=shown, hint=RESTORE)
            continue
        named = {str(name) for name in weight_map.values()}
        if named.isdisjoint(weights) and named <= others:  # of other weights that were carried
            continue
        wrong = [crop(repr(name)) for name, file in weight_map.items() if stored.get(name) != file]
        wrong += [crop(repr(name)) for name in stored if name not in weight_map]
        if wrong and len(headers) == len(recorded.weights):
            yield CheckpointError(
                "the index does not fit the headers of the files",
                path=shown,
                found=some(wrong, NAMED),
                hint=RESTORE,
            )


def _indexes(folder: Folder, inner: str) -> list[str]:
    names = folder.names(inner) if not inner or has(folder, inner) else []
    return [name for name in names if file_of_index(name) is not None]


def _strays(
    folder: Folder, prefix: str, recorded: RecordedCheckpoint, notes: list[str]
) -> Iterator[CheckpointError]:
    """Find files of weights, indexes and adapters that the report does not have, where loaders look.

    Args:
        folder: The output.
        prefix: The folder of the checkpoint in it: "", or "alpha-0.3/".
        recorded: The checkpoint.
        notes: Gets the names of all other files, which are not checked.
    """
    known = {file.name for file in recorded.files} | {f"{prefix}{REPORT_NAME}"}
    if recorded.others is None:
        known |= {*recorded.carried, f"{prefix}{CARD_NAME}"}
        places = set(map(_folder_of, known))
        known |= {_in_folder(place, name) for place in places for name in _indexes(folder, place)}
        known |= {f"{prefix}{ADAPTER_CONFIG}"} if recorded.tensors is None else set()
    extra = []
    for place in sorted(set(map(_folder_of, known))):
        for name in folder.names(place) if not place or has(folder, place) else ():
            inside = _in_folder(place, name)
            if inside in known or name.startswith(".") or folder.is_folder(inside):
                continue
            if _is_read(name):
                yield _stray(folder, inside)
            else:
                extra.append(inside)
    if extra and recorded.others is not None:
        notes.append(f"not in the report, and not checked: {some(extra, NAMED)}")


def _folder_of(name: str) -> str:
    """The folder of a file inside the output; "" for the output itself."""
    return name.rpartition("/")[0]


def _in_folder(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_read(name: str) -> bool:
    """Whether a loader may take this file for weights, or for what says where they are."""
    is_weights = name.endswith(WEIGHTS) and not is_training_state(name)
    return is_weights or file_of_index(name) is not None or name == ADAPTER_CONFIG


def _stray(folder: Folder, name: str) -> CheckpointError:
    return CheckpointError(
        "not of this output, and a loader may read it", path=folder.shown(name), hint="move it elsewhere"
    )
