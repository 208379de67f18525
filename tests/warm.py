"""The command in a process of its own, forked from one that has imported what takes long.

    run(["edit", …], env)        as subprocess.run([sys.executable, "-m", "monosoup_cli", "edit", …], env=env)
    script(code, env, folder)    as subprocess.run([sys.executable, "-c", code], env=env, cwd=folder)
    answer(pid)                  what the process with this number was started for, with its words,
                                 environment, folder, terminal and files

What reads the environment as it is imported is imported in the fork: the Hub's client, above all. As a
program this module is the process that forks: it reads one request a line, and answers with one line.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

IMPORTED = ("filelock", "rich.progress", "safetensors.torch", "torch", "typer", "yaml")
CLIENTS = ("httpx", "httpx2")
"""What releases of the Hub's client import."""
TIMEOUT = 900.0  # seconds; a search scores many checkpoints
STREAMS = {1: "stdout", 2: "stderr"}


@cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    atexit.register(lambda: process.communicate(timeout=60))
    return process


def run(argv: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command line with this environment and in the folder that tests are in now."""
    return _ask(argv, env, os.getcwd())


def script(code: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in Python, in this folder."""
    return _ask(["-c", code], env, str(folder))


def answer(pid: int) -> int:
    """Do what a process was started for, with its own terminal, pipes and files; returns the exit code."""
    process = Path(f"/proc/{pid}")
    argv = (process / "cmdline").read_bytes().decode().split("\0")[2:-1]  # after the shell and its script
    env = dict(one.split("=", 1) for one in (process / "environ").read_bytes().decode().split("\0")[:-1])
    streams = [str(process / f"fd/{number}") for number in (1, 2)]
    return _ask(argv, env, os.readlink(process / "cwd"), streams).returncode


def _ask(
    argv: list[str], env: dict[str, str], folder: str, streams: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([argv, env, folder, streams]), file=server.stdin, flush=True)
    code, out, err = json.loads(server.stdout.readline())
    if code is None:
        raise subprocess.TimeoutExpired(argv, TIMEOUT, out, err)
    return subprocess.CompletedProcess(argv, code, out, err)


def _serve() -> None:
    for name in (*IMPORTED, *_modules_of("monosoup_cli")):
        importlib.import_module(name)
    for name in CLIENTS:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is collected in a fork is copied
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                argv, env, folder, streams = json.loads(line)
                _run(argv, env, folder, *(streams or (out.fileno(), err.fileno())))
            code = _wait(child)
            out.seek(0)
            err.seek(0)
            print(json.dumps([code, out.read(), err.read()]), flush=True)


def _modules_of(package: str) -> Iterator[str]:
    """Every module that does not run or need something that is not installed."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        if module.name.rpartition(".")[2] not in ("__main__", "ray_cluster"):
            yield module.name


def _wait(child: int) -> int | None:
    """The exit code, or minus the signal; None if it takes too long."""
    stop, pause = time.monotonic() + TIMEOUT, 0.001
    while time.monotonic() < stop:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def _run(argv: list[str], env: dict[str, str], folder: str, out: int | str, err: int | str) -> None:
    """Be `python -m monosoup_cli`, or `python -c …`, from here on."""
    from monosoup_cli.__main__ import run

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in ((1, out), (2, err)):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_NOCTTY) if isinstance(stream, str) else stream, number)
        getattr(sys, STREAMS[number]).reconfigure(line_buffering=os.isatty(number))
    sys.argv = ["monosoup", *argv]
    code = 1
    try:
        if argv[:1] == ["-c"]:
            exec(compile(argv[1], "<example>", "exec"), {"__name__": "__main__"})
            code = 0
        else:
            run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
