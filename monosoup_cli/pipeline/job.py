"""A command, ready to run: inputs opened, plan made, everything refused that headers can tell."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from monosoup_cli import __version__
from monosoup_cli.checkpoints.layout import OutputLayout, plan_layout
from monosoup_cli.checkpoints.locate import OTHER_FORMATS, Checkpoint, open_checkpoint
from monosoup_cli.checkpoints.output_path import check_output_path, check_report_path, check_space
from monosoup_cli.checkpoints.side_files import side_files
from monosoup_cli.checkpoints.writer import PartialOutput, is_in_use, refuse_unfinished, unfinished_run
from monosoup_cli.errors import MismatchError, OutputError, UsageError
from monosoup_cli.pipeline.devices import describe_device, find_devices, plan_workers
from monosoup_cli.pipeline.plan import Plan, Selection, make_plan
from monosoup_cli.pipeline.run import Method, Progress, Run, run
from monosoup_cli.report.records import SCHEMA_VERSION, summarise
from monosoup_cli.report.words import plural

__all__ = ["Job", "RunOptions", "parse_size", "prepare"]

REPORT_NAME = "monosoup_report.json"
STDOUT = "-"

OPERATIONAL = {"output", "report", "workers", "device", "overwrite", "resume"}
"""Arguments that do not change the bytes of a finished tensor: a resumed run may differ in them.
(The model of the device does, and stands in the environment.)"""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_size(text: str | int) -> int:
    """Bytes from "5GB" (10^9), "5GiB" (2^30) or a number. Raises UsageError."""
    digits = str(text).strip()
    number = digits.rstrip("KMGTIBkmgtib ")
    unit = digits[len(number) :].strip().upper()
    try:
        nbytes = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise UsageError("not a size", expected="a number and a unit, as 5GB", found=repr(text))
    return nbytes


@dataclass(frozen=True)
class RunOptions:
    """The options that every writing command shares; docs/cli.md says what each does."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    on_mismatch: Literal["error", "keep"] = "error"
    on_nonfinite: Literal["error", "keep"] = "error"
    device: str = "auto"
    workers: int | None = None
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    max_shard_size: str | int | None = None
    report: str | os.PathLike[str] | None = None
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            object.__setattr__(self, name, [patterns] if isinstance(patterns, str) else list(patterns))
        for name, allowed in (
            ("on_mismatch", ("error", "keep")),
            ("on_nonfinite", ("error", "keep")),
            ("dtype", ("keep", "float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"unknown {name}", expected=", ".join(allowed), found=getattr(self, name))
        if self.workers is not None and self.workers < 1:
            raise UsageError("workers is out of range", expected="at least 1", found=self.workers)


@dataclass
class Job:
    """One command on opened inputs; a context manager, because it holds their files.

    Making one reads headers and checks what they tell, and writes nothing; `run` does the work.
    `measured` names what the method measures, `averaged` what the summary averages, and `card`
    makes the model card of a folder.
    """

    command: str
    arguments: Mapping[str, Any]
    base: Checkpoint
    finetuned: Sequence[Checkpoint]
    output: Path
    options: RunOptions
    plan: Plan
    layout: OutputLayout
    method: Method
    measured: Sequence[str]
    averaged: Sequence[str]
    card: Callable[[], bytes]
    wise: float | None = None
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.devices = find_devices(self.options.device)
        self.workers, self.memory_bytes = plan_workers(
            self.plan, self.devices, self.options.workers, 1 + len(self.finetuned)
        )
        self.side_files: dict[str, Path] = {}
        folder = self.finetuned[0].folder
        if folder is not None and not self.layout.is_single_file:
            taken = self.layout.names
            self.side_files = {name: path for name, path in side_files(folder) if name not in taken}
        code = [name for name in self.side_files if name.endswith(".py")]
        if code:
            self.notices.append(f"custom code is copied along, not run: {', '.join(code)}")
        new = [tensor.name for tensor in self.plan.tensors if tensor.reason == "not_in_base"]
        if new:
            self.notices.append(f"not in the base, and kept as fine-tuned: {_some(new)}")
        if self.plan.only_in_base:
            self.notices.append(f"only in the base, and not written: {_some(self.plan.only_in_base)}")

    @property
    def inputs(self) -> list[tuple[str, Checkpoint]]:
        return [("base", self.base), *(("finetuned", checkpoint) for checkpoint in self.finetuned)]

    @property
    def report_path(self) -> Path | None:
        """Where the report goes; None for stdout."""
        if self.options.report == STDOUT:
            return None
        if self.options.report is not None:
            report = Path(self.options.report)
            is_inside = report.parent.resolve() == self.output.resolve()
            return self.output / report.name if is_inside else report
        if self.layout.is_single_file:
            return self.output.with_name(f"{self.output.name.removesuffix('.safetensors')}.report.json")
        return self.output / REPORT_NAME

    @property
    def is_unfinished(self) -> bool:
        """Whether there is work of an interrupted run that `resume` can go on with."""
        return unfinished_run(self.output)

    def check_output(self) -> None:
        """Raise OutputError or ResourceError for an OUT that `run` would refuse."""
        checkpoints = [checkpoint for _, checkpoint in self.inputs]
        overwrite = self.options.overwrite
        check_output_path(self.output, checkpoints, overwrite=overwrite, resume=self.options.resume)
        report = self.report_path
        if report is not None and report.parent == self.output:
            if report.name in self.layout.names | self.side_files.keys() | {"README.md"}:
                raise OutputError("the report would replace another file of the output", path=report)
        elif report is not None:
            check_report_path(report, self.output, checkpoints, overwrite=overwrite or self.options.resume)
        if is_in_use(self.output):
            raise OutputError("another run is writing this output", path=self.output)
        refuse_unfinished(self.output, resume=self.options.resume, overwrite=overwrite)
        check_space(self.output, self.layout.nbytes)

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Make the output; returns the report. On an error there is no OUT."""
        self.check_output()
        started = time.monotonic()
        environment = self._environment()
        partial = PartialOutput(
            self.output, self.layout, self._identity(environment),
            resume=self.options.resume, overwrite=self.options.overwrite,
        )  # fmt: skip
        with partial:
            work = Run(
                self.plan, self.method, self.measured, self.base, self.finetuned, partial,
                self.wise, self.options.on_nonfinite,
            )  # fmt: skip
            run(work, self.devices, self.workers, progress or (lambda tensor, is_done: None))
            files = partial.seal()
            layers = [partial.finished[tensor.name] for tensor in self.plan.tensors]
            report: dict[str, Any] = {
                "schema_version": SCHEMA_VERSION,
                "tool": {"name": "monosoup", "version": __version__},
                "command": self.command,
                "arguments": self._resolved_arguments(),
                "environment": environment,
                "inputs": [_describe(role, checkpoint) for role, checkpoint in self.inputs],
                "output": {"path": str(self.output), "files": files},
                "timing": {
                    "seconds": round(time.monotonic() - started, 3),
                    "bytes_read": sum(checkpoint.bytes_read for _, checkpoint in self.inputs),
                    "bytes_written": partial.bytes_written,
                },
                "summary": summarise(layers, self.averaged),
                "only_in_base": list(self.plan.only_in_base),
                "layers": layers,
            }
            text = json.dumps(report, indent=1, allow_nan=False)
            self._publish(partial, text.encode() + b"\n")
        return dict(json.loads(text))

    def _resolved_arguments(self) -> dict[str, Any]:
        return {
            **self.arguments,
            **asdict(self.options),
            "device": ", ".join(str(device) for device in self.devices),
            "workers": self.workers,
            "report": STDOUT if self.report_path is None else str(self.report_path),
        }

    def _publish(self, partial: PartialOutput, text: bytes) -> None:
        inside: dict[str, Path | bytes] = dict(self.side_files)
        beside: dict[Path, bytes] = {}
        path = self.report_path
        if path is not None and path.parent == self.output:
            inside[path.name] = text
        elif path is not None:
            beside[path] = text
        if not self.layout.is_single_file:
            inside["README.md"] = self.card()
        partial.publish(inside, beside)

    def _environment(self) -> dict[str, Any]:
        import torch

        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": version("safetensors"),
            "device": ", ".join(sorted({describe_device(device) for device in self.devices})),
            "cuda": torch.version.cuda if self.devices[0].type == "cuda" else None,
        }

    def _identity(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the output's bytes depend on."""
        options = self._resolved_arguments()
        inputs = {}
        for number, (role, checkpoint) in enumerate(self.inputs):
            for shard in checkpoint.shards:
                inputs[f"{role} {number} {shard.name}"] = {
                    "bytes": shard.file.nbytes,
                    "mtime_ns": shard.file.status.st_mtime_ns,
                    "header": shard.header_sha256,
                }
        return {
            "version": __version__,
            "command": self.command,
            "arguments": {name: value for name, value in options.items() if name not in OPERATIONAL},
            "inputs": inputs,
            "environment": environment,
        }

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for checkpoint in (self.base, *self.finetuned):
            checkpoint.close()


def _some(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    return f"{plural(len(names), 'tensor')}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _describe(role: str, checkpoint: Checkpoint) -> dict[str, Any]:
    files = [
        {"name": shard.name, "bytes": shard.file.nbytes, "header_sha256": shard.header_sha256}
        for shard in checkpoint.shards
    ]
    return {"role": role, "source": checkpoint.source, "revision": None, "files": files}


def prepare(
    command: str,
    arguments: Mapping[str, Any],
    base: str,
    finetuned: Sequence[str],
    output: str,
    options: RunOptions,
    *,
    stacked: Sequence[str] = (),
    wise: float | None = None,
    method: Method,
    measured: Sequence[str],
    averaged: Sequence[str],
    card: Callable[[], bytes],
) -> Job:
    """Open the inputs and plan the output; every refusal that needs no tensor's bytes is made here."""
    with ExitStack() as opened:
        checkpoints = [opened.enter_context(open_checkpoint(source)) for source in (base, *finetuned)]
        first = checkpoints[1]
        selection = Selection(
            tuple(options.include), tuple(options.exclude), tuple(stacked), options.on_mismatch, options.dtype
        )
        headers = [checkpoint.tensors for checkpoint in checkpoints]
        try:
            plan = make_plan(headers[0], headers[1:], selection, wise=wise)
        except MismatchError as error:
            error.path = first.source
            raise
        path = Path(output)
        if not path.name:
            raise OutputError("cannot be the output", path=output or "''")
        if path.suffix in OTHER_FORMATS:
            raise UsageError("only .safetensors files and folders are written", path=path)
        shard_bytes = None if options.max_shard_size is None else parse_size(options.max_shard_size)
        if shard_bytes is not None and path.suffix == ".safetensors":
            raise UsageError("max_shard_size needs a folder as output", found=path)
        layout = plan_layout(first, plan.dtypes, path.name, shard_bytes)
        job = Job(
            command, arguments, checkpoints[0], checkpoints[1:], path, options, plan, layout,
            method, measured, averaged, card, wise,
        )  # fmt: skip
        job.check_output()
        opened.pop_all()
    return job
