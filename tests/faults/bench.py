"""Where commands run and faults are planted, and what must hold after every fault."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monosoup_cli
from tests.faults.commands import Command, make_inputs, tensors

MAX_SECONDS = 100
"""After that a run is taken to hang."""

Tree = dict[str, Any]
"""What is at and below some paths: for each file its content, for each folder None."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    steps: list[str]

    @property
    def is_planted(self) -> bool:
        """Whether the run reached the step of its fault."""
        return "planted" in self.steps


class Server:
    """A process that has imported everything, and runs command lines in forks (server.py)."""

    def __init__(self) -> None:
        names = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "HOME", "PYTHONPATH")
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **{name: os.environ[name] for name in names if name in os.environ},
                "PYTHONPATH": str(Path(monosoup_cli.__file__).parents[1]),
                "CUDA_VISIBLE_DEVICES": "",
                "NO_COLOR": "1",
                "LANG": "C.UTF-8",
                **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            },
        )
        assert self._answer() == "ready 1", "a process with threads cannot be forked"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def start(self, order: dict[str, Any]) -> int:
        self._send({"run": order})
        return int(self._answer())

    def wait(self, child: int) -> int:
        self._send({"wait": child})
        return int(self._answer())

    def _send(self, order: dict[str, Any]) -> None:
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()


class Reference(NamedTuple):
    """An undisturbed run: what it left, the names of its steps, and how long it took."""

    tree: Tree
    steps: list[str]
    out: str
    seconds: float


