"""A checkout whose commands are run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.same_bytes.cases import KILLED, Case

SERVER = """
import importlib.util, json, os, runpy, sys, traceback
import numpy, rich, rich.table, safetensors, torch, typer
print(importlib.util.find_spec("monosoup_cli").origin, flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["cwd"])
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, path in (1, order["stdout"]), (2, order["stderr"]):
            os.dup2(os.open(path, flags, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0)
        sys.argv = ["monosoup", *order["words"]]
        code = 70
        try:
            runpy.run_module("monosoup_cli", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Outcome(NamedTuple):
    """What a case left behind: the exit codes and standard outputs of its commands, and a folder."""

    codes: list[int]
    outs: list[bytes]
    folder: Path
    stderr: str


class Tree:
    """Runs cases with the package of one checkout; `with` ends its process."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path.resolve(), folder
        folder.mkdir(parents=True)
        for name in ("home", "streams"):
            folder.with_name(f"{folder.name}-{name}").mkdir()
        kept = {
            name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
        }
        self.environment = {
            **kept,
            "PYTHONPATH": str(self.path),
            "PYTHONPYCACHEPREFIX": str(folder.with_name("pycache")),
            "HOME": str(folder.with_name(f"{folder.name}-home")),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "NO_COLOR": "1",
            "COLUMNS": "120",
            "LANG": "C.UTF-8",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }

    def __enter__(self) -> Tree:
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )
        origin = Path(self.server.stdout.readline().strip())
        if not origin.is_relative_to(self.path):
            raise SystemExit(f"{self.path} holds no monosoup_cli: {origin} would be used")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(self, case: Case) -> Outcome:
        """Run the command lines of a case, one after the other, in a folder of its own."""
        folder = self.folder / case.folder
        folder.mkdir()
        for name, content in case.files.items():
            (folder / name).write_text(content)
        streams = self.folder.with_name(f"{self.folder.name}-streams")
        codes, outs, errors = [], [], []
        for number, words in enumerate(case.commands):
            words = [word.replace("{python}", sys.executable) for word in words]
            if case.codes[number] == KILLED:
                codes.append(self._kill(folder, words))
                continue
            stdout, stderr = (streams / f"{case.folder}-{number}-{name}" for name in ("out", "err"))
            order = {"cwd": str(folder), "words": words, "stdout": str(stdout), "stderr": str(stderr)}
            print(json.dumps(order), file=self.server.stdin, flush=True)
            codes.append(int(self.server.stdout.readline()))
            outs.append(stdout.read_bytes())
            errors.append(stderr.read_text(errors="replace"))
        return Outcome(codes, outs, folder, "".join(errors))

    def _kill(self, folder: Path, words: list[str], attempts: int = 5) -> int:
        """Start a command and kill it once its journal holds some tensors; its exit code, -9.

        Where it ended first, it runs again: a run that was not interrupted would prove nothing.
        """
        partial = folder / (words[words.index("-o") + 1] + ".partial")
        code = 0
        for _ in range(attempts):
            process = subprocess.Popen(
                [sys.executable, "-m", "monosoup_cli", *words],
                env=self.environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while process.poll() is None:
                journal = partial / "journal"
                if journal.exists() and journal.read_bytes().count(b'\n{"tensor"') >= 5:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.001)
            code = process.wait()
            if code == -signal.SIGKILL:
                break
            for path in folder.iterdir():
                if path.name.startswith("out"):
                    shutil.rmtree(path)
        return code
