"""Run the examples of README.md and docs/ as a reader would, and compare what they print, or record it.

    python -m tests.examples docs/diff.md …      write into these pages what their commands print now

A command is a line after `$ `, or any line of a block of shell in which one is of `monosoup` or `jq`. The
lines below it are what it prints: a line of `…` stands for any lines, and `is_like` compares the others. With
an `error: …` among them the exit code is 1, otherwise 0 (of `diff`, whose checkpoints differ, 1). A block of
YAML that begins with the name of a file in a comment is that file. Blocks of Python are programs, with the
imports of those before them.

The commands of a page run one after another, in one copy of the folder that tests/places.py makes. Before a
command writes OUT, the OUT of an earlier one is removed.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import pty
import re
import shutil
import socketserver
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests import places, warm
from tests.hub import Hub

ROOT = Path(__file__).parents[1]
GENERATED, RUN_ELSEWHERE = {"cli.md", "changelog.md"}, {"reproduce.md", "contributing.md"}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in GENERATED | RUN_ELSEWHERE
]
NOT_RUN = {
    r"\b(sbatch|srun|torchrun|hf jobs) ": "needs Slurm, several nodes or a rented machine",
    r"\bray\b": "needs a cluster of Ray; tests/pipeline/test_ray.py starts one",
    r"^(uvx|uv|pipx|pip|docker) ": "installs monosoup",
    r"\b(sdxl|with-unet|with-text)/": "needs the pipeline of SDXL; tests/adapters has small ones",
}
"""Commands that are not run, and why."""
SLOW = re.compile(r"monosoup search|demo\.py --score")
"""Commands that score many checkpoints, with a new process for each: `make test-slow` runs them."""
PARTS_OF_PROGRAMS = {"get_peft_model(", "from_pretrained(base_model", "update_bn("}
"""Of Python that is not run: it begins with a model that the reader has."""
SHIM = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{}
(echo $$ >&3)
read -r code <&3
exit $code
"""
"""Has a process that is warm already do what this one was started for.

The number is sent by a child: while `echo` writes to 3, that is where 1 leads as well.
"""
MARK = "\x1e"
COLOUR = re.compile(r"\x1b\[[\d;]*m")  # of jq
COLUMNS = 80


class Command(NamedTuple):
    """A command of a page, and the lines of the page that show what it prints."""

    text: str
    shown: slice


class Block(NamedTuple):
    """A block of code in a page."""

    language: str
    start: int
    lines: list[str]

    @property
    def shows(self) -> bool:
        """Whether what is printed is below a command."""
        return any(one.shown.start < one.shown.stop for one in self.commands())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def commands(self) -> list[Command]:
        """What a reader would type, in its order."""
        has_prompt = any(line.startswith("$ ") for line in self.lines)
        if self.language not in ("", "console", "sh") or not (
            has_prompt or re.search(r"\bmonosoup [a-z]|^jq ", self.text, re.MULTILINE)
        ):
            return []
        found: list[Command] = []
        at = 0
        while at < len(self.lines):
            first = at
            while self.lines[at].endswith("\\"):
                at += 1
            at += 1
            text = "\n".join(self.lines[first:at])
            if has_prompt:
                text = text.removeprefix("$ ")
                while at < len(self.lines) and not self.lines[at].startswith("$ "):
                    at += 1
                found.append(Command(text, slice(self.start + first + text.count("\n") + 1, self.start + at)))
            elif text and not text.startswith("#"):
                found.append(Command(text, slice(self.start + at, self.start + at)))
        return found

    def run(self, *, silent: bool, slow: bool) -> list[Command]:
        """What can be run; what is slow, and blocks that do not show what is printed, only if asked to."""
        if not self.shows and not silent:
            return []
        found = [one for one in self.commands() if not any(re.search(words, one.text) for words in NOT_RUN)]
        return [one for one in found if slow or not SLOW.search(one.text)]


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Blocks between fences, and indented ones."""
    at = 0
    while at < len(lines):
        first, fence = at, re.fullmatch(r"```([^`\s]*)[^`]*", lines[at])
        at += 1
        if fence is not None:
            while lines[at] != "```":
                at += 1
            yield Block(fence[1], first + 1, list(lines[first + 1 : at]))
            at += 1
        elif lines[first].startswith("    ") and not lines[first - 1].strip():
            while at < len(lines) and lines[at].startswith("    "):
                at += 1
            yield Block("", first, [line[4:] for line in lines[first:at]])


# What is printed


FREE = (
    (re.compile(r"\b(less than a second|[\d.,]+ (s|ms|seconds?|minutes?|min|hours?|h)\b)"), "TIME"),
    (re.compile(r"[\d.,]+ [kMGT]?B/s"), "RATE"),
    (re.compile(r"^(memory +about ).*"), "MEMORY"),
    (re.compile(r"\bon \d+ cores?\b"), "CORES"),
)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?")
RELATIVE = 1e-6


def is_like(shown: str, printed: str) -> bool:
    """Whether a line of a page stands for a printed one.

    Times, rates, cores and the memory of a run may differ, and spaces in their number. Whole numbers are the
    same. Others differ by one in the last place that the page shows, or by a millionth.
    """
    first, second = (" ".join(_without_free(line).split()) for line in (shown, printed))
    if NUMBER.sub("#", first) != NUMBER.sub("#", second):
        return False
    return all(map(_are_near, NUMBER.findall(first), NUMBER.findall(second)))


def _without_free(line: str) -> str:
    for words, name in FREE:
        line = words.sub(name, line)
    return line


def _are_near(shown: str, printed: str) -> bool:
    if "." not in shown + printed and "e" not in shown + printed:
        return shown == printed
    digits, _, exponent = shown.partition("e")
    last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(shown) - float(printed)) <= max(1.001 * last, RELATIVE * abs(float(shown)))


def matches(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether the lines of a page stand for the printed ones; a line of … for any."""
    return _match(unfolded(shown), unfolded(printed))


