"""A part of an output that several machines make, as it is on the disk.

OUT.parts/3-of-8/part.json      what the part was made of, and the records of its tensors
OUT.parts/3-of-8/…              whole files of the output, and pieces of files that are cut
OUT.parts/3-of-8.partial        the part while it is made (outputs/workplace.py)

No part reads what another one writes. A part appears by a rename once it is whole and on the disk.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from monosoup_cli.errors import OutputError, crop, some
from monosoup_cli.formats.files import InputFile, blocks_of, sha256_of
from monosoup_cli.outputs.journal import content_of, differences, sealed_line
from monosoup_cli.outputs.layout import OutputFile
from monosoup_cli.outputs.workplace import is_in_use, parts_path, unfinished_run
from monosoup_cli.pipeline.destination import Part, check_parts, part_path
from monosoup_cli.pipeline.shares import Share

__all__ = [
    "NAMED",
    "PART_NAME",
    "FinishedPart",
    "State",
    "find_parts",
    "parts_there",
    "read_part",
    "refusal",
    "state_of",
    "told_differences",
    "typical",
]

PART_NAME = "part.json"
NAME = re.compile(r"([0-9]+)-of-([0-9]+)")
NAMED = 4
"""How many parts an error names."""


@dataclass(frozen=True)
class FinishedPart:
    """A part that is whole.

    Attributes:
        part: Which part.
        path: Its folder.
        facts: What it was made of, and what it has.
        is_new: Whether this run has made it.
    """

    part: Part
    path: Path
    facts: Mapping[str, Any]
    is_new: bool = False

    def differs(self, identity: Mapping[str, Any]) -> str | None:
        """What of it is not of this run."""
        changed = told_differences(self.facts["identity"], identity, "the others")
        return changed and f"differs from the others in {changed}"

    def lacks(self, share: Share, folders: Sequence[str]) -> str | None:
        """What it lacks of what its share has, as names and sizes tell."""
        wanted = [file.name for file in share.layout.files]
        if self.facts["records"].keys() != share.names or any(
            [one["name"] for one in self.facts["files"][folder]] != wanted for folder in folders
        ):
            return "has another share"
        for folder, file in product(folders, share.layout.files):
            path = self.path / folder / file.name
            nbytes = path.stat().st_size if path.is_file() else None
            if nbytes != file.nbytes:
                return f"lacks {file.name}" if nbytes is None else f"has a truncated {file.name}"
        return None

    def damage(self) -> str | None:
        """Which of its files does not have its checksum; all are read."""
        for folder, files in self.facts["files"].items():
            for file in files:
                with closing(InputFile(self.path / folder / file["name"])) as opened:
                    if sha256_of(opened) != file["sha256"]:
                        return f"has a damaged {file['name']}"
        return None

    def sha256(self, folder: str, name: str) -> str:
        """The checksum of one of its files."""
        found: str = next(one["sha256"] for one in self.facts["files"][folder] if one["name"] == name)
        return found

    def pieces(self, share: Share, folder: str) -> Iterator[tuple[str, int, memoryview]]:
        """Yield the tensors of all its pieces: name, offset in the tensor, bytes."""
        for file in share.layout.files:
            if file.name in share.pieces:
                yield from _tensors_of(self.path / folder / file.name, file)


def refusal(folder: Path, faults: Sequence[tuple[Part, str]]) -> OutputError:
    """The error for parts that must be made again.

    Args:
        folder: The folder of all parts.
        faults: Each part, and what is wrong with it.
    """
    words = [f"part {part.words} {fault}" for part, fault in faults]
    more = [f"{len(words) - NAMED:,} more"] if len(words) > NAMED else []
    again = ", ".join(part.words for part, _ in faults[:NAMED])
    return OutputError(
        "; ".join([*words[:NAMED], *more]),
        path=folder,
        hint=f"run the command with --part {again} --overwrite again",
    )


def told_differences(before: Mapping[str, Any], now: Mapping[str, Any], other: str) -> str | None:
    """In what two identities differ, in words; None where they are the same.

    Args:
        before: The identity of a part.
        now: The other one.
        other: Whose that is.
    """

    def shown(value: object) -> str:
        return "not set" if value is None else str(value)

    changed = differences(before, now)
    if "command" in changed:
        changed = ["command"]
    values = [
        f"{name} ({shown(_leaf(before, name))}; {other}: {shown(_leaf(now, name))})"
        for name in changed[:NAMED]
    ]
    return crop(some([*values, *changed[NAMED:]], NAMED)) if changed else None


def _leaf(identity: Any, name: str) -> object:
    """What an identity has under a dotted name, as `differences` gives it."""
    while isinstance(identity, dict) and name:
        key = max((key for key in identity if name == key or name.startswith(f"{key}.")), key=len, default="")
        if not key:
            return None
        identity, name = identity[key], name[len(key) + 1 :]
    return identity


def _tensors_of(path: Path, file: OutputFile) -> Iterator[tuple[str, int, memoryview]]:
    """Yield the tensors of a file in blocks."""
    start = -len(file.header.raw)
    tensors = iter(sorted(file.header.tensors.values(), key=lambda one: one.start))
    current = next(tensors, None)
    with closing(InputFile(path)) as opened:
        for block in blocks_of(opened):
            data = memoryview(block)
            if start < 0:
                skipped = min(-start, len(data))
                start, data = start + skipped, data[skipped:]
            while len(data) and current is not None:
                count = min(len(data), current.stop - start)
                if count:
                    yield current.name, start - current.start, data[:count]
                start, data = start + count, data[count:]
                if start == current.stop:
                    current = next(tensors, None)


def parts_there(output: Path) -> list[Part]:
    """The parts of an output that are whole, by their names, in no order."""
    folder = parts_path(output)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [Part(int(name[1]), int(name[2])) for name in map(NAME.fullmatch, names) if name]
    return [part for part in found if 1 <= part.number <= part.count]


State = Literal["complete", "not whole", "being made", "interrupted", "not begun"]


def state_of(output: Path, part: Part) -> State:
    """What there is of a part of an output."""
    place = part_path(output, part)
    if is_in_use(place):
        return "being made"
    if unfinished_run(place):
        return "interrupted"
    return "complete" if place.is_dir() else "not begun"


def find_parts(output: Path) -> list[FinishedPart]:
    """The parts of an output, in order.

    Raises:
        OutputError: There are none, some are missing, or they are of different numbers.
    """
    if not output.name:
        raise OutputError("cannot be the output", path=output)
    check_parts(output)
    folder = parts_path(output)
    found: dict[int, set[int]] = {}
    for part in parts_there(output):
        found.setdefault(part.count, set()).add(part.number)
    if not found:
        given = output.with_name(output.name.removesuffix(".parts"))
        single = output.with_name(f"{output.name}.safetensors")
        if parts_path(single).is_dir():
            given = single
        if given != output:
            hint = f"give the output: `monosoup finish {given}`"
            raise OutputError("there are no parts", path=output, hint=hint)
        if os.path.lexists(output):
            raise OutputError(
                "there are no parts, and the output is there: it may be finished already",
                path=output,
                hint=f"`monosoup verify {output}` checks it",
            )
        raise OutputError(
            "there are no parts", path=folder, hint="run a command with --part 1/N, 2/N, … first"
        )
    if len(found) > 1:
        counts = " and ".join(map(str, sorted(found)))
        names = [
            f"{number}-of-{count}" for count, numbers in sorted(found.items()) for number in sorted(numbers)
        ]
        raise OutputError(
            f"there are parts of {counts}",
            path=folder,
            found=some(names, 2 * NAMED),
            hint="remove those of another run",
        )
    ((count, numbers),) = found.items()
    missing = [Part(number, count) for number in range(1, count + 1) if number not in numbers]
    if missing:
        states: dict[State, list[str]] = {"being made": [], "interrupted": [], "not begun": []}
        for part in missing:
            states[state_of(output, part)].append(part.words)
        first = next(iter(states["interrupted"] or states["not begun"]), None)
        raise OutputError(
            "; ".join(f"{state}: {some(words, NAMED)}" for state, words in states.items() if words),
            path=folder,
            expected=f"{count:,} parts",
            hint="wait for it"
            if first is None
            else f"run the command with --part {first}{' --resume' if states['interrupted'] else ''}",
        )
    return [read_part(part_path(output, part), part) for part in (Part(n, count) for n in sorted(numbers))]


def typical(parts: Sequence[FinishedPart]) -> FinishedPart:
    """The first of the parts whose identity most of them have."""
    lines = [sealed_line(part.facts["identity"]) for part in parts]
    return parts[lines.index(Counter(lines).most_common(1)[0][0])]


def read_part(path: Path, part: Part) -> FinishedPart:
    """Read what a part was made of.

    Raises:
        OutputError: It is damaged.
    """
    facts = None
    with suppress(OSError):
        facts = content_of((path / PART_NAME).read_bytes())
    if facts is None or facts.get("part") != part.words:
        raise refusal(path.parent, [(part, f"has no whole {PART_NAME}")])
    return FinishedPart(part, path, facts)
