"""The command in a process of its own, forked from one that has imported what takes long.

    run(["edit", …], env)        as subprocess.run([sys.executable, "-m", "monosoup_cli", "edit", …], env=env)

What reads the environment as it is imported is imported in the fork: the Hub's client, above all. As a
program this module is the process that forks: it reads one request a line, and answers with one line.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

IMPORTED = ("rich.progress", "safetensors.torch", "torch", "typer", "yaml")
CLIENTS = ("httpx", "httpx2")
"""What releases of the Hub's client import."""
TIMEOUT = 120.0  # seconds


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
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([argv, env, os.getcwd()]), file=server.stdin, flush=True)
    code, out, err = json.loads(server.stdout.readline())
    if code is None:
        raise subprocess.TimeoutExpired(argv, TIMEOUT, out, err)
    return subprocess.CompletedProcess(argv, code, out, err)


def _serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for name in CLIENTS:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                _run(*json.loads(line), out.fileno(), err.fileno())
            code = _wait(child)
            out.seek(0)
            err.seek(0)
            print(json.dumps([code, out.read(), err.read()]), flush=True)


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


def _run(argv: list[str], env: dict[str, str], folder: str, out: int, err: int) -> None:
    """Be `python -m monosoup_cli` from here on."""
    from monosoup_cli.__main__ import run

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["monosoup", *argv]
    code = 1
    try:
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
