"""`info`: what a checkpoint is, from headers alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.look import Look, look
from monosoup_cli.errors import MonosoupError, UsageError, some
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.formats.table import CHUNKS
from monosoup_cli.options import CHECKPOINT, ReadParts, StateDict, StrPath, as_list
from monosoup_cli.report.sheet import Sheet
from monosoup_cli.report.words import parameters, plural, printable, rough, size

if TYPE_CHECKING:
    from monosoup_cli.adapters.lora import Adapter
    from monosoup_cli.pipeline.inputs import Inputs
    from monosoup_cli.sources.source import Source

__all__ = ["info"]


NAMED = 6
"""How many names a line has."""


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    revision = f" at {found['revision']}" if found["revision"] else ""
    yield found["kind"], f"{found['source']}{revision}"
    family = [found["library"], found["model_type"], *(found["architectures"] or ())]
    if any(family):
        yield "family", ", ".join(str(one) for one in family if one)
    total = found["parameters"]
    files = f"{size(found['bytes'])} in {plural(len(found['files']), 'file')} ({', '.join(found['formats'])})"
    yield "weights", f"{plural(found['tensors'], 'tensor')}, {parameters(total, None)}, {files}"
    counts = [f"{one['dtype']} {plural(one['tensors'], 'tensor')}" for one in found["dtypes"]]
    yield "dtypes", some(counts, NAMED)
    if CHUNKS in found["formats"]:
        yield "stored as", "a distributed checkpoint of torch (DCP), in chunks"
    for words, count in found["encodings"].items():
        yield "stored as", f"{words} ({plural(count, 'tensor')})"
    if found["ties"]:
        ties = [f"{printable(one)} = {printable(two)}" for one, two in found["ties"].items()]
        yield "tied", some(ties, NAMED)
    adapter = found["adapter"]
    if adapter is not None:
        if adapter["base"]:
            yield "base", adapter["base"]
        ranks = [f"{rank} ({plural(count, 'layer')})" for rank, count in adapter["ranks"].items()]
        yield "ranks", some(ranks, NAMED) + (", with DoRA" if adapter["is_dora"] else "")
        targets = [f"{printable(one)} {count}" for one, count in adapter["targets"].items()]
        yield "changes", some(targets, NAMED)
        if adapter["replaced"]:
            yield "replaces", plural(adapter["replaced"], "tensor")
    edit = found["edit"]
    if edit is not None and edit["layers"]:
        cores = os.cpu_count() or 1
        share = parameters(edit["parameters"], None if found["kind"] == "adapter" else total)
        seconds = edit["core_seconds"] / cores
        time = f"about {rough(seconds)} on {plural(cores, 'core')}" if seconds >= 1 else "less than a second"
        yield "edit", f"changes {plural(edit['layers'], 'layer')}, {share}, in {time}"


@look(
    Sheet(_lines),
    returns='`kind` ("model" or "adapter"), `library`, `model_type` and `architectures`; `formats`;'
    " `tensors`, `parameters` and `bytes`; `dtypes`, each with its number of `tensors` and `parameters`;"
    " `encodings`, `ties`, `files`; of an adapter its `base`, `ranks` and `targets`; `edit`: the `layers` and"
    " `parameters` that `edit` changes, and about how many `core_seconds` it takes, None for what other"
    " commands refuse; and `notes` on what other commands would say about it.",
)
def info(
    source: Annotated[StrPath, replace(CHECKPOINT, metavar="X")],
    *,
    state_dict: StateDict = None,
    parts: ReadParts = (),
) -> Iterator[Look]:
    """Show what a checkpoint is, from headers alone.

    Format, family, dtypes, parameters, ties, encoding and files; of an adapter its base and ranks; and what
    `edit` would change and how long that takes. Nothing else is read, also of a repository on the Hub.

    Example: monosoup info ft.safetensors
    """
    with _opened(os.fspath(source), state_dict, as_list(parts)) as (inputs, refusal):
        yield Look(lambda advance: _facts(inputs, refusal))


@contextmanager
def _opened(path: str, state_dict: str | None, parts: Sequence[str]) -> Iterator[tuple[Inputs, list[str]]]:
    """The checkpoint as other commands open it; or as it is stored, and why they refuse it."""
    from monosoup_cli.pipeline.inputs import Inputs, open_inputs
    from monosoup_cli.sources.locate import open_checkpoint

    try:
        inputs, refusal = open_inputs(None, [path], (), state_dict=state_dict, parts=parts, alone=True), []
    except UsageError:
        raise
    except MonosoupError as error:
        stored = open_checkpoint(path, state_dict, parts)
        inputs, refusal = Inputs(None, [stored], [None]), [f"other commands refuse it: {error}"]
    with inputs:
        yield inputs, refusal


def _facts(inputs: Inputs, refusal: Sequence[str]) -> dict[str, Any]:
    """What is known of a checkpoint."""
    from monosoup_cli.outputs.model_card import library_of
    from monosoup_cli.sources.files import encodings_of
    from monosoup_cli.sources.ties import ties_in

    found = inputs.finetuned[0]
    adapter, files = inputs.adapters[0], found.files
    own = files.tensors if files.kind.is_adapter or not files.decoded else found.tensors
    config, folder = files.config or {}, files.place.folder
    names = [] if folder is None else folder.names(files.place.inner.rstrip("/"))
    stored = {name: file for shard in files.shards for name, file in stored_files(shard).items()}
    by_dtype: dict[str, list[int]] = {}
    for tensor in own.values():
        by_dtype.setdefault(tensor.dtype, []).append(tensor.elements)
    return {
        "source": files.place.source,
        "revision": files.place.revision,
        "kind": "adapter" if files.kind.is_adapter else "model",
        "library": "peft" if files.kind.settings is not None else library_of(files.config, names),
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "formats": sorted({PurePosixPath(name).suffix for name in stored} - {""}),
        "tensors": len(own),
        "parameters": sum(tensor.elements for tensor in own.values()),
        "bytes": sum(file.nbytes for file in stored.values()),
        "dtypes": [
            {"dtype": dtype, "tensors": len(some), "parameters": sum(some)}
            for dtype, some in sorted(by_dtype.items(), key=lambda one: -sum(one[1]))
        ],
        "encodings": encodings_of(files),
        "ties": {} if files.kind.is_adapter else dict(ties_in(found, None)),
        "files": [{"name": name, "bytes": file.nbytes} for name, file in stored.items()],
        "adapter": None if adapter is None else _of_adapter(found, adapter),
        "edit": _edit(inputs) if not refusal else None,
        "notes": [*refusal, *(note.removeprefix(f"{found.path}: ") for note in inputs.notices)],
    }


def _of_adapter(found: Source, adapter: Adapter) -> dict[str, Any]:
    """The base that an adapter names, and what it changes."""
    settings = found.files.kind.settings or {}
    pairs = adapter.pairs.values()
    return {
        "base": settings.get("base_model_name_or_path"),
        "ranks": {str(rank): count for rank, count in sorted(Counter(pair.rank for pair in pairs).items())},
        "targets": dict(Counter(_module(pair.name) for pair in pairs).most_common()),
        "is_dora": any(pair.magnitude is not None for pair in pairs),
        "replaced": len(adapter.replaced),
    }


def _module(name: str) -> str:
    """The last word of the name of a layer: q_proj."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return words[-2] if len(words) > 1 else words[-1]


def _edit(inputs: Inputs) -> dict[str, Any]:
    """What `edit` would change, were it the fine-tuned checkpoint."""
    from monosoup_cli.pipeline.shares import core_seconds
    from monosoup_cli.tensors.plan import Selection, make_plan
    from monosoup_cli.tensors.stacks import expert_counts

    (source,) = inputs.finetuned
    selection = Selection(experts=expert_counts(source.model.config))
    plan = make_plan(source.tensors, [source.tensors], selection)
    seconds = core_seconds(plan, inputs.finetuned)
    return {
        "layers": len(plan.edited),
        "matrices": sum(tensor.matrices.count for tensor in plan.edited if tensor.matrices is not None),
        "parameters": sum(tensor.elements for tensor in plan.edited),
        "core_seconds": round(math.fsum(seconds.values()), 4),
    }
