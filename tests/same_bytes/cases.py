"""The cases: command lines, from cases.txt, and for every kind of adapter the same three."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.same_bytes.inputs import ADAPTERS

INPUT = re.compile(r"@(\w+)(/[^\s']*)?")
CODE = re.compile(r"\[(-?\d+)\] ")
KILLED = -9

TIED = ("tied_embedding",)
"""Adapters that change one use of weights that their base ties, and so cannot be merged."""
NEED_A_BASE = {"dora", "dora_gpt2", "dora_embedding", "dora_convolution", "experts_patterns"}
"""Adapters that cannot be edited without a base."""

SCORER = """
import json, pathlib, struct, sys

def head(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    start, stop = json.loads(data[8 : 8 + length])["head.weight"]["data_offsets"]
    return struct.unpack(f"<{(stop - start) // 4}f", data[8 + length + start : 8 + length + stop])

path = pathlib.Path(sys.argv[1])
path = path / "model.safetensors" if path.is_dir() else path
base = pathlib.Path("../../in/plain/base.safetensors")
print("scoring", path.name)
print(-sum((one - other) ** 2 for one, other in zip(head(path), head(base), strict=True)))
"""
"""A score command: the nearer the head to the base's, the better, so that a mean beats its members."""

FAULTY = f"""
import pathlib
calls = pathlib.Path("calls")
count = len(calls.read_text()) if calls.exists() else 0
calls.write_text("x" * (count + 1))
if count == 2:
    raise SystemExit(3)
{SCORER}"""
"""A score command that fails the third time that it is called."""

SCORERS = {"scorer.py": SCORER, "faulty.py": FAULTY}


@dataclass(frozen=True)
class Case:
    """Commands that run one after the other in a folder that holds `files`, and their exit codes."""

    name: str
    commands: Sequence[Sequence[str]]
    codes: Sequence[int]
    inputs: Sequence[str]
    files: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Its name, as a folder's."""
        return self.name.replace(" ", "-")

    @property
    def is_interrupted(self) -> bool:
        return KILLED in self.codes


def read_cases() -> Iterator[Case]:
    """Those of cases.txt, with its definitions put in."""
    definitions: dict[str, str] = {}
    for paragraph in Path(__file__).with_name("cases.txt").read_text().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        for number, line in enumerate(lines):
            lines[number] = re.sub(r"\$[A-Z]+\d?\b(?! =)", lambda match: definitions[match[0]], line)
            if line.startswith("$"):
                name, _, words = lines[number].partition(" = ")
                definitions[name] = words
        if lines and not lines[0].startswith("$"):
            yield make_case(lines[0], [line.strip() for line in lines[1:]])


def make_case(name: str, lines: Sequence[str]) -> Case:
    """A case of command lines as they are in cases.txt."""
    codes = [int(match[1]) if (match := CODE.match(line)) else 0 for line in lines]
    lines = [CODE.sub("", line, count=1) for line in lines]
    inputs = dict.fromkeys(match[1] for line in lines for match in INPUT.finditer(line))
    commands = [shlex.split(INPUT.sub(r"../../in/\1\2", line)) for line in lines]
    files = {file: script for file, script in SCORERS.items() if any(file in line for line in lines)}
    return Case(name, commands, codes, list(inputs), files)


def adapter_cases() -> Iterator[Case]:
    """Every kind of adapter: edited, interpolated, and edited as an adapter."""
    for name in ADAPTERS:
        pair = f"@{name}/base @{name}/adapter-1"
        refused = "[1] " if name in NEED_A_BASE else ""
        unmerged = "[1] " if name in TIED else ""
        yield make_case(
            f"adapter {name}",
            [
                f"{unmerged}edit {pair} -o out",
                f"{unmerged}wise {pair} -o wise --alpha 0.5",
                f"{refused}edit - @{name}/adapter-1 -o again --as-adapter",
            ],
        )


CASES = [*read_cases(), *adapter_cases()]
