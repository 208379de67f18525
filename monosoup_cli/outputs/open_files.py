"""What a run has in its workplace: nothing is written to or published after it was exchanged."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from monosoup_cli.errors import OutputError
from monosoup_cli.outputs.durable import sync_folder, write_file
from monosoup_cli.system import reserve

__all__ = ["OpenFiles", "as_time", "facts", "to_set_time", "to_set_times"]

NAMED = 3
"""Of how many files a message says how to set their times."""

HANDLE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opens what is only recognised later: while it is open, the system gives its inode to nothing else."""

NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""How the system says that it makes no second name."""


class OpenFiles:
    """What a run has in its workplace.

    Weights, folders, the lock and the journal stay open. Of other files, which may be many, the inode, the
    size and the time are remembered. Names are paths inside the workplace. A folder above a file is made on
    its own, never with its parents, so that a workplace that vanishes is not made anew.

    Args:
        root: The workplace.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptors: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._written: dict[str, tuple[int, ...]] = {}

    def __getitem__(self, name: str) -> int:
        """The descriptor of an open file."""
        return self._descriptors[name]

    def open(self, name: str, nbytes: int) -> int:
        """Open a file, or create it, and reserve its space."""
        self._make_folders_of(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._descriptors[name] = os.open(self._root / name, flags, 0o666)
        reserve(descriptor, nbytes)
        self._sizes[name] = nbytes
        return descriptor

    def link_here(self, path: Path, name: str) -> None:
        """Give a file that was made elsewhere a second name, or copy it where there are no links."""
        self._make_folders_of(name)
        target = self._root / name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(path, target)
        descriptor = self._descriptors[name] = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._sizes[name] = os.fstat(descriptor).st_size

    def write(self, name: str, blocks: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Write a whole file, sync it, and return its size and its SHA-256."""
        self._make_folders_of(name)
        status, sha256 = write_file(self._root / name, blocks)
        self._written[name] = facts(status)
        return status.st_size, sha256

    def add(self, name: str) -> None:
        """Count a file or folder that is there as the run's."""
        self._descriptors[name] = os.open(self._root / name, HANDLE)

    def forget(self, names: Iterable[str]) -> None:
        """Forget files that were written, and that are now moved away."""
        for name in names:
            del self._written[name]

    def prove(self, names: Iterable[str] | None = None) -> None:
        """Prove that files are still the ones at their paths.

        Args:
            names: Which; None for all.

        Raises:
            OutputError: One has vanished, or was exchanged or cut.
        """
        for name in [*self._descriptors, *self._written] if names is None else names:
            path = self._root / name
            try:
                found = os.lstat(path)
            except OSError as error:
                raise OutputError(
                    f"vanished during the run: {error.strerror}",
                    path=path,
                    hint="what is still there is kept; rerun with --resume"
                    if any((self._root / "files").glob("*"))
                    else "nothing is left of its work; rerun with --resume to begin anew",
                ) from None
            if not self._is_own(name, found):
                raise OutputError(
                    "was exchanged or cut during the run",
                    path=path,
                    hint="rerun with --resume, which checks what is there",
                )

    def _is_own(self, name: str, found: os.stat_result) -> bool:
        if name in self._written:
            return facts(found) == self._written[name]
        is_same = os.path.samestat(found, os.fstat(self._descriptors[name]))
        return is_same and found.st_size == self._sizes.get(name, found.st_size)

    def prove_alone(self) -> None:
        """Prove that nothing but the run's own files is about to be published.

        Raises:
            OutputError: There is something else.
        """
        for folder, inner, files in os.walk(self._root / "files"):
            for path in (Path(folder, name) for name in (*inner, *files)):
                name = path.relative_to(self._root).as_posix()
                if name not in self._descriptors and name not in self._written:
                    raise OutputError(
                        "appeared among the files of the run",
                        path=path,
                        hint="move it away, then rerun with --resume",
                    )

    def sync_folders(self) -> None:
        """Make the names of all files survive a power failure."""
        folders = [name for name, one in self._descriptors.items() if stat.S_ISDIR(os.fstat(one).st_mode)]
        for name in reversed(["", *folders]):
            sync_folder(self._root / name)

    def close(self) -> None:
        """Close all files and forget them."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._written.clear()

    def _make_folders_of(self, name: str) -> None:
        for folder in reversed(PurePosixPath(name).parents[:-1]):
            if str(folder) not in self._descriptors:
                (self._root / folder).mkdir(exist_ok=True)
                self.add(str(folder))


def facts(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or exchanged. ctime also does when it is given a second name."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def as_time(mtime_ns: int) -> str:
    """A time of modification as POSIX has it, to the nanosecond; where its year is none, in seconds."""
    seconds, rest = divmod(mtime_ns, 10**9)
    try:
        time = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError):
        return f"@{seconds}.{rest:09}"
    return f"{time}.{rest:09}Z"


def to_set_time(time: str, path: str) -> str:
    """The shell command that gives a file a time of modification."""
    return f"touch -c -d {shlex.quote(time)} {shlex.quote(path)}"


def to_set_times(times: Mapping[str, str]) -> str:
    """The shell commands that give several files their times of modification; of many files, the first."""
    commands = [to_set_time(time, path) for path, time in times.items()]
    more = f" and {len(commands) - NAMED:,} more" if len(commands) > NAMED else ""
    return f"`{'; '.join(commands[:NAMED])}`{more}"
