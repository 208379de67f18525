"""A model of disks that lose power: the calls of a real run are recorded, and replayed with some lost.

A call that has not been synced may be lost. What a sync keeps depends on the file system:

ordered    names change in the order of the calls; any sync keeps all names before it (ext4, data=ordered)
loose      a sync keeps the data of one file, or the names in one folder; anything else may be lost (NFS)
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Files = dict[str, bytes | None]
"""A tree: the content of files, None for folders, by path."""


class Call(NamedTuple):
    """A recorded call: what it does, to which file (by a number) and path, and the details."""

    what: str
    file: int = -1
    path: str = ""
    to: str = ""
    start: int = 0
    data: bytes = b""


NAMING = {"create", "mkdir", "rename", "unlink", "rmdir"}
FATES = ("kept", "lost", "zeros", "torn")
"""What may become of data that was not synced; zeros: the file has its size, but not what was written."""


class Recorder:
    """Records the calls that change what is in a folder.

    Attributes:
        before: What was in the folder.
        calls: The calls since.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._numbers: dict[tuple[int, int], int] = {}
        self._unseen: set[int] = set()
        self.before = read_tree(Path(root))
        self.calls: list[Call] = []
        for path, content in self.before.items():
            self.calls.append(Call("mkdir" if content is None else "create", self._new(path), path))
            if content is not None:
                self.calls += [
                    Call("write", self._number(path), data=content),
                    Call("sync", self._number(path)),
                ]
            self.calls.append(Call("sync names", path=os.path.dirname(path)))
        self.calls_before = len(self.calls)

    def record(
        self, name: str, call: Callable[..., Any], words: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        """Make a call and record it."""
        on_path = isinstance(words[0], (str, os.PathLike))
        path = self._inside(words[0], options.get("dir_fd")) if on_path else None
        is_there = path is not None and os.path.lexists(os.path.join(self._root, path))
        result = call(*words, **options)
        if on_path:
            if path is not None:
                self._record_path(name, path, words, is_there=is_there)
        elif (number := self._numbers.get(inode(os.fstat(words[0])))) is not None:
            self._record_file(name, number, words, result)
        return result

    def _record_path(self, name: str, path: str, words: Sequence[Any], *, is_there: bool) -> None:
        if name in ("rename", "replace"):
            self.calls.append(Call("rename", path=path, to=str(self._inside(words[1], None))))
        elif name == "open":
            if not is_there:
                self.calls.append(Call("create", self._new(path), path))
            if words[1] & os.O_TRUNC:  # written through Python's buffers, which are not watched
                self._unseen.add(self._number(path))
                self.calls.append(Call("size", self._number(path)))
        else:
            self.calls.append(Call(name, self._new(path) if name == "mkdir" else -1, path))

    def _record_file(self, name: str, number: int, words: Sequence[Any], result: Any) -> None:
        descriptor = words[0]
        if name in ("write", "pwrite"):
            start = words[2] if name == "pwrite" else os.lseek(descriptor, 0, os.SEEK_CUR) - result
            self.calls.append(Call("write", number, start=start, data=bytes(words[1][:result])))
        elif name == "ftruncate":
            self.calls.append(Call("size", number, start=words[1]))
        elif name == "posix_fallocate":
            self.calls.append(Call("size", number, start=os.fstat(descriptor).st_size))
        elif number in self._unseen:
            content = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self.calls += [Call("write", number, data=content), Call("sync", number)]
        elif os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self.calls.append(Call("sync names", path=str(self._inside(f"/proc/self/fd/{descriptor}", None))))
        else:
            self.calls.append(Call("sync", number))

    def _inside(self, path: Any, folder: int | None) -> str | None:
        """The path inside the recorded folder; None if it is elsewhere."""
        joined = os.path.join("." if folder is None else f"/proc/self/fd/{folder}", os.fspath(path))
        is_descriptor = folder is None and joined.startswith("/proc/self/fd/")
        parent, name = os.path.split(joined)
        real = os.path.realpath(joined) if is_descriptor else os.path.join(os.path.realpath(parent), name)
        if real == self._root:
            return ""
        return real.removeprefix(f"{self._root}/") if real.startswith(f"{self._root}/") else None

    def _number(self, path: str) -> int:
        return self._numbers[inode(os.lstat(os.path.join(self._root, path)))]

    def _new(self, path: str) -> int:
        number = self._numbers[inode(os.lstat(os.path.join(self._root, path)))] = len(self.calls)
        return number


def inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def read_tree(root: Path) -> Files:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def write_tree(files: Files, root: Path) -> None:
    root.mkdir(parents=True)
    for path in sorted(files):
        content = files[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def ordered(calls: Sequence[Call], first: int) -> Iterator[Files]:
    """Every state in which a crash after `first` calls may leave the folder, in the ordered model."""
    for stop in range(first, len(calls) + 1):
        kept = max((n for n in range(stop) if calls[n].what.startswith("sync")), default=0)
        for last in range(kept, stop + 1):
            names = [call for call in calls[:last] if call.what in NAMING]
            for fate in FATES:
                yield tree(names, calls[:stop], lambda _, fate=fate: fate)


def loose(calls: Sequence[Call], first: int, draws: random.Random) -> Iterator[Files]:
    """Some of the states in which a crash may leave the folder, in the loose model."""
    for stop in range(first, len(calls) + 1):
        pending = [n for n in range(stop) if calls[n].what in NAMING and not is_kept(calls, n, stop)]
        some = [{n for n in pending if draws.random() < 0.5} for _ in range(2)]
        for lost in [set(pending), *({n} for n in pending), *(set(pending) - {n} for n in pending), *some]:
            names = [call for n, call in enumerate(calls[:stop]) if call.what in NAMING and n not in lost]
            fates: dict[int, str] = {}
            yield tree(
                names, calls[:stop], lambda file, fates=fates: fates.setdefault(file, draws.choice(FATES))
            )


def is_kept(calls: Sequence[Call], number: int, stop: int) -> bool:
    """Whether a folder in which a call changes names was synced after it."""
    call = calls[number]
    folders = {
        os.path.dirname(call.path),
        os.path.dirname(call.to) if call.to else os.path.dirname(call.path),
    }
    return any(each.what == "sync names" and each.path in folders for each in calls[number:stop])


def tree(names: Sequence[Call], calls: Sequence[Call], fate: Callable[[int], str]) -> Files:
    """The folder after some changes of names, with the data of files as their fates have it."""
    numbers: dict[str, int] = {"": -1}
    folders = {""}
    for call in names:
        if call.what in ("create", "mkdir"):
            if os.path.dirname(call.path) in folders and call.path not in numbers:
                numbers[call.path] = call.file
                folders |= {call.path} if call.what == "mkdir" else set()
        elif call.path not in numbers:
            continue  # what it is about was lost
        elif call.what == "rename":
            rename(call.path, call.to, numbers, folders)
        elif not any(path.startswith(f"{call.path}/") for path in numbers):
            del numbers[call.path]
            folders.discard(call.path)
    del numbers[""]
    return {
        path: None if path in folders else data_of(number, calls, fate(number))
        for path, number in numbers.items()
    }


def rename(old: str, new: str, numbers: dict[str, int], folders: set[str]) -> None:
    """Rename as the system does, which replaces a file, but no folder that has anything in it."""
    if os.path.dirname(new) not in folders or any(path.startswith(f"{new}/") for path in numbers):
        return
    for path in [path for path in numbers if path == old or path.startswith(f"{old}/")]:
        moved = new + path.removeprefix(old)
        numbers[moved] = numbers.pop(path)
        if path in folders:
            folders.remove(path)
            folders.add(moved)


def data_of(number: int, calls: Sequence[Call], fate: str) -> bytes:
    """A file's data, with those calls since its last sync that its fate leaves it."""
    mine = [call for call in calls if call.file == number and call.what in ("write", "size", "sync")]
    synced = max((n + 1 for n, call in enumerate(mine) if call.what == "sync"), default=0)
    data, pending = after(mine[:synced], bytearray()), mine[synced:]
    if fate == "kept":
        return bytes(after(pending, data))
    if fate == "lost":
        return bytes(data)
    if fate == "zeros":
        blank = [call._replace(data=bytes(len(call.data))) for call in pending]
        return bytes(after(blank, data))
    whole, torn = pending[: len(pending) // 2], pending[len(pending) // 2 : len(pending) // 2 + 1]
    return bytes(
        after([*whole, *(call._replace(data=call.data[: len(call.data) // 2]) for call in torn)], data)
    )


def after(calls: Sequence[Call], data: bytearray) -> bytearray:
    for call in calls:
        if call.what == "size":
            del data[call.start :]
            data.extend(bytes(call.start - len(data)))
        elif call.what == "write" and call.data:
            data.extend(bytes(max(0, call.start + len(call.data) - len(data))))
            data[call.start : call.start + len(call.data)] = call.data
    return data
