"""The report of a run, the model cards, and everything else that is published with the weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, masked
from monosoup_cli.formats.files import InputFile, blocks_of
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.outputs.layout import Sealed
from monosoup_cli.outputs.side_files import SideFile
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.pipeline.card import make_card
from monosoup_cli.pipeline.destination import STDOUT
from monosoup_cli.pipeline.notices import notices_of
from monosoup_cli.pipeline.provenance import (
    config_sha256,
    environment,
    names_only_in_base,
    report_head,
    with_roles,
)
from monosoup_cli.pipeline.ready import Ready, read_beside
from monosoup_cli.pipeline.repeated import other_weights
from monosoup_cli.pipeline.task import Choice, Task
from monosoup_cli.report.files import REPORT_NAME, as_text
from monosoup_cli.report.records import summarise
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import verdict_of
from monosoup_cli.sources.library_files import CARD_NAME
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.method import Variant
from monosoup_cli.tensors.patterns import settings_of
from monosoup_cli.version import __version__

__all__ = ["make_identity", "make_reports", "publish", "resolved_arguments", "seal"]


def resolved_arguments(ready: Ready) -> dict[str, Any]:
    """The arguments as the report has them: the devices, the workers and the report's path are filled in."""
    report_path = ready.planned.destination.report_path
    return {
        **ready.planned.task.call.arguments,
        "device": ready.resources.names,
        "workers": ready.resources.workers,
        "report": STDOUT if report_path is None else str(report_path),
    }


