"""Writes that survive a power failure, and never follow a link."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from monosoup_cli.system import sync

__all__ = ["move_file", "sync_folder", "write_all", "write_file"]


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls that takes."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def write_file(target: Path, blocks: Iterable[bytes | memoryview]) -> tuple[os.stat_result, str]:
    """Write a file, and sync it.

    Returns:
        Its status, and the SHA-256 of what was written.
    """
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o666), "wb") as file:
        for block in blocks:
            file.write(block)
            digest.update(block)
        file.flush()
        sync(file.fileno())
        return os.fstat(file.fileno()), digest.hexdigest()


def move_file(source: Path, target: Path) -> None:
    """Rename a file, durably; if the target is on another file system, copy it next to the target first."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = target.with_name(f".{target.name}.partial")
        write_file(draft, [source.read_bytes()])
        draft.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new files, renames) survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
