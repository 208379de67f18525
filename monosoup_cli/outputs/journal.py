"""The journal of a run: a file with one JSON object per line, from which an interrupted run resumes.

{"identity": …}                              first line: what the result depends on
{"tensor": NAME, "checksums": […], "records": […]}     a finished tensor, whose bytes are on the disk
{"note": NAME, "content": …}                 anything else that need not be done again
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monosoup_cli.errors import ResumeError, crop
from monosoup_cli.outputs.durable import sync_data, write_all

__all__ = ["Journal", "finished_line", "note_line", "read_journal"]


def finished_line(tensor: str, checksums: Sequence[int], records: Sequence[Mapping[str, Any]]) -> bytes:
    """The line of a finished tensor."""
    return _line({"tensor": tensor, "checksums": checksums, "records": records})


def note_line(name: str, content: Any) -> bytes:
    """The line of a note."""
    return _line({"note": name, "content": content})


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


class Journal:
    """A run's journal, open for appending. Any thread may append."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._appending = threading.Lock()

    def start(self, lines: Sequence[bytes], identity: Mapping[str, Any]) -> None:
        """Begin with the lines of the run that is resumed, or with the identity of a new run."""
        kept = b"".join(lines) or _line({"identity": identity})
        os.ftruncate(self._descriptor, len(kept))  # drops a last line that was torn
        write_all(self._descriptor, memoryview(kept), 0)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        os.fsync(self._descriptor)

    def append(self, lines: bytes) -> None:
        """Write whole lines, and wait until they are on the disk."""
        with self._appending:
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
            sync_data(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path, identity: Mapping[str, Any]) -> list[bytes]:
    """Read the whole lines of an interrupted run's journal.

    Returns:
        The lines, the first one with the identity; empty if there is no journal.

    Raises:
        ResumeError: The journal belongs to a run of another identity, or is damaged.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    if not lines:
        return []
    try:
        before = json.loads(lines[0])["identity"]
    except (ValueError, KeyError, TypeError):
        raise ResumeError(
            "the journal is damaged", path=path.parent, hint="start over with --overwrite"
        ) from None
    changed = _differences(before, identity)
    if changed:
        then = "rerun with the same arguments"
        if moved := _moved(before, identity):
            then = f"a branch on the Hub has moved: rerun with its old commit, @{moved}"
        raise ResumeError(
            f"the interrupted run differs in {crop(', '.join(changed))}",
            path=path.parent,
            hint=f"{then}, or start over with --overwrite",
        )
    return lines


def _moved(before: Any, now: Any) -> str | None:
    """The commit of an input of the interrupted run, if its branch is at another commit now."""
    inputs = now.get("inputs", {})
    for name, facts in before.get("inputs", {}).items() if isinstance(before, dict) else ():
        commit = facts.get("commit")
        if commit is not None and commit != inputs.get(name, {}).get("commit"):
            return str(commit)
    return None


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two identities differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix or "its identity"]
    return [
        difference
        for name in sorted({*before, *now})
        for difference in _differences(before.get(name), now.get(name), f"{prefix}.{name}".lstrip("."))
    ]
