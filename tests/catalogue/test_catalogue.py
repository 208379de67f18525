"""Every row of the catalogue: a clear answer, nothing left behind, and bounded time and memory."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from tests import again
from tests.catalogue import (
    adapters,
    archives,
    chunks,
    configs,
    features,
    files,
    headers,
    names,
    options,
    pickles,
    reports,
    rights,
    scores,
)
from tests.catalogue.table import Row
from tests.conftest import Result, everything_in, nobody, small_tensors

FAMILIES = (
    headers,
    files,
    archives,
    pickles,
    chunks,
    adapters,
    configs,
    names,
    options,
    reports,
    rights,
    features,
    scores,
)
ROWS = {
    f"{family.__name__.rpartition('.')[2]}: {row.name}": row for family in FAMILIES for row in family.ROWS
}
assert len(ROWS) == sum(len(family.ROWS) for family in FAMILIES), "two rows have one name"
THOROUGH = {
    f"{family.__name__.rpartition('.')[2]}: {name}"
    for family in FAMILIES
    for name in getattr(family, "THOROUGH", ())
}
assert ROWS.keys() >= THOROUGH, "no row has such a name"

MEGABYTES = 500
HANGS = 60  # seconds
OPENS = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0}
"""Events of Python that name a path, and at which place."""
RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
SYSTEM = ("/dev/null", "/proc/", "/sys/", "/etc/", "/usr/")
LIBRARIES = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(monosoup_cli.__file__).parent)))


class Watch:
    """What Python does in this process while it is watched, as its audit events say."""

    def __init__(self) -> None:
        self.room: str | None = None
        self.found: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.room is None or not (event in OPENS or event in RUNS):
            return
        if event in RUNS:
            self.found.append(f"{event} {arguments}")
            return
        path = arguments[OPENS[event]]
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))
        if not f"{real}/".startswith(f"{self.room}/") and not real.startswith((*SYSTEM, *LIBRARIES)):
            self.found.append(f"{event} {real}")

    @contextmanager
    def inside(self, room: Path) -> Iterator[None]:
        self.found, self.room = [], str(room)
        try:
            yield
        finally:
            self.room = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have everything imported, and the threads started, that a run needs."""
    folder = tmp_path_factory.mktemp("imports")
    save_file(small_tensors(0), folder / "a.safetensors")
    save_file(small_tensors(1), folder / "b.safetensors")
    inputs = [str(folder / "a.safetensors"), str(folder / "b.safetensors")]
    assert main(["edit", *inputs, "-o", str(folder / "out"), "--quiet"]) == 0
    assert main(["inspect-spectrum", *inputs, "--format", "json"]) == 0
    assert main(["edit", *inputs, "-o", str(folder / "dry"), "--quiet", "--dry-run"]) == 0
    assert main(["verify", str(folder / "out")]) == 0
    models = [folder / f"{name}.jsonl" for name in ("a", "b", "c")]
    for path in models:
        path.write_text('{"id": 1, "score": 1, "task": "t"}')
    assert main(["scores", *map(str, models)]) == 0
    assert main(["edit", "org/name", inputs[1], "-o", str(folder / "none"), "--quiet"]) == 1


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a small pair in it, and a copy of it outside that nothing may open.

    Other users may enter it, which pytest's own folders do not allow."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder, outside = (Path(place).resolve() / name for name in ("room", "outside"))
        folder.mkdir(mode=0o755)
        outside.mkdir()
        for seed, name in enumerate(("base", "finetuned")):
            save_file(small_tensors(seed), folder / f"{name}.safetensors", metadata={"format": "pt"})
            (folder / f"{name}.safetensors").chmod(0o644)
        shutil.copy(folder / "finetuned.safetensors", outside / "model.safetensors")
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            yield folder


@contextmanager
def alarmed() -> Iterator[None]:
    """Raise an error in what hangs."""

    def ring(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory(field: str) -> float:
    """A number of this process's memory in megabytes."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.thorough] if one in THOROUGH else []) for one in ROWS]
)
def test_an_input(name: str, room: Path, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    row = ROWS[name]
    row.make()
    made = set(os.listdir())
    for line in row.lines:
        before = everything_in(room.parent)
        capfd.readouterr()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        resident, started = memory("VmRSS"), time.process_time()
        with again.afterwards():
            with alarmed(), watch.inside(room), nobody() if row.as_nobody else nullcontext():
                code = main(shlex.split(line))
            seconds, peak = time.process_time() - started, memory("VmHWM") - resident
        result = Result(code, *capfd.readouterr())
        check(row, line, result)
        new = everything_in(room.parent)
        assert {path: new.pop(path, None) for path in before} == before, line
        check_output(line, result, {Path(path).relative_to(room) for path in new})
        if row.after is not None:
            row.after(result)
        assert watch.found == [], line
        assert seconds < row.seconds, line
        assert peak < MEGABYTES, line
        for name in set(os.listdir()) - made:
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def check(row: Row, line: str, result: Result) -> None:
    """Check the exit code, the message, and that no character in it moves the cursor."""
    assert result.code == row.code, (line, result)
    assert "Traceback" not in result.err
    assert all(word in result.err for word in row.words), (line, result.err, row.words)
    printed = result.out + result.err
    unsafe = {one for one in printed if unicodedata.category(one) in ("Cc", "Cf", "Cs") and one != "\n"}
    assert unsafe == set(), line
    said = [each for each in result.err.splitlines() if not each.startswith("note: ")]
    if result.code == 1:
        assert result.out == "", line
        assert len(said) == 1, said
        assert said[0].startswith("error: ")
        assert len(said[0]) < 2100
    elif result.code == 2:
        assert result.out == "", line
        assert sum("error: " in each.lower() for each in said) == 1, said


def check_output(line: str, result: Result, new: set[Path]) -> None:
    """Check that a run wrote what its command line names alone, and that others can read it."""
    words = shlex.split(line)
    output = Path(words[words.index("-o") + 1]) if "-o" in words else None
    if result.code or output is None or "--dry-run" in words:
        assert new == set(), line
        return
    report = output / "monosoup_report.json"
    if output.suffix == ".safetensors":
        report = output.with_suffix(".report.json")
    assert {path for path in new if output not in (path, *path.parents)} <= {report}, line
    assert output in new
    json.loads(report.read_text(), parse_constant=pytest.fail)
    for path in new:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                assert list(opened.keys()) is not None
