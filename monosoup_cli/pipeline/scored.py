"""Put a comparison of scores into a finished output: its report, its model card, and the Hub's form.

The weights are not touched. Each file is replaced as a whole, and the report with the new checksums last. So
a run that is killed between two of them leaves an output that `verify` tells of, and the same command mends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from monosoup_cli.errors import OutputError, ReportError, UsageError
from monosoup_cli.outputs.durable import move_file, write_file
from monosoup_cli.outputs.score_card import eval_results, with_scores
from monosoup_cli.outputs.workplace import is_in_use
from monosoup_cli.pipeline.verify_output import Output, has, open_output
from monosoup_cli.report.files import REPORT_NAME, as_text, read_report
from monosoup_cli.report.outcome import outcomes
from monosoup_cli.report.scores import card_remarks, card_tables
from monosoup_cli.signals import hold_signals
from monosoup_cli.sources.library_files import CARD_NAME, EVAL_RESULTS, MAX_CARD_BYTES

__all__ = ["open_scored", "put_scores"]


def open_scored(path: str) -> Output:
    """Open an output that gets a comparison of scores.

    Raises:
        MonosoupError: It is no output on the disk of one checkpoint, or a run is replacing it.
    """
    try:
        output = open_output(path)
    except ReportError as error:
        error.hint = None  # it speaks of an option of verify
        raise
    if output.folder.root is None or output.folder.repository is not None:
        raise UsageError("scores go into an output on the disk", path=path)
    if "output" not in output.report:
        raise UsageError("has no checkpoint of its own", path=path, expected="the folder of one checkpoint")
    if is_in_use(_place(output)):
        raise OutputError("is in use by another run", path=path)
    return output


def put_scores(output: Output, comparison: Mapping[str, Any]) -> None:
    """Write a comparison into an output, whose checksums in the report follow.

    Raises:
        OutputError: It cannot be written.
    """
    folder = output.folder.root
    assert folder is not None
    try:
        with _locked(folder):
            changed = {} if output.file else dict(_files(output, comparison))
            for name, content in changed.items():
                if content is None:
                    (folder / name).unlink(missing_ok=True)
                else:
                    _replace(folder / name, content)
            report = {**output.report, "output": _recorded(output.report["output"], changed)}
            report_path = folder / PurePosixPath(output.report_path).name
            above = folder.parent / REPORT_NAME
            sweep = None if output.file else _sweep_of(above, folder.name)
            with hold_signals():
                _replace(report_path, as_text({**report, "scores": comparison}).encode())
                if sweep is not None:
                    outputs = [
                        _recorded(one, changed) if PurePosixPath(one["path"]).name == folder.name else one
                        for one in sweep["outputs"]
                    ]
                    _replace(above, as_text({**sweep, "outputs": outputs}).encode())
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}", path=error.filename or output.report_path
        ) from None


def _place(output: Output) -> Path:
    assert output.folder.root is not None
    return output.folder.root / output.file


def _files(output: Output, comparison: Mapping[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """The files that change, by name; None where there is none now."""
    if has(output.folder, CARD_NAME):
        with closing(output.folder.open(CARD_NAME)) as file:
            if file.nbytes > MAX_CARD_BYTES:
                raise OutputError("the model card is too large", path=output.folder.shown(CARD_NAME))
            card = file.read(file.nbytes).decode(errors="surrogateescape")
        tables, remarks = card_tables(comparison), card_remarks(comparison)
        scored = with_scores(card, outcomes(comparison), tables, remarks, comparison["notes"])
        yield CARD_NAME, scored.encode(errors="surrogateescape")
    results = eval_results(comparison)
    if results is not None or has(output.folder, EVAL_RESULTS):
        yield EVAL_RESULTS, results


def _recorded(record: Mapping[str, Any], changed: Mapping[str, bytes | None]) -> dict[str, Any]:
    """The record of a checkpoint with the sizes and checksums of the files that changed."""
    if "other_files" not in record:  # of an older version
        return dict(record)
    kept = [file for file in record["other_files"] if file["name"] not in changed]
    new = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in changed.items()
        if content is not None
    ]
    return {**record, "other_files": [*kept, *new]}


def _sweep_of(path: Path, name: str) -> dict[str, Any] | None:
    """The report of the sweep that a checkpoint is in, if it is."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        report = read_report(path)
    except ReportError:
        return None
    names = [PurePosixPath(one["path"]).name for one in report.get("outputs", ())]
    return report if name in names else None


def _replace(path: Path, content: bytes) -> None:
    """Replace a file durably. Its folder must not be a link."""
    path.parent.mkdir(exist_ok=True)
    if path.parent.is_symlink():
        raise OutputError("is a link", path=path.parent)
    draft = path.with_name(f".{path.name}.new")
    write_file(draft, [content])
    move_file(draft, path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, so that no second run writes its scores meanwhile."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
