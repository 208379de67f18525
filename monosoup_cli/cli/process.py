"""What the system does to a command: signals, bad streams, and no more memory, threads or descriptors."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from monosoup_cli.cli.console import restore_terminal
from monosoup_cli.errors import MonosoupError, OutputError, ResourceError

__all__ = ["Interrupted", "Stdout", "end_at_signals", "guard_streams", "interruptible", "refuse_shortage"]

RETRY_SECONDS = 0.01
"""How soon a signal that arrived while torch was imported is looked at again."""


class Interrupted(SystemExit):
    """A signal arrived; `code` is the exit code that the shell expects: 129, 130 or 143."""


def _known() -> list[signal.Signals]:
    """The signals that end a run. `nohup` has SIGHUP ignored, and so it stays."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_ignored else [signal.SIGHUP])]


def _end(number: int, frame: FrameType | None) -> None:
    """End the process at once."""
    restore_terminal()
    os._exit(128 + number)


def end_at_signals() -> None:
    """Have signals end the process at once: before `interruptible`, and after it until nothing is left to do.

    The interpreter then takes the handlers away, and a signal would kill the process, whose exit code is
    decided; so signals are ignored from there on.
    """

    def ignore() -> None:
        for number in known:
            signal.signal(number, signal.SIG_IGN)

    known = _known()
    for number in known:
        signal.signal(number, _end)
    atexit.register(ignore)  # the first to be registered is the last to run


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at the first signal; the second ends the process at once."""
    known = _known()

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in known:
            signal.signal(each, _end)
        leave(128 + number, frame)

    def leave(code: int, frame: FrameType | None) -> None:
        if not _imports_torch(frame):
            raise Interrupted(code)
        handler = signal.signal(signal.SIGALRM, lambda _, later: leave(code, later))
        before.setdefault(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    before = {number: signal.signal(number, interrupt) for number in known}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports_torch(frame: FrameType | None) -> bool:
    """Whether a module of torch is being imported: its C++ code then aborts the process where an exception
    passes through it, and its Python code swallows some."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").startswith("torch"):
            return True
        frame = frame.f_back
    return False


class _Stderr(io.FileIO):
    """A file that drops what it cannot take: a full disk, a reader that is gone."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


class Stdout(io.FileIO):
    """A file that says so when it cannot take something, once. That a reader is gone, as `head` is, is no
    error."""

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            # the rest of the buffer needs a file to go to, now and when the interpreter exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not isinstance(error, BrokenPipeError):
                raise OutputError(f"stdout cannot be written: {error.strerror}") from None
            return len(data)


def guard_streams() -> None:
    """Have nothing fail because of a bad stderr, a bad stdout be one error wherever it is written to, and no
    file take the number of a stream that is closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed; the lowest free number is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)
    if sys.stdout is not None:
        sys.stdout = _text(Stdout(1, "w", closefd=False), sys.stdout)


def _text(file: io.FileIO, before: TextIO | None) -> TextIO:
    """A stream in the place of another. λ and × can be written where the encoding has neither."""
    encoding = None if before is None else before.encoding
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=True)


PROBLEMS = {
    "memory": "ran out of memory",
    "threads": "the system starts no more threads",
    "files": "the system opens no more files",
}
STEPS = {
    "memory": "free some memory, then run it again",
    "threads": "raise `ulimit -u`, then run it again",
    "files": "raise `ulimit -n` to 1024 or more, then run it again",
}
NUMBERS = {errno.ENOMEM: "memory", errno.EMFILE: "files", errno.ENFILE: "files"}
WORDS = {
    "can't allocate memory": "memory",  # torch
    "bad_alloc": "memory",
    "cannot allocate memory": "memory",  # of the loader of libraries
    "failed to map segment": "memory",
    "can't start new thread": "threads",
    "too many open files": "files",
}


def _shortage(error: BaseException | None) -> str | None:
    """What an error says that the system has no more of."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    if isinstance(error, RuntimeError | ImportError | OSError):
        text = str(error).lower()
        return next((kind for words, kind in WORDS.items() if words in text), None)
    return None


def _advice(kind: str, takes: Callable[[str], bool]) -> str:
    """What to do, with the options that the command takes."""
    if kind != "files" and takes("workers"):
        return f"{STEPS[kind]}; or rerun with --workers 1, to need less"
    return STEPS[kind]


@contextmanager
def refuse_shortage(takes: Callable[[str], bool]) -> Iterator[None]:
    """Turn a lack of memory, threads or descriptors into an error of one line.

    Args:
        takes: Whether the command takes an option of this name.
    """
    try:
        yield
    except MonosoupError as error:
        kind = _shortage(error.__cause__ or error.__context__)
        if kind is not None and error.hint is None:
            error.hint = _advice(kind, takes)
        raise
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        kind = _shortage(error)
        if kind is None:
            raise
        raise ResourceError(PROBLEMS[kind], hint=_advice(kind, takes)) from error
