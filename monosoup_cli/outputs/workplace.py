"""OUT.partial, the folder next to OUT in which a run works: where it is, and which run holds it.

OUT.partial/lock       the run that works here holds it with flock
OUT.partial/journal    see journal.py
OUT.partial/files/     the files of OUT, in one subfolder per checkpoint if there are several
OUT.partial/replaced   the old OUT, for the moment between moving it aside and removing it
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from monosoup_cli.errors import OutputError

__all__ = ["is_in_use", "partial_path", "refuse_unfinished", "take_lock", "unfinished_run"]


def partial_path(output: Path) -> Path:
    """The folder in which a run makes OUT."""
    return output.with_name(f"{output.name}.partial")


def unfinished_run(output: Path) -> bool:
    """Whether an interrupted run left something to resume."""
    return (partial_path(output) / "files").is_dir()


def refuse_unfinished(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that the work of an interrupted run may be resumed or dropped.

    Raises:
        OutputError: There is such work, but neither `resume` nor `overwrite` is set.
    """
    if unfinished_run(output) and not (resume or overwrite):
        raise OutputError(
            "an interrupted run left unfinished work",
            path=partial_path(output),
            hint="continue with --resume, or start over with --overwrite",
        )


def is_in_use(output: Path) -> bool:
    """Whether a run holds OUT's lock at this moment."""
    try:
        lock = os.open(partial_path(output) / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def take_lock(output: Path) -> int:
    """Lock OUT's workplace, which exists, for this run.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        OutputError: Another run holds the lock.
    """
    path = partial_path(output) / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino != path.stat().st_ino:
            raise BlockingIOError  # the run that held it has just finished and removed it
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise OutputError("another run is writing this output", path=output) from None
    return lock
