"""The plan of a run, as a record for tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monosoup_cli.declaration import Call

__all__ = ["Cost", "Preview", "PreviewedTensor"]


@dataclass(frozen=True)
class Cost:
    """What a run needs.

    Attributes:
        device: The devices that compute.
        download_bytes: How many bytes to download first.
        workers: How many tensors the run edits at once.
        memory_bytes: The host memory of the workers, without that of the libraries.
        device_memory_bytes: The memory of the workers on one card; 0 without cards.
        trials: The largest number of runs of score commands.
        candidates: The largest number of candidates that are scored.
        draft_bytes: The size of what is written beside the output at a time, to be scored.
        shared_bytes: About the size of what these share, which is left out where the disk has no room.
        seconds: How long the run takes, without downloads; None where that is not estimated.
        calibration_seconds: How long it took to find out how fast the machine is.
        cores: How many cores the run keeps busy, where its time is known.
    """

    device: str
    download_bytes: int
    workers: int
    memory_bytes: int
    device_memory_bytes: int
    trials: int
    candidates: int = 0
    draft_bytes: int = 0
    shared_bytes: int = 0
    seconds: float | None = None
    calibration_seconds: float | None = None
    cores: int = 0


@dataclass(frozen=True)
class PreviewedTensor:
    """What is planned for one tensor.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype in the fine-tuned checkpoint.
        reason: Why it is kept; None where it is edited.
        shared_rows: How many rows all inputs have, where the inputs differ in their number of rows.
        matrix: The rows and columns of the edited matrix, or of each matrix of a stack.
        stack: The number of matrices in a stack; None for a tensor that is not a stack.
        measures: The measures that are known before the run.
        settings: The settings that it has of its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str | None
    shared_rows: int | None
    matrix: tuple[int, int] | None
    stack: int | None
    measures: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_edited(self) -> bool:
        """Whether the tensor is edited."""
        return self.reason is None


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        call: The command and its arguments.
        verb: What its method does to a layer.
        inputs: The role and the path of every input.
        path: The path of the output.
        push: The repository on the Hub that the output is uploaded to.
        files: The name and size of every file of weights in one checkpoint of the output.
        side_files: What is carried beside the weights and what is left out, as in the report.
        folders: The folder of every checkpoint; [""] where the output is one checkpoint.
        details: What the method adds; where a part is made, also `part`, `of`, its `state`, and the `shares`
            of all parts; `is_bound` where the files may become smaller.
        only_in_base: The names of tensors that only the base has.
        tensors: What is planned for every tensor.
        cost: What the run needs.
    """

    call: Call
    verb: str
    inputs: Sequence[tuple[str, str]]
    path: str
    push: str | None
    files: Sequence[tuple[str, int]]
    side_files: Mapping[str, Any]
    folders: Sequence[str]
    details: Mapping[str, Any]
    only_in_base: Sequence[str]
    tensors: Sequence[PreviewedTensor]
    cost: Cost
