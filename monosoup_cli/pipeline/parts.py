"""An output that several machines make: each makes a part, and `finish` makes the output of all parts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from monosoup_cli.errors import OutputError, OutputExistsError, UsageError, crop, masked, some
from monosoup_cli.outputs.durable import sync_folder
from monosoup_cli.outputs.journal import differences, sealed_line, way_back
from monosoup_cli.outputs.workplace import finish_replacing, parts_path, remove_parts
from monosoup_cli.outputs.writer import Adopted, PartialOutput, place_of
from monosoup_cli.pipeline.destination import Part, part_path, work_path
from monosoup_cli.pipeline.engine import Progress, ignore
from monosoup_cli.pipeline.execute import choose, make_tensors
from monosoup_cli.pipeline.memory import Resources
from monosoup_cli.pipeline.part import (
    NAMED,
    PART_NAME,
    FinishedPart,
    State,
    parts_there,
    read_part,
    refusal,
    state_of,
    told_differences,
    typical,
)
from monosoup_cli.pipeline.planned import Planned
from monosoup_cli.pipeline.provenance import with_roles
from monosoup_cli.pipeline.publication import make_identity, make_reports, publish, seal
from monosoup_cli.pipeline.ready import Ready, lay_out, make_ready
from monosoup_cli.pipeline.shares import Share, shares_of
from monosoup_cli.pipeline.task import Choice
from monosoup_cli.sources.ties import check_copies
from monosoup_cli.sources.transfer import fetch

__all__ = ["finish", "make_part", "state_of_part"]


def make_part(ready: Ready, progress: Progress = ignore) -> FinishedPart:
    """Make one part of the output; nothing, if it is whole already.

    Raises:
        MonosoupError: The part cannot be made.
    """
    planned, share, destination = ready.planned, ready.share, ready.planned.destination
    part, place = share.part, work_path(destination)
    assert part is not None
    finish_replacing(place)
    started, writing = time.monotonic(), destination.options
    identity = make_identity(ready)
    folders = [variant.folder for variant in ready.variants]
    done = _made(ready, identity)
    if done is not None:
        return done
    destination.check_path(planned.inputs.sources)
    ready.check()
    _make_folder(place.parent)
    fetch(ready.downloads)
    check_copies(planned.inputs.copies, planned.selection.leaves_out)
    stored = {name: parts for name, parts in ready.form.parts().items() if name in share.names}
    partial = PartialOutput(
        place,
        share.layout,
        {**identity, "part": part.words},
        folders=folders,
        parts=stored,
        resume=writing.resume,
        overwrite=writing.overwrite or place.exists(),
    )
    with partial:
        choice = choose(ready, partial, progress)
        make_tensors(ready, choice, partial, progress)
        sealed = partial.seal({folder: {} for folder in folders})
        sources = with_roles(planned.inputs)
        facts = {
            "part": part.words,
            "command": planned.task.call.command,
            "arguments": _recorded(ready),
            "cwd": str(Path.cwd()),
            "identity": identity,
            "revisions": [[source.path, source.files.place.revision] for _, source in sources],
            "choice": {"members": list(choice.members), "selection": choice.selection},
            "timing": {
                "seconds": round(time.monotonic() - started, 3),
                "bytes_read": [source.files.bytes_read for _, source in sources],
                "bytes_written": partial.spent.bytes_written,
            },
            "files": sealed.weights,
            "records": {tensor.name: partial.finished[tensor.name] for tensor in share.tensors},
        }
        partial.publish({PART_NAME: sealed_line(facts)}, {})
    return replace(read_part(place, part), is_new=True)


def state_of_part(ready: Ready) -> State:
    """What there is of the part that a run is to make.

    Raises:
        OutputError: It is of another run or is not whole, and the run would be refused.
    """
    part, destination = ready.share.part, ready.planned.destination
    assert part is not None
    state = state_of(destination.path, part)
    if ready.is_foreseen:
        return state
    made = _made(ready, make_identity(ready))
    is_kept = destination.options.resume or not destination.options.overwrite
    return "not whole" if state == "complete" and is_kept and made is None else state


def _made(ready: Ready, identity: Mapping[str, Any]) -> FinishedPart | None:
    """The part, where it is whole already and is not to be made anew.

    Raises:
        OutputError: It is of another run or is not whole; or the other parts are of another run.
    """
    destination = ready.planned.destination
    place, writing = work_path(destination), destination.options
    if place.exists() and (writing.resume or not writing.overwrite):
        folders = [variant.folder for variant in ready.variants]
        return _whole_part(place, ready.share, identity, folders, is_resumed=writing.resume)
    if not writing.overwrite:
        assert ready.share.part is not None
        _check_neighbour(destination.path, ready.share.part, identity)
    return None


def _recorded(ready: Ready) -> dict[str, Any]:
    """The arguments as JSON has them, without tokens."""
    arguments = {
        **ready.planned.task.call.arguments,
        "device": ready.resources.names,
        "workers": ready.resources.workers,
        "part": None,
    }
    found: dict[str, Any] = json.loads(json.dumps(masked(arguments), default=os.fspath))
    return found


def _whole_part(
    place: Path, share: Share, identity: Mapping[str, Any], folders: Sequence[str], *, is_resumed: bool
) -> FinishedPart | None:
    """The part that is there; None where it is not whole, and the run is to go on.

    Raises:
        OutputError: It is of another run, or is not whole.
    """
    assert share.part is not None
    try:
        done = read_part(place, share.part)
    except OutputError:
        if is_resumed:
            return None
        raise
    if changed := told_differences(done.facts["identity"], identity, "here"):
        raise OutputExistsError(
            f"there is a part that differs in {changed}", path=place, hint="to make it anew, pass --overwrite"
        )
    fault = done.lacks(share, folders)
    if fault is not None and not is_resumed:
        raise refusal(place.parent, [(share.part, fault)])
    return done if fault is None else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", path=folder) from None


def _check_neighbour(output: Path, part: Part, identity: Mapping[str, Any]) -> None:
    """Refuse a part beside those of another run: they would not make an output together."""
    there, folder = parts_there(output), parts_path(output)
    counts = {one.count for one in there} - {part.count}
    if counts:
        raise UsageError(
            f"there are parts of {min(counts)}, and this would be one of {part.count}",
            path=folder,
            hint=f"use --part I/{min(counts)}, or remove that folder",
        )
    if not there:
        return
    other = there[0]
    try:
        before = read_part(part_path(output, other), other).facts["identity"]
    except OutputError:  # what is damaged is told when all are there
        return
    if changed := told_differences(before, identity, "here"):
        raise UsageError(
            f"part {other.words}, which is there, differs in {changed}",
            path=folder,
            hint="use its arguments; to make all parts anew, pass --overwrite with each",
        )


def finish(planned: Planned, parts: Sequence[FinishedPart], progress: Progress = ignore) -> dict[str, Any]:
    """Make the output of its parts, remove them, and return its report.

    Args:
        planned: The run that the parts are of, opened again.
        parts: All of them, in order.
        progress: Called for every tensor.

    Raises:
        OutputError: A part is of another run, or is not as it was made.
    """
    started = time.monotonic()
    # whole files take no space again and nothing is computed, but for what has to be examined
    ready = make_ready(planned) if planned.examined else lay_out(planned, Resources.none())
    folders, common = [variant.folder for variant in ready.variants], typical(parts).facts["identity"]
    stored, identity = ready.form.parts(), make_identity(ready, common["environment"])
    shares = shares_of(ready.plan, ready.form.layout, stored, planned.inputs.finetuned, len(parts))
    owned = list(zip(parts, shares, strict=True))
    folder = parts_path(planned.destination.path)
    if changed := differences(common, identity):
        raise OutputError(
            f"the parts were made otherwise: {crop(', '.join(changed))}",
            path=folder,
            hint=f"{way_back(common, identity, changed)}, or make all parts anew with --overwrite",
        )
    unlike = {part.part.words: words for part, _ in owned if (words := part.differs(common))}
    if unlike:
        raise OutputError(
            some([f"part {part} {words}" for part, words in unlike.items()], NAMED, "; "),
            path=folder,
            hint=f"run the command of the others with --part {some([*unlike], NAMED)} --overwrite",
        )
    faults = [(part.part, fault) for part, share in owned if (fault := part.lacks(share, folders))]
    faults = faults or _damages(owned, progress)
    if faults:
        raise refusal(folder, faults)
    adopted = {
        place_of(inner, file.name): Adopted(part.path / inner / file.name, part.sha256(inner, file.name))
        for part, share in owned
        for inner, file in product(folders, share.layout.files)
        if file.name not in share.pieces
    }
    partial = PartialOutput(
        planned.destination.path,
        ready.form.layout,
        identity,
        folders=folders,
        parts=stored,
        adopted=adopted,
        resume=not planned.destination.options.overwrite,
        overwrite=planned.destination.options.overwrite,
    )
    with partial:
        for part, share in owned:
            for inner in folders:
                for name, offset, data in part.pieces(share, inner):
                    partial.write(name, data, offset, inner)
            partial.commit(part.facts["records"], is_journalled=False)
        choice = Choice(**parts[0].facts["choice"])
        sealed = seal(ready, choice, partial, identity)
        whole, reports = make_reports(
            ready, choice, identity, partial, sealed, started, [{} for _ in folders]
        )
        for report in {id(one): one for one in (whole, *reports)}.values():
            _add_up(report, parts)
        report = publish(ready, partial, whole, reports)
    remove_parts(planned.destination.path, len(parts))
    return report


def _damages(owned: Sequence[tuple[FinishedPart, Share]], progress: Progress) -> list[tuple[Part, str]]:
    """Read every part, and return those that are not as they were made."""

    def look(one: tuple[FinishedPart, Share]) -> str | None:
        part, share = one
        fault = part.damage()
        for tensor in share.tensors:
            progress(tensor, True)
        return fault

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(look, owned)
        return [(part.part, fault) for (part, _), fault in zip(owned, found, strict=True) if fault]


def _add_up(report: dict[str, Any], parts: Sequence[FinishedPart]) -> None:
    """Have a report tell where the parts were made, and what all of them took."""
    facts = [part.facts for part in parts]
    for name in ("base", "finetuned", "device", "workers", "resume"):
        if name in report["arguments"]:
            report["arguments"][name] = False if name == "resume" else facts[0]["arguments"][name]
    timing = report["timing"] = dict(report["timing"])
    for name in ("seconds", "bytes_written"):
        timing[name] = round(timing[name] + sum(one["timing"][name] for one in facts), 3)
    read = [sum(of_each) for of_each in zip(*(one["timing"]["bytes_read"] for one in facts), strict=True)]
    report["inputs"] = [
        {**one, "source": source, "bytes_read": one["bytes_read"] + more}
        for one, (source, _), more in zip(report["inputs"], facts[0]["revisions"], read, strict=True)
    ]
    timing["bytes_read"] += sum(read)
