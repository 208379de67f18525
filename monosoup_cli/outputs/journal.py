"""The journal of a run: a file with one JSON object per line, from which an interrupted run resumes.

{"identity": …, "crc32": …}                      first line: what the result depends on
{"tensor": …, "checksums": …, "records": …, …}   a finished tensor, whose bytes are on the disk
{"note": NAME, "content": …, "crc32": …}         anything else that need not be done again

`crc32` is the checksum of what stands before it in the line. Where a line does not hold, what it and later
lines say is done again.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monosoup_cli.errors import ResumeError, crop
from monosoup_cli.outputs.durable import write_all
from monosoup_cli.outputs.open_files import as_time, to_set_times
from monosoup_cli.system import sync, sync_data

__all__ = [
    "FACTS",
    "Journal",
    "content_of",
    "differences",
    "finished_line",
    "note_line",
    "read_journal",
    "sealed_line",
    "way_back",
]

CHECKSUM = b', "crc32": '
MAX_LINE_BYTES = 1 << 26
"""A longer line does not hold."""
FACTS = {
    "bytes": "size",
    "commit": "commit",
    "header": "header",
    "header_sha256": "header",
    "modified": "time of modification",
    "mtime_ns": "time of modification",
}
"""What an identity or a report has of every file, in words."""
FILE = re.compile(r"(?:inputs\.(\w+) (\d+) |side_files\.)(.+)", re.DOTALL)
"""The name of a file in an identity: the role and the number of its input, and its path there."""


def finished_line(tensor: str, checksums: Sequence[int], records: Sequence[Mapping[str, Any]]) -> bytes:
    """The line of a finished tensor."""
    return sealed_line({"tensor": tensor, "checksums": checksums, "records": records})


def note_line(name: str, content: Any) -> bytes:
    """The line of a note."""
    return sealed_line({"note": name, "content": content})


def sealed_line(entry: Mapping[str, Any]) -> bytes:
    """A line with its checksum."""
    text = json.dumps(entry).encode().removesuffix(b"}")
    return b"%s%s%d}\n" % (text, CHECKSUM, zlib.crc32(text))


class Journal:
    """A run's journal, open for appending. Any thread may append."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._appending = threading.Lock()

    def start(self, kept: int, identity: Mapping[str, Any]) -> None:
        """Go on after what is kept of an interrupted run, or begin with the identity of a new run."""
        os.ftruncate(self._descriptor, kept)
        if not kept:
            write_all(self._descriptor, memoryview(sealed_line({"identity": identity})), 0)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        sync(self._descriptor)

    def append(self, lines: bytes) -> None:
        """Write whole lines, and wait until they are on the disk."""
        with self._appending:
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
            sync_data(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path, identity: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Read an interrupted run's journal, up to the first line that does not hold.

    Returns:
        What the lines after the first one say, and the bytes of all of them; ([], 0) if there is no journal.

    Raises:
        ResumeError: The journal belongs to a run of another identity, or its first line does not hold.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return [], 0
    except OSError as error:  # a link, a socket
        raise _damaged(path, error.strerror) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _damaged(path, "not a file of its own")
    with os.fdopen(descriptor, "rb") as file:
        head = file.readline(MAX_LINE_BYTES)
        if not head.endswith(b"\n") and not file.read(1):
            return [], 0  # the run was stopped before it began
        first = content_of(head)
        if first is None or "identity" not in first:
            raise _damaged(path, "its first line does not hold")
        _compare(first["identity"], identity, path)
        entries, kept = [], len(head)
        while (entry := content_of(line := file.readline(MAX_LINE_BYTES))) is not None:
            entries.append(entry)
            kept += len(line)
    return entries, kept


def _damaged(path: Path, how: str | None) -> ResumeError:
    return ResumeError(
        f"the journal is damaged: {how}", path=path.parent, hint="start over with --overwrite alone"
    )


def content_of(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it does not hold."""
    text, _, checksum = line.rpartition(CHECKSUM)
    if checksum != b"%d}\n" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    entry.pop("crc32", None)
    return entry


def way_back(before: Any, now: Any, changed: Sequence[str]) -> str:
    """How a run gets back to an identity, from which the present one differs."""
    if moved := _moved(before, now):
        return f"a branch on the Hub has moved: rerun with its old commit, @{moved}"
    if all(name.startswith(("inputs.", "side_files.", "configs.", "settings.")) for name in changed):
        return f"these files have changed since: put the old ones back{_old_times(before, now)}"
    return "rerun with the same arguments"


def _compare(before: Any, identity: Mapping[str, Any], path: Path) -> None:
    """Raise ResumeError if an interrupted run has another identity."""
    changed = differences(before, identity)
    if changed:
        then = way_back(before, identity, changed)
        has_base = any(name.startswith("base ") for name in identity.get("inputs", ()))
        named = [_in_words(name, has_base=has_base) for name in changed]
        raise ResumeError(
            f"the interrupted run differs in {crop(', '.join(named))}",
            path=path.parent,
            hint=f"{then}, or start over with --overwrite alone",
        )


def _in_words(name: str, *, has_base: bool) -> str:
    """What the dotted name of a fact about a file means to the user; other names are as they are."""
    fact = name.rpartition(".")[2]
    file = FILE.fullmatch(name.removesuffix(f".{fact}"))
    if file is None or fact not in FACTS:
        return name
    role, number, path = file.groups()
    if role is None:
        return f"{path} ({FACTS[fact]})"
    numbered = f" {int(number) + (not has_base)}" if role == "finetuned" else ""
    return f"{role.upper()}{numbered}'s {path} ({FACTS[fact]})"


def _old_times(before: Any, now: Any) -> str:
    """How files get the times back by which the interrupted run knows them."""
    times: dict[str, str] = {}
    with suppress(AttributeError, IndexError, KeyError, TypeError):  # an identity of another shape
        arguments = now["arguments"]
        has_base = any(name.startswith("base ") for name in now["inputs"])
        sources = [*([arguments["base"]] if has_base else []), *arguments["finetuned"]]
        for group in ("inputs", "side_files"):
            for name, facts in before[group].items():
                if facts.get("mtime_ns") != now[group].get(name, facts).get("mtime_ns"):
                    _, number, file = name.split(" ", 2) if group == "inputs" else ("", has_base, name)
                    source = Path(sources[int(number)])
                    place = source if source.name == file else source / file
                    times[str(place)] = as_time(facts["mtime_ns"])
    return f" with their old times ({to_set_times(times)})" if times else ""


def _moved(before: Any, now: Any) -> str | None:
    """The commit of an input of the interrupted run, if its branch is at another commit now."""
    inputs = now.get("inputs", {})
    with suppress(AttributeError):  # an identity of another shape has no inputs
        for name, facts in before.get("inputs", {}).items():
            commit = facts.get("commit")
            if commit is not None and commit != inputs.get(name, {}).get("commit"):
                return str(commit)
    return None


def differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two identities differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix or "its identity"]
    return [
        difference
        for name in sorted({*before, *now})
        for difference in differences(before.get(name), now.get(name), f"{prefix}.{name}".lstrip("."))
    ]
