"""Where a report comes from: the tool, the machine, the inputs, the time."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from monosoup_cli.devices.device import Device
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.sources.files import encodings_of
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.plan import Plan
from monosoup_cli.version import __version__

__all__ = ["environment", "names_only_in_base", "report_head", "with_roles"]


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
) -> dict[str, Any]:
    """How every report begins. `inputs`: (role, source); `started`: by `time.monotonic`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "monosoup", "version": __version__},
        "command": command,
        "arguments": arguments,
        "environment": environment,
        "inputs": [_describe(role, source) for role, source in inputs],
        "timing": {
            "seconds": round(time.monotonic() - started, 3),
            "bytes_read": sum(source.files.bytes_read for _, source in inputs),
            "bytes_written": bytes_written,
        },
    }


def _describe(role: str, source: Source) -> dict[str, Any]:
    files = [
        {"name": name, "bytes": file.nbytes, "header_sha256": shard.header_sha256}
        for shard in source.files.shards
        for name, file in stored_files(shard).items()
    ]
    return {
        "role": role,
        "source": source.path,
        "revision": source.files.place.revision,
        **({"read_as": list(source.files.read_as)} if source.files.read_as else {}),
        **({"decoded": encodings_of(source.files)} if source.files.decoded else {}),
        "files": files,
        "bytes_read": source.files.bytes_read,
    }
