"""An output that several machines make: each makes a part, and `finish` makes the output of all parts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import PurePath
from typing import Any

from monosoup_cli.errors import OutputExistsError, crop
from monosoup_cli.outputs.durable import sync_folder
from monosoup_cli.outputs.journal import differences, sealed_line
from monosoup_cli.outputs.workplace import finish_replacing, is_replacing
from monosoup_cli.outputs.writer import PartialOutput, place_of
from monosoup_cli.pipeline.destination import work_path
from monosoup_cli.pipeline.engine import Progress, ignore
from monosoup_cli.pipeline.execute import choose, make_tensors
from monosoup_cli.pipeline.part import PART_NAME, FinishedPart, common_identity, read_part
from monosoup_cli.pipeline.provenance import environment, with_roles
from monosoup_cli.pipeline.publication import make_identity, make_reports, publish, seal
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.shares import shares_of
from monosoup_cli.pipeline.task import Choice
from monosoup_cli.report.files import read_report
from monosoup_cli.sources.ties import check_copies
from monosoup_cli.sources.transfer import fetch

__all__ = ["finish", "identity_here", "make_part"]


def identity_here(ready: Ready) -> dict[str, Any]:
    """Everything that the bytes of a part depend on, with this machine, as it is read from JSON."""
    identity: dict[str, Any] = json.loads(
        json.dumps(make_identity(ready, environment(ready.resources.devices)))
    )
    return identity


def make_part(ready: Ready, progress: Progress = ignore) -> FinishedPart:
    """Make one part of the output; nothing, if it is whole already.

    Raises:
        MonosoupError: The part cannot be made.
    """
    planned, share, destination = ready.planned, ready.share, ready.planned.destination
    part, place = share.part, work_path(destination)
    assert part is not None
    destination.check_path(planned.inputs.sources)
    ready.check()
    started, writing = time.monotonic(), destination.options
    identity = identity_here(ready)
    place.parent.mkdir(exist_ok=True)
    sync_folder(destination.path.parent)
    if place.exists() and not writing.overwrite:
        done = read_part(place, part)
        if changed := differences(done.facts["identity"], identity):
            raise OutputExistsError(
                f"there is a part that differs in {crop(', '.join(changed))}",
                path=place,
                hint="to make it anew, pass --overwrite",
            )
        return done
    fetch(ready.downloads)
    check_copies(planned.inputs.copies, planned.selection.leaves_out)
    stored = {name: parts for name, parts in ready.form.parts().items() if name in share.names}
    partial = PartialOutput(
        place,
        share.layout,
        {**identity, "part": part.words},
        folders=[variant.folder for variant in ready.variants],
        parts=stored,
        resume=writing.resume,
        overwrite=writing.overwrite,
    )
    with partial:
        choice = choose(ready, partial, progress)
        make_tensors(ready, choice, partial, progress)
        sealed = partial.seal({variant.folder: {} for variant in ready.variants})
        sources = with_roles(planned.inputs.base, planned.inputs.finetuned)
        facts = {
            "part": part.words,
            "command": planned.task.call.command,
            "arguments": {
                **planned.task.call.arguments,
                "device": ready.resources.names,
                "workers": ready.resources.workers,
                "part": None,
            },
            "identity": identity,
            "revisions": {source.path: source.files.place.revision for _, source in sources},
            "choice": {"members": list(choice.members), "selection": choice.selection},
            "timing": {
                "seconds": round(time.monotonic() - started, 3),
                "bytes_read": [source.files.bytes_read for _, source in sources],
                "bytes_written": partial.bytes_written,
            },
            "files": sealed.weights,
            "records": {tensor.name: partial.finished[tensor.name] for tensor in share.tensors},
        }
        partial.publish({PART_NAME: sealed_line(facts)}, {})
    return read_part(place, part)


def finish(ready: Ready, parts: Sequence[FinishedPart], progress: Progress = ignore) -> dict[str, Any]:
    """Make the output of its parts, and return its report.

    Args:
        ready: The run that the parts are of.
        parts: All of them, in order.
        progress: Called for every tensor.

    Raises:
        OutputError: A part is of another run, or is not as it was made.
    """
    planned, started = ready.planned, time.monotonic()
    if is_replacing(planned.destination.path):  # it was killed when everything else was done
        finish_replacing(planned.destination.path)
        return read_report(planned.destination.report_path or planned.destination.path)
    folders = [variant.folder for variant in ready.variants]
    machine = common_identity(parts)["environment"]
    identity, stored = json.loads(json.dumps(make_identity(ready, machine))), ready.form.parts()
    shares = shares_of(ready.plan, ready.form.layout, stored, planned.inputs.finetuned, len(parts))
    owned = list(zip(parts, shares, strict=True))
    for part, share in owned:
        part.check(share, identity, folders)
    owners = {
        place_of(folder, file.name): part
        for part, share in owned
        for folder, file in product(folders, share.layout.files)
        if file.name not in share.pieces
    }
    partial = PartialOutput(
        planned.destination.path,
        ready.form.layout,
        identity,
        folders=folders,
        parts=stored,
        adopted={place: part.path / PurePath(place).relative_to("files") for place, part in owners.items()},
        resume=True,
        overwrite=planned.destination.options.overwrite,
    )
    with partial:
        for part, share in owned:
            for folder in folders:
                for name, offset, data in part.pieces(share, folder):
                    partial.write(name, data, offset, folder)
            partial.commit(part.facts["records"], is_journalled=False)
            for tensor in ready.plan.tensors:
                if tensor.name in share.names:
                    progress(tensor, True)
        choice = Choice(**parts[0].facts["choice"])
        sealed = seal(ready, choice, partial, identity)
        for inner, name, found in (
            (inner, file["name"], file["sha256"]) for inner, files in sealed.weights.items() for file in files
        ):
            owner = owners.get(place_of(inner, name))
            if owner is not None and owner.sha256(inner, name) != found:
                raise owner.refuse(f"has a damaged {name}")
        whole, reports = make_reports(ready, choice, machine, partial, sealed, started, [{} for _ in folders])
        for report in {id(one): one for one in (whole, *reports)}.values():
            _add_up(report, parts)
        return publish(ready, partial, whole, reports)


def _add_up(report: dict[str, Any], parts: Sequence[FinishedPart]) -> None:
    """Have a report tell where the parts were made, and what all of them took."""
    facts = [part.facts for part in parts]
    for name in ("device", "workers"):
        report["arguments"][name] = facts[0]["arguments"][name]
    report["arguments"]["resume"] = False
    timing = report["timing"] = dict(report["timing"])
    for name in ("seconds", "bytes_written"):
        timing[name] += sum(one["timing"][name] for one in facts)
    read = [sum(of_each) for of_each in zip(*(one["timing"]["bytes_read"] for one in facts), strict=True)]
    report["inputs"] = [
        {**one, "bytes_read": one["bytes_read"] + more}
        for one, more in zip(report["inputs"], read, strict=True)
    ]
    timing["bytes_read"] += sum(read)
