"""The steps of a run: its calls of the system on files below one folder, and a fault planted at one of
them.

`install` wraps the functions of `os` before anything else may hold one of them; `arm` starts the count.
The name of a step is the call, the path, and how often that call met that path so far. This module runs
in the process under test.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

OPENING = os.O_CREAT | os.O_TRUNC
TAKES_SPACE = ("write", "pwrite", "posix_fallocate", "mkdir")
CHANGES = (*TAKES_SPACE, "ftruncate", "fsync", "fdatasync", "rename", "replace", "unlink", "rmdir")
READS = ("open", "pread", "preadv", "flock")
ORIGINAL = {name: getattr(os, name) for name in (*CHANGES, *READS) if hasattr(os, name)}
ORIGINAL["flock"] = fcntl.flock
_armed = None


def install():
    for name, original in ORIGINAL.items():
        owner = fcntl if name == "flock" else os
        wrapper = _wrapped(name, original)
        for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if original in known:
                known.add(wrapper)
        setattr(owner, name, wrapper)


def _wrapped(call, original):
    @functools.wraps(original)
    def step(*arguments, **keywords):
        if _armed is None or not _armed.is_step(call, arguments, keywords):
            return original(*arguments, **keywords)
        return _armed.take(call, functools.partial(original, *arguments, **keywords), arguments, keywords)

    return step


def arm(folder, log, fault):
    """Count the steps below a folder, write their names to a file, and plant a fault.

    Args:
        folder: An absolute path without links.
        log: Where the names go, one a line, and a line "planted" when the fault is.
        fault: {"at": the name of a step, a kind in `FAULTS`: its value}; empty for none.
    """
    global _armed
    _armed = Steps(folder, log, fault)


class Steps:
    def __init__(self, folder, log, fault):
        self.folder = folder
        self.log = ORIGINAL["open"](log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.at = fault.get("at")
        self.kinds = [(FAULTS[kind], value) for kind, value in fault.items() if kind != "at"]
        self.counts = Counter()
        self.counting = threading.Lock()
        self.lasting = None
        self.signals = []
        self.inside = threading.local()

    def is_step(self, call, arguments, keywords):
        return not hasattr(self.inside, "fault") and self.path(arguments, keywords) is not None

    def path(self, arguments, keywords):
        """The path of a call's first argument below the folder; None if it is elsewhere."""
        first = arguments[0] if arguments else keywords.get("path")
        if hasattr(first, "fileno"):
            first = first.fileno()
        try:
            if isinstance(first, int):
                path = os.readlink(f"/proc/self/fd/{first}").removesuffix(" (deleted)")
            else:
                above = keywords.get("dir_fd")
                above = os.getcwd() if above is None else os.readlink(f"/proc/self/fd/{above}")
                path = os.path.normpath(os.path.join(above, os.fsdecode(first)))
        except OSError:
            return None
        return os.path.relpath(path, self.folder) if path.startswith(f"{self.folder}/") else None

    def take(self, call, original, arguments, keywords):
        with self.counting:
            name = f"{call} {self.path(arguments, keywords)}"
            self.counts[name] += 1
            name = f"{name} {self.counts[name]}"
            ORIGINAL["write"](self.log, os.fsencode(name) + b"\n")
            is_here = name == self.at
            if self.signals and not is_here:
                os.kill(os.getpid(), self.signals.pop(0))
        if is_here:
            self.inside.fault = True
            try:
                ORIGINAL["write"](self.log, b"planted\n")
                for plant, value in self.kinds:
                    plant(self, value, call, arguments)
            finally:
                del self.inside.fault
        if self.lasting is not None and self.lasting[1](call, arguments):
            raise _error(self.lasting[0])
        return original()


def _error(name):
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def _signals(steps, numbers, call, arguments):
    """The first signal now, the others at the steps that follow."""
    steps.signals = list(numbers[1:])
    os.kill(os.getpid(), numbers[0])
    time.sleep(0.005)  # another thread may have to take it


def _torn(steps, share, call, arguments):
    """A part of a write, then an end without warning."""
    data = arguments[1]
    ORIGINAL[call](arguments[0], data[: int(len(data) * share)], *arguments[2:])
    os.kill(os.getpid(), signal.SIGKILL)


def _error_once(steps, name, call, arguments):
    raise _error(name)


def _full(steps, name, call, arguments):
    """From now on nothing is written that takes space."""
    creates = lambda call, arguments: call == "open" and arguments[1] & OPENING  # noqa: E731
    steps.lasting = name, lambda call, arguments: call in TAKES_SPACE or creates(call, arguments)


def _broken(steps, name, call, arguments):
    """From now on nothing is changed."""
    steps.lasting = name, lambda call, arguments: call in CHANGES


def _truncate(steps, path, call, arguments):
    os.truncate(path, os.stat(path).st_size // 2)


def _flip(steps, path, call, arguments):
    """Another last byte."""
    with Path(path).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 0x40]))


def _swap(steps, paths, call, arguments):
    """Another file in place of one."""
    shutil.copy(paths[1], f"{paths[0]}.new")
    os.replace(f"{paths[0]}.new", paths[0])


def _vanish(steps, path, call, arguments):
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _chmod(steps, value, call, arguments):
    os.chmod(value[0], value[1])


def _pause(steps, flags, call, arguments):
    """Say so, and wait for leave to go on."""
    Path(flags[0]).touch()
    while not os.path.exists(flags[1]):
        time.sleep(0.002)


def _clock(steps, seconds, call, arguments):
    """The clock goes back; what measures time without a clock does not."""
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() - seconds
    time.time_ns = lambda: true_ns() - seconds * 10**9


FAULTS = {
    "signals": _signals,
    "torn": _torn,
    "error": _error_once,
    "full": _full,
    "broken": _broken,
    "truncate": _truncate,
    "flip": _flip,
    "swap": _swap,
    "vanish": _vanish,
    "chmod": _chmod,
    "pause": _pause,
    "clock": _clock,
}