def make_identity(ready: Ready, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the output's bytes depend on; a run is only resumed where all of it is the same.

    It is written to the disk, so it has no tokens, and may be resumed with new ones. It is as JSON gives it
    back, to be compared with what was written.

    Args:
        ready: The run.
        machine: Where it runs, as `environment` says; None for this machine.
    """
    inputs, call = ready.planned.inputs, ready.planned.task.call
    arguments = masked(call.identity(resolved_arguments(ready)))
    # a commit on the Hub has many names; which one it is belongs to the files
    arguments["finetuned"] = [_called(source) for source in inputs.finetuned]
    if inputs.base is not None:
        arguments["base"] = _called(inputs.base)
    files: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    configs: dict[str, str] = {}
    for number, (role, source) in enumerate(with_roles(inputs)):
        for shard in source.files.shards:
            for name, file in stored_files(shard).items():
                files[f"{role} {number} {name}"] = {
                    "bytes": file.nbytes,
                    **file.version,
                    "header": shard.header_sha256,
                }
        if (config := config_sha256(source.files)) is not None:
            configs[f"{role} {number}"] = config
        if source.files.kind.settings is not None:  # errors name the setting that differs
            settings[f"{role} {number}"] = source.files.kind.settings
    identity = {
        "version": __version__,
        "side_files": {file.name: _facts(file) for file in read_beside(ready.form)},
        "rewritten": {
            name: hashlib.sha256(content).hexdigest() for name, content in ready.form.own_files().items()
        },
        **({"settings": settings} if settings else {}),
        "configs": configs,
        "command": call.command,
        "arguments": arguments,
        "inputs": files,
        "environment": environment(ready.resources.devices) if machine is None else machine,
    }
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found


def _called(source: Source) -> str:
    """What an input is called, however the user spells it."""
    return source.files.place.repository or os.path.normpath(source.path)


def _facts(file: SideFile) -> dict[str, Any]:
    return {"bytes": file.nbytes, **file.version}


def seal(ready: Ready, choice: Choice, partial: PartialOutput, identity: Mapping[str, Any]) -> Sealed:
    """Seal the weights, and write what is in each variant's folder besides them and the report.

    Raises:
        CheckpointError: A file is not as it was when the run began.
    """
    index = ready.form.layout.index
    indices = {} if index is None else {index.name: index.text}
    contents = {variant.folder: {**_beside(ready, choice, variant), **indices} for variant in ready.variants}
    sealed = partial.seal(
        {folder: {name: _blocks(one) for name, one in some.items()} for folder, some in contents.items()}
    )
    for file in read_beside(ready.form):
        if _facts(file) != identity["side_files"][file.name]:
            raise CheckpointError("the file changed during the run", path=file.shown)
    return sealed


def make_reports(
    ready: Ready,
    choice: Choice,
    identity: Mapping[str, Any],
    partial: PartialOutput,
    sealed: Sealed,
    started: float,
    scores: Sequence[Mapping[str, float]],
    doubts: Sequence[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of the whole run, and the report of every variant.

    Args:
        ready: The run.
        choice: Which checkpoints were averaged.
        identity: What the output's bytes depend on.
        partial: The output with its records.
        sealed: The files of each variant's folder.
        started: When the run started, by `time.monotonic`.
        scores: The scores of every variant, by name.
        doubts: What speaks against the inputs belonging together.
    """
    inputs, method = ready.planned.inputs, ready.planned.method
    sources = with_roles(inputs)
    head: dict[str, Any] = {
        **report_head(
            ready.planned.task.call.command,
            resolved_arguments(ready),
            identity["environment"],
            sources,
            started,
            partial.spent.bytes_written,
            [(file, identity["side_files"][file.name]) for file in ready.form.side_files.carried],
        ),
        **method.details,
        **({"selection": choice.selection} if choice.selection else {}),
        **({"search": choice.search} if choice.search else {}),
        "only_in_base": names_only_in_base(inputs.base, inputs.finetuned, ready.plan),
        "notes": notices_of(ready),
        **({"doubts": list(doubts)} if doubts else {}),
    }
    if partial.spent.score_seconds:
        head["timing"]["score_seconds"] = round(partial.spent.score_seconds, 3)
    reports: list[dict[str, Any]] = []
    for number, variant in enumerate(ready.variants):
        layers = [partial.finished[tensor.name][number] for tensor in ready.plan.tensors]
        if ready.planned.task.layers:
            layers = [_with_settings(layer, ready.planned.task) for layer in layers]
        report = {
            **head,
            "arguments": {**head["arguments"], **variant.arguments},
            "output": {
                "path": str(ready.planned.destination.path / variant.folder),
                "files": sealed.weights[variant.folder],
                "other_files": sealed.others[variant.folder],
                **ready.form.side_files.record(),
                **({"scores": scores[number]} if scores[number] else {}),
            },
            "summary": summarise(layers, method.measures),
            "layers": layers,
        }
        if any(measure.name == "equivalent_alpha" for measure in method.measures):
            report["verdict"] = verdict_of(report, rows_of(report))
        reports.append(report)
    whole = reports[0]
    if ready.variants[0].folder:
        outputs = [
            {**report["output"], "arguments": variant.arguments, "summary": report["summary"]}
            for variant, report in zip(ready.variants, reports, strict=True)
        ]
        whole = {**head, "outputs": outputs}
    if ready.planned.task.repeats is not None:
        head["notes"] += other_weights(ready.planned.task.repeats, whole)  # the list of all reports
    return whole, reports


def _with_settings(layer: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The entry of a layer with the settings that it has of its own."""
    settings = settings_of(task.layers, layer["name"])
    return {**layer, "settings": dict(settings)} if settings else dict(layer)


def publish(
    ready: Ready, partial: PartialOutput, whole: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add the reports to the output, and move it into place.

    Returns:
        The report of the whole run as it would be read.
    """
    inside = {
        f"{variant.folder}/{REPORT_NAME}": as_text(report).encode()
        for variant, report in zip(ready.variants, reports, strict=True)
        if variant.folder
    }
    outside: dict[Path, bytes] = {}
    path = ready.planned.destination.report_path
    if path is not None and path.parent == ready.planned.destination.path:
        inside[path.name] = as_text(whole).encode()
    elif path is not None:
        outside[path] = as_text(whole).encode()
    ready.planned.destination.check_report_path(ready.planned.inputs.sources)  # made meanwhile
    partial.publish(inside, outside)
    head = json.loads(as_text({name: part for name, part in whole.items() if name != "layers"}))
    return {name: part if name == "layers" else head[name] for name, part in whole.items()}


def _beside(ready: Ready, choice: Choice, variant: Variant) -> dict[str, Path | bytes]:
    """What is in a variant's folder besides its weights, their index and the report, by name."""
    if ready.form.layout.is_single_file:
        return {}
    return {
        **{file.name: file.path for file in ready.form.side_files.carried},
        **ready.form.own_files(),
        CARD_NAME: make_card(ready, variant, choice),
    }


def _blocks(content: Path | bytes) -> Iterator[bytes | memoryview]:
    """What a file is made of: its content, or that of the file that it copies."""
    if isinstance(content, bytes):
        yield content
    else:
        with closing(InputFile(content)) as file:
            yield from blocks_of(file)