class Bench:
    """The inputs, the server and the undisturbed runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_inputs(folder / "in")
        self.server = Server()
        self._count = 0
        self._references: dict[str, Reference] = {}

    def close(self) -> None:
        self.server.close()

    def reference(self, command: Command) -> Reference:
        if command.name not in self._references:
            place = self.place(command)
            started = time.monotonic()
            outcome = place.run()
            seconds = time.monotonic() - started
            assert outcome.code == 0, outcome.err
            steps = [step for step in outcome.steps if step != "planted"]
            self._references[command.name] = Reference(place.result(), steps, outcome.out, seconds)
            place.clear()
        return self._references[command.name]

    def place(self, command: Command) -> Place:
        """A new folder with the inputs, and with an older output where the command replaces one."""
        self._count += 1
        return Place(self, command, self.folder / f"{self._count}")

    def faulty(self, command: Command) -> tuple[Place, Reference]:
        return self.place(command), self.reference(command)


class Place:
    """A folder in which one command runs, disturbed and then again."""

    def __init__(self, bench: Bench, command: Command, folder: Path) -> None:
        self.bench, self.command, self.folder = bench, command, folder
        self.work = folder / "work"
        shutil.copytree(bench.folder / "in", self.work / "in")
        (self.work / "elsewhere").mkdir()
        self.out, self.partial = self.work / command.out, self.work / f"{command.out}.partial"
        if command.replaces:
            self._make_old()
        self.inputs = self.dates()
        self.old = self.result()

    def _make_old(self) -> None:
        from safetensors.torch import save_file

        path = self.out if "." in self.command.out else self.out / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(tensors(9), path)
        if self.command.report is not None:
            (self.work / self.command.report).write_text("the old report")

    def dates(self, name: str = "in") -> dict[str, tuple[int, bytes | None]]:
        """What tells whether the inputs were touched: their names, dates and bytes."""
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in sorted((self.work / name).rglob("*"))
        }

    def clear(self) -> None:
        shutil.rmtree(self.folder)

    # -- running ------------------------------------------------------------------------------

    def start(self, *options: str, name: str = "run", words: Sequence[str] = (), **order: Any) -> Running:
        """Start the command with more options, or other words, in the surroundings of an order."""
        streams = {each: str(self.folder / f"{name}.{each}") for each in ("stdout", "stderr", "log")}
        order = {"folder": str(self.work), **streams, **order}
        order["words"] = [*(words or self.command.words), *options]
        return Running(self.bench.server, order)

    def run(self, *options: str, **order: Any) -> Outcome:
        return self.start(*options, **order).wait()

    # -- what must hold -----------------------------------------------------------------------

    def result(self) -> Tree:
        """The output and the report of a run."""
        return tree_of(self.work, (self.command.out, *filter(None, [self.command.report])))

    def check(self, outcome: Outcome, codes: Sequence[int], *, are_inputs_ours: bool = True) -> None:
        """Check what must hold after every run: a fitting exit code, one line, untouched inputs, and an
        output that is complete, absent or the old one."""
        whole = self.bench.reference(self.command)
        assert outcome.code in (0, *codes), outcome
        check_words(outcome)
        if are_inputs_ours:
            assert self.dates() == self.inputs, "inputs are never touched"
        found = self.result()
        if outcome.code == 0:
            assert same(found, whole.tree), differences(found, whole.tree)
            assert len(outcome.out) == len(whole.out) or "--report" in self.command.words
        out = {name: each for name, each in found.items() if name != self.command.report}
        outs = [{}] if not self.command.replaces else []
        for tree in (whole.tree, self.old):
            outs.append({name: each for name, each in tree.items() if name != self.command.report})
        if self.command.replaces and not out:
            replaced = self.partial / "replaced"
            assert replaced.exists(), "the old output is gone"
            assert same(tree_of(self.partial, ["replaced"]), _renamed(self.old, self.command.out, "replaced"))
        else:
            assert any(same(out, each) for each in outs), differences(out, whole.tree)
        reports = [tree.get(self.command.report) for tree in (found, whole.tree, self.old)]
        assert any(same({"r.json": reports[0]}, {"r.json": each}) for each in (*reports[1:], None))
        beside = {path.name for path in self.work.iterdir()} - {"in", "elsewhere"}
        assert beside <= {self.out.name, self.partial.name, Path(self.command.report or "").name}, beside

    def finish(self, *, may_refuse: bool = False) -> Outcome:
        """Go on with --resume, and check that it ends as if nothing had happened.

        A complete output is refused, and so is what is beyond repair if it `may_refuse`: then --overwrite
        makes it anew.
        """
        whole = self.bench.reference(self.command)
        resumed = self.run("--resume", name="resume")
        self.check(resumed, [1])
        if resumed.code:
            is_complete = "there is nothing to resume" in resumed.err and same(self.result(), whole.tree)
            is_taken = "is in the place of unfinished work, but no run made it; move it away" in resumed.err
            assert is_complete or (may_refuse and (is_taken or "--overwrite" in resumed.err)), resumed.err
            if is_taken:
                shutil.rmtree(self.partial)
            again = self.run("--overwrite", name="again")
            assert again.code == 0, again.err
            self.check(again, [])
        left = sorted(path.name for path in self.work.iterdir())
        assert left == sorted({"in", "elsewhere", self.out.name, *self._report_beside()}), left
        return resumed

    def _report_beside(self) -> Iterator[str]:
        if self.command.report is not None and "/" not in self.command.report:
            yield self.command.report


class Running:
    """A command that runs in a fork of the server."""

    def __init__(self, server: Server, order: dict[str, Any]) -> None:
        self.server, self.order = server, order
        self.id = server.start(order)

    def send(self, number: int) -> None:
        os.kill(self.id, number)

    @property
    def has_ended(self) -> bool:
        return Path(f"/proc/{self.id}/stat").read_text().rpartition(") ")[2].startswith("Z")

    def wait(self) -> Outcome:
        watchdog = threading.Timer(MAX_SECONDS, self.send, (signal.SIGKILL,))
        watchdog.start()
        code = self.server.wait(self.id)
        assert watchdog.is_alive(), "the run hung"
        watchdog.cancel()
        return Outcome(code, *map(self._read, ("stdout", "stderr")), self._read("log").splitlines())

    def _read(self, name: str) -> str:
        path = Path(self.order[name])
        return path.read_text(errors="surrogateescape") if path.is_file() else ""


def check_words(outcome: Outcome) -> None:
    """Check that stderr has one line that says what happened, notes and tables aside, and no traceback."""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    expected = 0 if outcome.code in (0, -9, -1) else 1
    assert len(errors) == expected or (outcome.code in (130, 143) and not errors), outcome.err
    for word in ("Traceback", "Exception ignored", "Error:", "Warning:", "terminate called"):
        assert word not in outcome.err, outcome.err
    is_late = outcome.code in (130, 143) and any(line.startswith("wrote ") for line in lines)
    if expected and not is_late:  # a signal after the summary finds the output complete
        others = [line for line in lines if not line.startswith(("error: ", "note: "))]
        assert not [
            line for line in others if not re.match(r"scoring |trial |  |.+: (score )?[-\d]", line)
        ], outcome.err


# -- trees -------------------------------------------------------------------------------------


def tree_of(folder: Path, names: Sequence[str]) -> Tree:
    """Read everything at and below some paths in a folder."""
    tree: Tree = {}
    for name in names:
        path = folder / name
        if path.is_file():
            tree[name] = path.read_bytes()
        for below in sorted(path.rglob("*")) if path.is_dir() else ():
            tree[str(below.relative_to(folder))] = below.read_bytes() if below.is_file() else None
    return tree


def same(one: Tree, other: Tree) -> bool:
    return not differences(one, other)


def differences(one: Tree, other: Tree) -> list[str]:
    """The names under which two trees differ; reports may differ in what tells one run from another."""
    return [name for name in sorted({*one, *other}) if _content(name, one) != _content(name, other)]


def _content(name: str, tree: Tree) -> Any:
    content = tree.get(name, "nothing")
    if not name.endswith(".json") or not isinstance(content, bytes) or b'"schema_version"' not in content:
        return content
    report = json.loads(content)
    report.pop("timing")
    for option in ("resume", "overwrite"):
        report["arguments"].pop(option, None)
    for entry in report["inputs"]:
        entry.pop("bytes_read", None)
        for file in (*entry["files"], *entry.get("other_files", ())):
            file.pop("modified", None)
    return report


def _renamed(tree: Tree, old: str, new: str) -> Tree:
    return {
        re.sub(rf"^{re.escape(old)}(?=/|$)", new, name): content
        for name, content in tree.items()
        if name.split("/")[0] == old
    }
