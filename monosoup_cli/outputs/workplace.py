"""OUT.partial, the folder next to OUT in which a run works: where it is, and which run holds it.

OUT.partial/lock       the run that works here holds it with flock; made first, removed last
OUT.partial/journal    see journal.py
OUT.partial/files/     the files of OUT, in one subfolder per checkpoint if there are several
OUT.partial/draft-…    a candidate that is scored
OUT.partial/eigenvectors/   what candidates that are scored share
OUT.partial/outside-…  a file that goes elsewhere, before it is moved there
OUT.partial/replaced   the old OUT, from when --overwrite moves it aside until it is removed

The run has done its part when `replaced` is there: `files` then only has to become OUT. If it is killed just
then, the next run on OUT does that first (`finish_replacing`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from monosoup_cli.errors import OutputError
from monosoup_cli.outputs.durable import sync_folder
from monosoup_cli.outputs.open_files import OpenFiles
from monosoup_cli.signals import hold_signals

__all__ = [
    "Workplace",
    "finish_replacing",
    "in_the_way",
    "is_in_use",
    "is_replacing",
    "partial_path",
    "parts_in_the_way",
    "parts_path",
    "refuse_unfinished",
    "remove_parts",
    "unfinished_run",
]

OWN_NAMES = re.compile(
    r"lock|journal|files|replaced|outside-\d+|eigenvectors|draft-\d+(\.report\.json|(\.safetensors)?(\.partial)?)"
)
"""What a run makes in its workplace; a draft is made in a workplace of its own."""
OF_PARTS = re.compile(r"[0-9]+-of-[0-9]+(\.partial)?|probe-[0-9a-f]+(-[0-9]+)?")
"""What runs make in the folder of an output's parts."""


def partial_path(output: Path) -> Path:
    """The folder in which a run makes OUT."""
    return output.with_name(f"{output.name}.partial")


def parts_path(output: Path) -> Path:
    """The folder that has the parts in which several machines make OUT."""
    return output.with_name(f"{output.name}.parts")


def remove_parts(output: Path, count: int | None = None) -> None:
    """Remove the parts of an output. They vanish at once, so that nothing takes some of them for all.

    Args:
        output: The output.
        count: How many parts there are; parts of other numbers, and what a run is making, stay. None removes
            all.
    """
    folder = parts_path(output)
    vanishing = folder.with_name(f"{folder.name}.partial")
    with suppress(OSError):
        if vanishing.is_dir() and not vanishing.is_symlink():
            shutil.rmtree(vanishing)  # left by a run that was killed
        names = os.listdir(folder)
        staying = [name for name in names if count is not None and _is_of_others(folder / name, count)]
        if staying:
            vanishing.mkdir()
            for name in {*names} - {*staying}:
                (folder / name).rename(vanishing / name)
        else:
            folder.rename(vanishing)
        shutil.rmtree(vanishing)


def _is_of_others(path: Path, count: int) -> bool:
    """Whether something in the folder of parts is a part of another number, or is being made."""
    part = path.with_name(path.name.removesuffix(".partial"))
    if "-of-" in part.name and not part.name.endswith(f"-of-{count}"):
        return True
    return part != path and is_in_use(part)


def parts_in_the_way(output: Path) -> Path | None:
    """What no run made in the place of OUT's parts: the place itself, or the first such name in it."""
    folder = parts_path(output)
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir():
        return folder
    return next((folder / one for one in sorted(os.listdir(folder)) if not OF_PARTS.fullmatch(one)), None)


def in_the_way(output: Path) -> Path | None:
    """What no run made in the place of OUT's workplace: the place itself, or the first such name in it.

    A folder that this user may not enter is somebody else's."""
    folder = partial_path(output)
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return folder
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if not OWN_NAMES.fullmatch(name) or (name == "lock" and not stat.S_ISREG(path.lstat().st_mode)):
            return path
    return None


def unfinished_run(output: Path) -> bool:
    """Whether an interrupted run left something to resume."""
    files = partial_path(output) / "files"
    return files.is_dir() and not files.is_symlink() and any(files.iterdir())


def is_replacing(output: Path) -> bool:
    """Whether the old OUT was moved aside, and the complete new one is not at its place yet."""
    if os.path.lexists(output) or not (partial_path(output) / "replaced").is_dir():
        return False
    return unfinished_run(output)


