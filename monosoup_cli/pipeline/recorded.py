"""What a report says of the checkpoints that a run wrote, checked: it may be from somebody else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from monosoup_cli.errors import ReportError, crop
from monosoup_cli.formats.header import FLOATING
from monosoup_cli.sources.folders import is_plain_name
from monosoup_cli.tensors.plan import output_dtype

__all__ = ["RecordedCheckpoint", "RecordedFile", "recorded_checkpoint", "recorded_sweep"]

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RecordedFile:
    """A file that was written, by its name in the output."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class RecordedCheckpoint:
    """A checkpoint that was written.

    Attributes:
        weights: Its safetensors files.
        others: Its other files but the report; None if the report has only the names of those in `carried`.
        carried: The names of its side files.
        tensors: The dtype and shape of every tensor; None for an adapter, whose tensors have other names than
            the layers that they change, and for a checkpoint of a sweep as the report of the sweep has it.
    """

    weights: Sequence[RecordedFile]
    others: Sequence[RecordedFile] | None
    carried: Sequence[str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None

    @property
    def files(self) -> list[RecordedFile]:
        """Every file whose content is recorded."""
        return [*self.weights, *(self.others or ())]


def recorded_checkpoint(report: Mapping[str, Any], shown: str) -> RecordedCheckpoint:
    """The checkpoint of a report that has one.

    Args:
        report: The report, as `read_report` returns it.
        shown: The path of the report, for errors.

    Raises:
        ReportError: It has none, or what it says of its files cannot be.
    """
    if "output" not in report:
        raise ReportError("has no output: the command wrote no checkpoint", path=shown)
    dtype, layers = report["arguments"].get("dtype", "keep"), report["layers"]
    if dtype != "keep" and dtype not in FLOATING.values():
        raise ReportError("has an unknown dtype", path=shown, found=crop(repr(dtype)))
    tensors = {
        layer["name"]: (output_dtype(layer["dtype"], dtype), tuple(layer["shape"])) for layer in layers
    }
    if len(tensors) < len(layers):
        raise ReportError("has two layers of the same name", path=shown)
    is_adapter = report["command"] == "extract" or report["arguments"].get("as_adapter")
    return _checkpoint(report["output"], None if is_adapter else tensors, shown)


def recorded_sweep(report: Mapping[str, Any], shown: str) -> dict[str, RecordedCheckpoint]:
    """The checkpoints of the report of a sweep, by their folders in OUT.

    Raises:
        ReportError: What it says of them cannot be.
    """
    found = {}
    for output in report["outputs"]:
        name = PurePosixPath(output["path"]).name
        if not is_plain_name(name) or name in found:
            raise ReportError("not the folder of a checkpoint", path=shown, found=crop(repr(output["path"])))
        found[name] = _checkpoint(output, None, shown)
    return found


def _checkpoint(
    output: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None, shown: str
) -> RecordedCheckpoint:
    weights = [_file(one, shown) for one in output["files"]]
    others = [_file(one, shown) for one in output["other_files"]] if "other_files" in output else None
    names = [file.name for file in (*weights, *(others or ()))]
    if not weights or len(set(names)) < len(names):
        raise ReportError("names no file of weights, or a file twice", path=shown)
    return RecordedCheckpoint(weights, others, output.get("side_files", ()), tensors)


def _file(record: Mapping[str, Any], shown: str) -> RecordedFile:
    name, sha256 = record["name"], record.get("sha256", "")
    if not all(map(is_plain_name, name.split("/"))):
        raise ReportError("names a file outside of the output", path=shown, found=crop(repr(name)))
    if not SHA256.fullmatch(sha256):
        raise ReportError(f"has no SHA-256 of {crop(repr(name))}", path=shown, found=crop(repr(sha256)))
    return RecordedFile(name, record["bytes"], sha256)
