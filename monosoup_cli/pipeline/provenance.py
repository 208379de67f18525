"""Where a report comes from: the tool, the machine, the inputs, the time."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from monosoup_cli import __version__
from monosoup_cli.devices.device import Device
from monosoup_cli.report.records import SCHEMA_VERSION
from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = ["environment", "names_only_in_base", "report_head", "with_roles"]


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """What the last bits of the results depend on."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "device": ", ".join(sorted({device.model() for device in devices})),
        **devices[0].versions,
    }


def with_roles(base: Checkpoint | None, finetuned: Sequence[Checkpoint]) -> list[tuple[str, Checkpoint]]:
    """(role, checkpoint), in the order of the command line."""
    return [*([] if base is None else [("base", base)]), *(("finetuned", each) for each in finetuned)]


def names_only_in_base(base: Checkpoint | None, finetuned: Sequence[Checkpoint]) -> list[str]:
    """Names that the (first) fine-tuned checkpoint has not; they are not written."""
    names = () if base is None else base.tensors
    return [name for name in names if name not in finetuned[0].tensors]


def report_head(
    command: str,
    arguments: Mapping[str, Any],
    environment: Mapping[str, Any],
    inputs: Sequence[tuple[str, Checkpoint]],
    started: float,
    bytes_written: int,
) -> dict[str, Any]:
    """How every report begins. `inputs`: (role, checkpoint); `started`: by `time.monotonic`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "monosoup", "version": __version__},
        "command": command,
        "arguments": arguments,
        "environment": environment,
        "inputs": [_describe(role, checkpoint) for role, checkpoint in inputs],
        "timing": {
            "seconds": round(time.monotonic() - started, 3),
            "bytes_read": sum(checkpoint.bytes_read for _, checkpoint in inputs),
            "bytes_written": bytes_written,
        },
    }


def _describe(role: str, checkpoint: Checkpoint) -> dict[str, Any]:
    files = [
        {"name": shard.name, "bytes": shard.file.nbytes, "header_sha256": shard.header_sha256}
        for shard in checkpoint.shards
    ]
    return {
        "role": role,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        **({"read_as": list(checkpoint.read_as)} if checkpoint.read_as else {}),
        "files": files,
        "bytes_read": checkpoint.bytes_read,
    }