def refuse_unfinished(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that the work of an interrupted run may be resumed or dropped.

    Raises:
        OutputError: There is such work, but neither `resume` nor `overwrite` is set.
    """
    if not (resume or overwrite) and _holds_work(partial_path(output)):
        raise OutputError(
            "an interrupted run left unfinished work",
            path=partial_path(output),
            hint="continue with --resume, or start over with --overwrite",
        )


def _holds_work(partial: Path) -> bool:
    """Whether a workplace has more than its lock and an empty folder."""
    names = {*os.listdir(partial)} - {"lock"} if partial.is_dir() else set()
    files = partial / "files"
    return bool(names) and (names != {"files"} or not files.is_dir() or any(files.iterdir()))


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


def finish_replacing(output: Path) -> None:
    """Have the new OUT appear, if a run was killed after it had moved the old one aside.

    Raises:
        OutputError: Another run is just doing that.
    """
    if is_replacing(output):
        workplace = Workplace(output)
        workplace.take()
        try:
            if not unfinished_run(output):
                workplace.remove()
        finally:
            workplace.close()


class Workplace:
    """The folder in which a run makes OUT.

    Attributes:
        path: The folder.
        open_files: What the run has in it.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._lock: int | None = None
        self.path = partial_path(output)
        self.open_files = OpenFiles(self.path)

    def take(self) -> None:
        """Make the folder if there is none, lock it, and end what a killed run did last.

        Raises:
            OutputError: Another run holds it, or the system refuses something in it.
        """
        try:
            with hold_signals():
                self.path.mkdir(exist_ok=True)
                self._lock = _take_lock(self._output)
            self.open_files.add("lock")
            if is_replacing(self._output):
                (self.path / "files").rename(self._output)
                sync_folder(self._output.parent)
            if os.path.lexists(self._output):
                _remove(self.path / "replaced")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                path = Path(error.filename or self.path)
                raise OutputError(f"cannot write: {error.strerror}", path=path) from error
            raise

    def clear(self, kept: Collection[str] = ()) -> None:
        """Drop what an interrupted run left.

        Args:
            kept: Files to go on with. A link, or what has a second name, is no file of this run's own.
        """
        folders = {str(above) for name in kept for above in PurePosixPath(name).parents}
        for folder, inner, files in os.walk(self.path):
            for name in (*inner, *files):
                path = Path(folder, name)
                inside, status = path.relative_to(self.path).as_posix(), path.lstat()
                if inside == "lock" or (stat.S_ISDIR(status.st_mode) and inside in folders):
                    continue
                if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and inside in kept):
                    _remove(path)
                    if name in inner:
                        inner.remove(name)

    def move_into_place(self, name: str = "") -> None:
        """Have OUT appear: the folder of all files, or the file of this name. An old OUT gives way.

        The caller syncs OUT's folder."""
        new, replaced = self.path / "files" / name, self.path / "replaced"
        if name or not self._output.is_dir():  # one rename, which replaces an old file
            new.replace(self._output)
        else:
            with hold_signals():
                self._output.rename(replaced)
                try:
                    new.rename(self._output)
                except OSError:
                    replaced.rename(self._output)
                    raise
        self.open_files.close()

    def remove(self) -> None:
        """Remove the folder, the lock last, and close it. What the system does not remove stays."""
        lock = self.path / "lock"
        with hold_signals(), suppress(OSError):
            self.open_files.close()
            if self._lock is None or not os.path.samestat(os.fstat(self._lock), os.lstat(lock)):
                return  # the folder is another run's by now
            for entry in self.path.iterdir():
                if entry != lock:
                    with suppress(OutputError):
                        _remove(entry)
            if os.listdir(self.path) == [lock.name]:
                lock.unlink()
                self.close()  # NFS keeps the name of a file that is open
                self.path.rmdir()

    def close(self) -> None:
        """Close all files, and give the lock back."""
        self.open_files.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove(path: Path) -> None:
    """Remove whatever is at a path, and nothing that it points to. Folders in it may be read-only.

    Raises:
        OutputError: The system does not allow it.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        try:
            shutil.rmtree(path)
        except PermissionError:
            _allow_changes(path)
            shutil.rmtree(path)
    except OSError as error:
        raise OutputError(
            f"cannot be removed: {error.strerror}", path=path, hint="remove it yourself"
        ) from None


def _allow_changes(folder: Path) -> None:
    """Give this user every right to a folder and the folders in it, as far as they are the user's own."""
    pending = [folder]
    while pending:
        above = pending.pop()
        with suppress(OSError):
            above.chmod(above.stat().st_mode | stat.S_IRWXU)
            pending += [path for path in above.iterdir() if path.is_dir() and not path.is_symlink()]


def _take_lock(output: Path) -> int:
    """Lock OUT's workplace, which exists.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        OutputError: Another run holds the lock.
    """
    path = partial_path(output) / "lock"
    lock = -1
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino != path.stat().st_ino:
            raise BlockingIOError  # the run that held it has just finished and removed it
    except (BlockingIOError, FileNotFoundError):
        if lock >= 0:
            os.close(lock)
        raise OutputError("another run is writing this output", path=output) from None
    return lock