def unfolded(lines: Sequence[str]) -> list[str]:
    """The lines, with what a terminal put below a row because it did not fit put behind it again."""
    result: list[str] = []
    width = 0
    for line in lines:
        text = line.strip()
        if result and line.startswith(" ") and text and width + len(text.split()[0]) >= COLUMNS:
            result[-1] += f" {text}"
        else:
            result.append(line)
        width = len(line)
    return result


def _match(shown: Sequence[str], printed: Sequence[str]) -> bool:
    if not shown:
        return not printed
    if shown[0] == "…":
        return any(_match(shown[1:], printed[at:]) for at in range(len(printed) + 1))
    return bool(printed) and is_like(shown[0], printed[0]) and _match(shown[1:], printed[1:])


def recorded(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """The printed lines, cut where the page cuts: before and after the lines that are nearest to its own."""
    result: list[str] = []
    position, pieces = 0, _pieces(shown)
    for number, piece in enumerate(pieces):
        if number:
            result.append("…")
        if not piece:
            continue
        start = _nearest(piece[0], printed, position) if number else 0
        is_last = number == len(pieces) - 1
        stop = len(printed) if is_last else _nearest(piece[-1], printed, start + (len(piece) > 1)) + 1
        while stop < len(printed) and len(unfolded(printed[start : stop + 1])) == len(
            unfolded(printed[start:stop])
        ):
            stop += 1
        old = {_without_free(line): line for line in piece}
        result += [old.get(_without_free(line), line) for line in printed[start:stop]]
        position = stop
    return result


def _pieces(shown: Sequence[str]) -> list[list[str]]:
    pieces: list[list[str]] = [[]]
    for line in shown:
        if line == "…":
            pieces.append([])
        else:
            pieces[-1].append(line)
    return pieces


def _nearest(line: str, printed: Sequence[str], start: int) -> int:
    likeness = [
        difflib.SequenceMatcher(None, line.split(), one.split()).ratio()
        + (NUMBER.sub("#", line).split() == NUMBER.sub("#", one).split())
        for one in printed[start:]
    ]
    return start + likeness.index(max(likeness)) if likeness else start


# Running


class Example(NamedTuple):
    """A command, the lines that the page shows, and what came of it."""

    command: Command
    shown: list[str]
    code: int
    printed: list[str]

    def trouble(self) -> str | None:
        """In what it is not as the page says."""
        differs = self.command.text.startswith("monosoup diff ")
        expected = int(differs or any(line.startswith("error: ") for line in self.shown))
        text = "\n".join(self.printed)
        if self.code != expected:
            return f"$ {self.command.text}\nexit code {self.code}, expected {expected}:\n{text}"
        if self.shown and not matches(self.shown, self.printed):
            difference = "\n".join(difflib.ndiff(self.shown, self.printed))
            return f"$ {self.command.text}\nprints something else:\n{difference}"
        return None


class _Answering(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        pid = int(self.rfile.readline())
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
        for at, word in enumerate(words[:-1]):
            if word in ("-o", "--output") and "--overwrite" not in words:
                _remove(folder / words[at + 1])
        self.wfile.write(f"{warm.answer(pid)}\n".encode())


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


@contextmanager
def shell() -> Iterator[dict[str, str]]:
    """An environment in which `monosoup` is the command of this tree, forked from a warm process."""
    with (
        socketserver.TCPServer(("127.0.0.1", 0), _Answering) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        shim = Path(folder, "monosoup")
        shim.write_text(SHIM.format(server.server_address[1]))
        shim.chmod(0o755)
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "PYTEST"))}
        path = os.pathsep.join((folder, str(Path(sys.executable).parent), os.environ["PATH"]))
        yield kept | {"PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "NO_COLOR": "1"}
        server.shutdown()


def transcript(
    commands: Sequence[str], place: Path, environment: dict[str, str]
) -> list[tuple[int, list[str]]]:
    """What a shell prints on a terminal of 80 columns for each command, and its exit code."""
    script = "".join(f"{command}\nprintf '{MARK}%s{MARK}' $?\n" for command in commands)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    while part := _read(ours):
        text += part
    os.close(ours)
    process.wait()
    parts = COLOUR.sub("", text.decode()).split(MARK)
    return [
        (int(code), [line.rstrip() for line in printed.rstrip("\n").split("\n")] if printed.strip() else [])
        for printed, code in zip(parts[::2], parts[1::2], strict=False)
    ]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # everybody has closed it
        return b""


@contextmanager
def room(place: Path, folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A copy of the place, and the environment in which org/base, org/ft and others are on a Hub."""
    places.copy(place, folder / "place")
    with Hub(folder / "hub") as hub:
        hub.orgs = ["me"]  # the owner of the token is in it
        for revision in ("main", "v1", "v2"):
            hub.add("org/base", place / "base", revision)
            hub.add("org/ft", place / "ft", revision)
        of_hub = hub.env(folder / "home", HF_TOKEN=hub.token)
        yield {**of_hub, **environment}


def run(
    page: Path, place: Path, folder: Path, environment: dict[str, str], *, silent: bool, slow: bool
) -> Iterator[Example]:
    """Run the commands of a page, as `Block.run` chooses them."""
    lines = page.read_text().splitlines()
    found = [(block, block.run(silent=silent, slow=slow)) for block in blocks(lines)]
    if not any(commands for _, commands in found):
        return
    with room(place, folder, environment) as environment:
        for block, commands in found:
            if block.language == "yaml" and (name := re.match(r"# (\S+\.ya?ml)$", block.lines[0])):
                (folder / "place" / name[1]).write_text(block.text)
            results = transcript([one.text for one in commands], folder / "place", environment)
            for command, (code, printed) in zip(commands, results, strict=True):
                yield Example(command, lines[command.shown], code, printed)


def programs(page: Path) -> Iterator[str]:
    """The blocks of Python in a page, each with the imports of those before it."""
    imports: list[str] = []
    for block in blocks(page.read_text().splitlines()):
        if block.language == "python":
            if not any(words in block.text for words in PARTS_OF_PROGRAMS):
                yield "\n".join([*imports, block.text])
            imports += re.findall(r"^(?:import|from) .*", block.text, re.MULTILINE)


def record(page: Path, place: Path, folder: Path, environment: dict[str, str]) -> int:
    """Write what its commands print into a page, and return the number of lines that changed."""
    lines = page.read_text().splitlines()
    changed = 0
    examples = list(run(page, place, folder, environment, silent=False, slow=True))
    for example in reversed(examples):
        if example.shown and example.trouble() is not None:
            new = recorded(example.shown, example.printed)
            print(f"{page.name}: $ {example.command.text}", *difflib.ndiff(example.shown, new), sep="\n")
            lines[example.command.shown] = new
            changed += 1
        elif example.trouble() is not None:
            print(f"{page.name}: {example.trouble()}")
    page.write_text("\n".join(lines) + "\n")
    return changed


def main(names: Sequence[str]) -> None:
    """Record these pages, or all."""
    with tempfile.TemporaryDirectory() as drafts, shell() as environment:
        places.make(Path(drafts, "place"), environment)
        for page in [Path(name).resolve() for name in names] or PAGES:
            changed = record(page, Path(drafts, "place"), Path(drafts, page.stem), environment)
            print(f"{page.name}: {changed} examples recorded")


if __name__ == "__main__":
    main(sys.argv[1:])
