"""Where a report comes from: the tool, the machine, the inputs, the time."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from monosoup_cli.devices.device import Device
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.outputs.open_files import as_time
from monosoup_cli.outputs.side_files import SideFile
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.sources.files import Files, encodings_of
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.plan import Plan
from monosoup_cli.version import __version__

__all__ = ["config_sha256", "environment", "modified_in", "names_only_in_base", "report_head", "with_roles"]


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """The machine and the library versions, on which the last bits of the results depend."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "device": ", ".join(sorted({device.model() for device in devices})),
        **devices[0].versions,
    }


def with_roles(inputs: Inputs) -> list[tuple[str, Source]]:
    """(role, source): "base", then "onto" for what updates are added to, then "finetuned"."""
    base = [] if inputs.base is None else [("base", inputs.base)]
    roles = [
        "onto" if inputs.has_target and number == 0 else "finetuned"
        for number in range(len(inputs.finetuned))
    ]
    return [*base, *zip(roles, inputs.finetuned, strict=True)]


def names_only_in_base(base: Source | None, finetuned: Sequence[Source], plan: Plan) -> list[str]:
    """Names that the (first) fine-tuned checkpoint has not, without those of tensors that are carried."""
    names = () if base is None else base.tensors
    return [name for name in names if name not in finetuned[0].tensors and name not in plan.dtypes]


def report_head(
    command: str,
    arguments: Mapping[str, Any],
    environment: Mapping[str, Any],
    inputs: Sequence[tuple[str, Source]],
    started: float,
    bytes_written: int,
    beside: Sequence[tuple[SideFile, Mapping[str, Any]]] = (),
) -> dict[str, Any]:
    """How every report begins.

    Args:
        command: The command.
        arguments: Its arguments.
        environment: The machine and the library versions.
        inputs: (role, source) of each.
        started: When the run started, by `time.monotonic`.
        bytes_written: How many bytes it wrote.
        beside: The files of the inputs that are carried, each with its size and version when the run began.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "monosoup", "version": __version__},
        "command": command,
        "arguments": arguments,
        "environment": environment,
        "inputs": [_describe(role, source, beside) for role, source in inputs],
        "timing": {
            "seconds": round(time.monotonic() - started, 3),
            "bytes_read": sum(source.files.bytes_read for _, source in inputs),
            "bytes_written": bytes_written,
        },
    }


def config_sha256(files: Files) -> str | None:
    """The SHA-256 of what configurations say of how weights are read; None where there are none."""
    said = [files.config, files.kind.settings]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() if any(said) else None


def modified_in(version: Mapping[str, Any]) -> dict[str, str]:
    """When a file on the disk was modified; nothing for one that a commit on the Hub identifies."""
    return {"modified": as_time(version["mtime_ns"])} if "mtime_ns" in version else {}


def _describe(
    role: str, source: Source, beside: Sequence[tuple[SideFile, Mapping[str, Any]]]
) -> dict[str, Any]:
    files = [
        {
            "name": name,
            "bytes": file.nbytes,
            "header_sha256": shard.header_sha256,
            **modified_in(file.version),
        }
        for shard in source.files.shards
        for name, file in stored_files(shard).items()
    ]
    others = [
        {"name": file.stored, "bytes": facts["bytes"], **modified}
        for file, facts in beside
        if file.folder is source.files.place.folder and (modified := modified_in(facts))
    ]
    config = config_sha256(source.files)
    return {
        "role": role,
        "source": source.path,
        "revision": source.files.place.revision,
        **({"read_as": list(source.files.read_as)} if source.files.read_as else {}),
        **({"decoded": encodings_of(source.files)} if source.files.decoded else {}),
        "files": files,
        **({"other_files": others} if others else {}),
        **({"config_sha256": config} if config else {}),
        "bytes_read": source.files.bytes_read,
    }
