"""A part of an output that several machines make, as it is on the disk.

OUT.parts/3-of-8/part.json      what the part was made of, and the records of its tensors
OUT.parts/3-of-8/…              whole files of the output, and pieces of files that are cut
OUT.parts/3-of-8.partial        the part while it is made (outputs/workplace.py)

No part reads what another one writes. A part appears by a rename once it is whole and on the disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from monosoup_cli.errors import OutputError, crop, some
from monosoup_cli.formats.files import InputFile, blocks_of
from monosoup_cli.outputs.journal import content_of, differences, sealed_line
from monosoup_cli.outputs.layout import OutputFile
from monosoup_cli.outputs.workplace import parts_path, unfinished_run
from monosoup_cli.pipeline.destination import Part, part_path
from monosoup_cli.pipeline.shares import Share

__all__ = ["PART_NAME", "FinishedPart", "common_identity", "find_parts", "parts_there", "read_part"]

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
    """

    part: Part
    path: Path
    facts: Mapping[str, Any]

    def refuse(self, problem: str, path: Path | None = None) -> OutputError:
        """The error for a part that must be made again."""
        again = f"run its command with --part {self.part.words} --overwrite again"
        return OutputError(f"part {self.part.words} {problem}", path=path or self.path, hint=again)

    def check(self, share: Share, identity: Mapping[str, Any], folders: Sequence[str]) -> None:
        """Check that the part is of this run, and has what its share has.

        Raises:
            OutputError: It was made of something else, or a file is missing or cut.
        """
        changed = differences(self.facts["identity"], identity)
        if changed:
            raise self.refuse(f"differs from the others, or from the inputs, in {crop(', '.join(changed))}")
        if self.facts["records"].keys() != share.names or any(
            [one["name"] for one in self.facts["files"][folder]] != [file.name for file in share.layout.files]
            for folder in folders
        ):
            raise self.refuse("has another share")
        for folder, file in product(folders, share.layout.files):
            path = self.path / folder / file.name
            nbytes = path.stat().st_size if path.is_file() else None
            if nbytes is None and file.name not in share.pieces:
                continue  # moved by a run of finish that was interrupted: its checksum tells
            if nbytes != file.nbytes:
                raise self.refuse(f"lacks {file.name}" if nbytes is None else f"has a cut {file.name}", path)

    def sha256(self, folder: str, name: str) -> str:
        """The checksum of one of its files."""
        found: str = next(one["sha256"] for one in self.facts["files"][folder] if one["name"] == name)
        return found

    def pieces(self, share: Share, folder: str) -> Iterator[tuple[str, int, memoryview]]:
        """Yield the tensors of all its pieces: name, offset in the tensor, bytes.

        Raises:
            OutputError: A piece has another checksum. What was yielded of it must not be used.
        """
        for file in share.layout.files:
            if file.name in share.pieces:
                yield from self._piece(file, folder)

    def _piece(self, file: OutputFile, folder: str) -> Iterator[tuple[str, int, memoryview]]:
        path = self.path / folder / file.name
        digest, start = sha256(), -len(file.header.raw)
        tensors = iter(sorted(file.header.tensors.values(), key=lambda one: one.start))
        current = next(tensors, None)
        with closing(InputFile(path)) as opened:
            for block in blocks_of(opened):
                digest.update(block)
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
        if digest.hexdigest() != self.sha256(folder, file.name):
            raise self.refuse(f"has a damaged {file.name}", path)


def parts_there(output: Path) -> list[Part]:
    """The parts of an output that are whole, by their names, in no order."""
    folder = parts_path(output)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [Part(int(name[1]), int(name[2])) for name in map(NAME.fullmatch, names) if name]


def find_parts(output: Path) -> list[FinishedPart]:
    """The parts of an output, in order.

    Raises:
        OutputError: There are none, some are missing, or they are of different numbers.
    """
    folder = parts_path(output)
    found: dict[int, set[int]] = {}
    for part in parts_there(output):
        found.setdefault(part.count, set()).add(part.number)
    if not found:
        raise OutputError(
            "there are no parts", path=folder, hint="run a command with --part 1/N, 2/N, … first"
        )
    if len(found) > 1:
        counts = " and ".join(map(str, sorted(found)))
        raise OutputError(f"there are parts of {counts}", path=folder, hint="remove those of another run")
    ((count, numbers),) = found.items()
    missing = [Part(number, count) for number in range(1, count + 1) if number not in numbers]
    if missing:
        resume = any(unfinished_run(part_path(output, part)) for part in missing)
        raise OutputError(
            f"{len(missing):,} of {count:,} parts are missing",
            path=folder,
            found=f"no {some([part.words for part in missing], NAMED)}",
            hint=f"run its command with --part {missing[0].words}{' --resume' if resume else ''}",
        )
    return [read_part(part_path(output, part), part) for part in (Part(n, count) for n in sorted(numbers))]


def common_identity(parts: Sequence[FinishedPart]) -> Mapping[str, Any]:
    """The identity that most parts have."""
    counts = Counter(sealed_line(part.facts["identity"]) for part in parts)
    most = max(counts, key=lambda line: counts[line])
    found: Mapping[str, Any] = next(
        part.facts["identity"] for part in parts if sealed_line(part.facts["identity"]) == most
    )
    return found


def read_part(path: Path, part: Part) -> FinishedPart:
    """Read what a part was made of.

    Raises:
        OutputError: It is damaged.
    """
    facts = None
    with suppress(OSError):
        facts = content_of((path / PART_NAME).read_bytes())
    empty = FinishedPart(part, path, facts or {})
    if facts is None or facts.get("part") != part.words:
        raise empty.refuse(f"has no whole {PART_NAME}")
    return empty
