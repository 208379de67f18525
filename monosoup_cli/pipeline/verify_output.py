"""Find an output that a run wrote, on the disk or on the Hub, and its report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, ReportError, UsageError
from monosoup_cli.outputs.workplace import partial_path, unfinished_run
from monosoup_cli.report.files import REPORT_NAME, REPORT_SUFFIX, read_report, report_beside
from monosoup_cli.sources.folders import Folder, LocalFolder, local_folder

__all__ = ["Output", "has", "open_output", "read_report_in"]


@dataclass(frozen=True)
class Output:
    """A finished output and its report.

    Attributes:
        folder: The folder that it is, or that has it.
        file: The name of an output that is a single file; "" for a folder.
        report: The report.
        report_path: The path of the report, for messages.
    """

    folder: Folder
    file: str
    report: Mapping[str, Any]
    report_path: str

    def shown(self, name: str) -> str:
        """The path of one of its files, for messages."""
        return self.folder.shown(self.file or name)

    @property
    def nbytes(self) -> int:
        """How many bytes are hashed; of a repository, the Hub has the hashes of all large files."""
        if self.folder.repository is not None:
            return 0
        outputs = self.report.get("outputs") or [self.report.get("output", {})]
        kinds = ("files", "other_files")
        return sum(file["bytes"] for output in outputs for kind in kinds for file in output.get(kind, ()))


def open_output(output: str, report: Path | None = None) -> Output:
    """Find an output, on the disk or on the Hub, and read its report.

    Args:
        output: A folder, a file, or the id of a repository on the Hub.
        report: Where the report is, if not where a run puts it.

    Raises:
        CheckpointError: There is no such output.
        ReportError: Its report is missing, or is not one.
    """
    if not output:
        raise UsageError("the path of an output is empty")
    path, file = Path(output), ""
    _refuse_unfinished(path)
    _refuse_report(path)
    if output.startswith("hf://") or not os.path.lexists(path):
        folder = _repository(output)
    elif path.is_dir():
        folder = local_folder(path, output)
    else:
        folder, file = LocalFolder(path.parent, str(path.parent)), path.name
    name = report_beside(Path(file)).name if file else REPORT_NAME
    if report is not None:
        return Output(folder, file, read_report(report), str(report))
    if not has(folder, name):
        raise ReportError(
            "no such file", path=folder.shown(name), hint="pass --report PATH, if it is elsewhere"
        )
    return Output(folder, file, read_report_in(folder, name), folder.shown(name))


def _refuse_unfinished(path: Path) -> None:
    """Refuse OUT.partial, and OUT where there is only OUT.partial."""
    name = path.name.removesuffix(".partial")
    if name and (name != path.name or not os.path.lexists(path)) and unfinished_run(path.with_name(name)):
        raise CheckpointError(
            "the run is unfinished",
            path=partial_path(path.with_name(name)),
            hint="run its command with --resume, then verify OUT",
        )


def _refuse_report(path: Path) -> None:
    """Refuse a report in the place of its output."""
    if not (path.is_file() and (path.name == REPORT_NAME or path.name.endswith(REPORT_SUFFIX))):
        return
    output = path.parent
    if path.name != REPORT_NAME:
        output = path.with_name(f"{path.name.removesuffix(REPORT_SUFFIX)}.safetensors")
    words = [str(output)] if output.exists() else ["OUT", "--report", str(path)]
    line = shlex.join(["monosoup", "verify", *words])
    raise UsageError("this is a report", path=path, hint=f"give the output: `{line}`")


def _repository(output: str) -> Folder:
    from monosoup_cli.sources.hub import open_typed
    from monosoup_cli.sources.hub_errors import quiet_hub
    from monosoup_cli.sources.hub_ids import HubId

    where = HubId.parse(output)
    if where is None:
        raise CheckpointError("no such file or folder", path=output)
    with quiet_hub():
        return open_typed(output, where)


def read_report_in(folder: Folder, name: str) -> dict[str, Any]:
    """Read a report in a folder; an error names it as the user knows it."""
    try:
        return read_report(folder.path(name))
    except ReportError as error:
        error.path = folder.shown(name)
        raise


def has(folder: Folder, name: str) -> bool:
    """Whether the folder has a file or folder of this name, which may be a broken link."""
    inner, _, last = name.rpartition("/")
    return (not inner or (has(folder, inner) and folder.is_folder(inner))) and last in folder.names(inner)
