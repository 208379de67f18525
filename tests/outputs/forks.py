"""The command line in forks of a process that has imported everything, with a fault at a system call.

    with Forks() as forks:
        forks.run("edit", …).code
        forks.run("edit", …, at=7).code          -9: killed as it made its seventh call that changes files
        forks.run("edit", …, at=7, signal=2)     sent SIGINT there
        forks.run("edit", …, records=FOLDER)     what it changed in the folder is pickled as FOLDER.calls

As a program this module is that process: it reads one request a line, and answers with one line.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.outputs.power_loss import Recorder

CALLS = [
    "open",
    "mkdir",
    "write",
    "pwrite",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "unlink",
    "rmdir",
]
"""The calls of `os` that change files or make a change last; of `open` those that may create a file."""


Make = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Makes a call of this name with these arguments."""


class Ended(NamedTuple):
    """How a run ended: its exit code, or minus the signal that killed it; stderr; its calls until then."""

    code: int
    err: str
    calls: list[str]


class Forks:
    """The process, seen from the tests."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.outputs.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *argv: object, **fault: object) -> Ended:
        """Run a command line, with a fault or without."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"argv": [str(word) for word in argv], **fault}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


class Watched:
    """The calls of `os`, each of which `make` makes, if it is set."""

    def __init__(self) -> None:
        self.make: Make | None = None
        self.plain = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
        for name, call in self.plain.items():
            setattr(os, name, self._watched(name, call))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*words: Any, **options: Any) -> Any:
            if self.make is not None and (name != "open" or words[1] & os.O_CREAT):
                return self.make(name, call, words, options)
            return call(*words, **options)

        return watched


def _serve() -> None:
    watched = Watched()  # before the package looks any of them up
    import monosoup_cli

    for module in pkgutil.walk_packages(monosoup_cli.__path__, "monosoup_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as calls:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 2)
                os.dup2(said.fileno(), 1)
                _run(watched, calls.fileno(), **request)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            calls.seek(0)
            print(json.dumps([code, said.read(), calls.read().split()]), flush=True)


def _run(watched: Watched, calls: int, argv: list[str], records: str | None = None, **fault: int) -> None:
    """Run a command line in this process, and end it."""
    from monosoup_cli.cli.app import main

    recorder = Recorder(records) if records else None
    watched.make = counting(watched, calls, **fault) if recorder is None else in_turn(recorder.record)
    code = main(argv)
    watched.make = None
    if recorder is not None:
        Path(f"{records}.calls").write_bytes(pickle.dumps((recorder.calls, recorder.calls_before)))
    sys.stderr.flush()
    os._exit(code)


def counting(watched: Watched, calls: int, at: int = 0, signal: int = signal.SIGKILL) -> Make:
    """Note every call, and send a signal before one of them."""
    lock, numbers = threading.Lock(), itertools.count(1)

    def make(name: str, call: Callable[..., Any], words: tuple[Any, ...], options: dict[str, Any]) -> Any:
        with lock:
            watched.plain["write"](calls, f"{name}\n".encode())
            if next(numbers) == at:
                os.kill(os.getpid(), signal)
        return call(*words, **options)

    return make


def in_turn(make: Make) -> Make:
    """Make one call at a time."""
    lock = threading.Lock()

    def alone(*words: Any) -> Any:
        with lock:
            return make(*words)

    return alone


if __name__ == "__main__":
    _serve()
