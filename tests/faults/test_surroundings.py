"""Runs in bad surroundings: little memory, few descriptors, full or read-only disks, streams that are
closed or full, other runs at the same output, signals at any time, names and locales that are not
UTF-8."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import monosoup_cli
from tests.faults.bench import Outcome, check_words, same
from tests.faults.commands import COMMANDS

ROTATED = list(COMMANDS.values())
MEGABYTE = 1 << 20

LIMITS = {
    "descriptors": ("RLIMIT_NOFILE", (5, 8, 12, 16, 20, 24, 32, 48, 64, 90)),
    "memory": ("RLIMIT_AS", [n * MEGABYTE for n in (0, 1, 4, 9, 16, 24, 32, 48, 64, 96, 128, 192)]),
    "file size": ("RLIMIT_FSIZE", (500, 700, 1000, 2000, 4000, 8000)),  # stderr is a file as well
}


def limited(bench, command, name, value):
    place = bench.place(command)
    place.check(place.run(limits={LIMITS[name][0]: value}), [1])
    place.finish()
    place.clear()


@pytest.mark.parametrize(("name", "number"), [("descriptors", 3), ("file size", 3)])
def test_a_limit(bench, injected, name, number):
    limited(bench, COMMANDS["edit several"], name, LIMITS[name][1][number])
    injected(f"little {name}")


def test_memory_for_some_threads_alone(bench, injected):
    """Each takes 8 MB of addresses. Those that did start must not keep the process from ending."""
    for megabytes in (16, 20, 24, 28):
        limited(bench, COMMANDS["edit"], "memory", megabytes * MEGABYTE)
        injected("little memory")


@pytest.mark.thorough
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("number", range(0, len(ROTATED), 5))
def test_limits(bench, injected, name, number):
    for value in LIMITS[name][1]:
        print(ROTATED[number].name, value)
        limited(bench, ROTATED[number], name, value)
        injected(f"little {name}")


# -- disks -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["edit", "edit several", "edit again", "soup, greedy", "wise sweep"])
def test_a_disk_that_fills_up(bench, injected, name):
    """A real one, with a few pages left."""
    for pages in range(0, 24, 2):
        place = bench.place(COMMANDS[name])
        disk = place.folder / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
            pytest.skip("cannot mount")
        try:
            shutil.copytree(place.work, disk, dirs_exist_ok=True)
            place.work, ballast = disk, disk / "elsewhere" / "ballast"
            place.out, place.partial = disk / place.out.name, disk / place.partial.name
            place.inputs, page = place.dates(), 4096
            free = os.statvfs(disk).f_bavail
            ballast.write_bytes(bytes(max(0, free - pages) * page))
            place.check(place.run(), [1])
            ballast.unlink()
            place.finish()
            injected("a full disk")
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        place.clear()


@pytest.mark.parametrize("name", ["edit", "edit a file again"])
def test_a_folder_without_permission(bench, injected, name):
    place = bench.place(COMMANDS[name])
    place.work.chmod(0o555)
    refused = place.run(without_powers=True)
    place.check(refused, [1])
    assert refused.code == 1
    assert not place.partial.exists()
    assert same(place.result(), place.old)
    place.work.chmod(0o755)
    place.finish()
    injected("a read-only folder")


# -- streams -----------------------------------------------------------------------------------

STREAMS = {
    **{f"{name} closed": {"closed": [name]} for name in ("stdin", "stdout", "stderr")},
    "all closed": {"closed": ["stdin", "stdout", "stderr"]},
    **{f"{name} full": {name: "/dev/full"} for name in ("stdout", "stderr")},
    "both full": {"stdout": "/dev/full", "stderr": "/dev/full"},
}
TO_THE_END = {"frees_memory": True}
"""Python looks after its streams at its very end."""


@pytest.mark.parametrize("streams", STREAMS)
def test_streams_that_are_closed_or_full(bench, injected, streams):
    """The output is made, whoever hears of it."""
    place = bench.place(COMMANDS["edit to a file"])
    outcome = place.run(**STREAMS[streams], **TO_THE_END)
    assert outcome.code == 0, outcome
    place.check(outcome, [])
    injected(streams)
    place.clear()


@pytest.mark.parametrize("streams", ["stdout closed", "stdout full", "both full"])
def test_a_report_for_a_stream_that_takes_none(bench, injected, streams):
    """It was asked for, so the run fails, but the output is complete."""
    place = bench.place(COMMANDS["edit, stdout"])
    outcome = place.run(**STREAMS[streams], **TO_THE_END)
    assert outcome.code == 1
    if "both" not in streams:
        check_words(outcome)
    assert same(place.result(), bench.reference(place.command).tree) or not place.out.exists()
    place.finish()
    injected(streams)
    place.clear()


@pytest.mark.parametrize("streams", ["stderr closed", "stderr full"])
def test_a_refusal_that_nobody_hears(bench, injected, streams):
    place = bench.place(COMMANDS["edit to a file"])
    (place.work / "in" / "base.safetensors").write_bytes(b"nothing")
    outcome = place.run(**STREAMS[streams], **TO_THE_END)
    assert outcome.code == 1, outcome
    injected(streams)


# -- two at once -------------------------------------------------------------------------------


def two_at_once(bench, command, step, *options):
    """A second run starts, and is refused, while the first one waits at a step.

    Returns whether the first one came to it: some are taken only if the workers happen to meet.
    """
    place = bench.place(command)
    here, leave = place.work / "elsewhere" / "here", place.work / "elsewhere" / "leave"
    first = place.start(fault={"at": step, "pause": [str(here), str(leave)]})
    deadline = time.monotonic() + 60
    while not (here.exists() or first.has_ended) and time.monotonic() < deadline:
        time.sleep(0.005)
    if not here.exists():
        assert first.wait().code == 0
        place.clear()
        return False
    second = place.run(*options, name="second")
    leave.touch()
    outcome = first.wait()
    here.unlink()
    leave.unlink()
    assert second.code == 1, second
    check_words(second)
    assert "another run is writing this output" in second.err or "already exists" in second.err
    assert outcome.code == 0, outcome
    place.check(outcome, [])
    place.finish()
    place.clear()
    return True


def steps_with_the_lock(bench, command):
    """Those between taking the lock and making the output appear."""
    steps = bench.reference(command).steps
    first = next(n for n, step in enumerate(steps) if step.startswith("flock"))
    last = max(n for n, step in enumerate(steps) if step.startswith(("rename", "replace")))
    return steps[first + 1 : last]


def test_a_second_run(bench, injected):
    command = COMMANDS["edit several"]
    assert two_at_once(bench, command, steps_with_the_lock(bench, command)[-1])
    injected("a second run")


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_second_runs(bench, injected, command):
    steps = steps_with_the_lock(bench, command)
    chance = random.Random(command.name)
    for options in ((), ("--resume",), ("--overwrite",)):
        steps_to_try = chance.sample(steps, 5)
        print(options, steps_to_try)
        assert any(two_at_once(bench, command, step, *options) for step in steps_to_try)
        injected("a second run")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["edit several", "edit again", "soup, greedy", "edit a file again"])
def test_runs_that_start_together(bench, injected, name):
    """One makes the output; the others are refused, or begin after it and find it there."""
    for _ in range(3):
        place = bench.place(COMMANDS[name])
        runs = [place.start(name=f"run {number}") for number in range(4)]
        outcomes = [run.wait() for run in runs]
        assert 0 in [outcome.code for outcome in outcomes]
        for outcome in outcomes:
            assert outcome.code in (0, 1)
            check_words(outcome)
        place.check(next(outcome for outcome in outcomes if outcome.code == 0), [])
        assert not place.partial.exists()
        injected("four runs at once")
        place.clear()


# -- signals at any time -----------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("command", ROTATED[::4], ids=[command.name for command in ROTATED[::4]])
def test_a_signal_at_any_time(bench, injected, command, number):
    chance = random.Random(f"{command.name} {number}")
    for _ in range(4):
        place = bench.place(command)
        delay = chance.uniform(0.02, bench.reference(command).seconds)
        run = place.start()
        time.sleep(delay)
        run.send(number)
        outcome = run.wait()
        place.check(outcome, {9: [-9], 15: [143], 2: [130], 1: [-1, 129]}[number])
        place.finish()
        injected(f"{signal.Signals(number).name} at any time")
        place.clear()


ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))},
    "PYTHONPATH": str(Path(monosoup_cli.__file__).parents[1]),
    "CUDA_VISIBLE_DEVICES": "",
    "OPENBLAS_NUM_THREADS": "1",
}


def start_anew(place, words=None, **environment):
    """Start a process of its own, as a shell does in the foreground."""
    return subprocess.Popen(
        [sys.executable, "-m", "monosoup_cli", *(words or place.command.words)],
        cwd=place.work,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process):
    out, err = process.communicate(timeout=100)
    return Outcome(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"), [])


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_process_of_its_own(bench, injected, number):
    """Also while it starts, imports torch and ends."""
    command, chance = COMMANDS["edit several"], random.Random(number)
    started = time.monotonic()
    place = bench.place(command)
    assert ended(start_anew(place)).code == 0
    seconds = time.monotonic() - started
    for _ in range(6):
        place = bench.place(command)
        process = start_anew(place)
        time.sleep(chance.uniform(0.1, seconds))
        process.send_signal(number)
        outcome = ended(process)
        place.check(outcome, [-number] if number == 9 else [128 + number, -number])
        place.finish()
        injected(f"{signal.Signals(number).name} at any time")
        place.clear()


# -- names and locales -------------------------------------------------------------------------

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C, as Python mends it": {"LC_ALL": "C"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C.UTF-8"},
}
NAMES = {"UTF-8": "modèle 模型", "no UTF-8": "mod\udce8le", "a line break": "a\nb\x1b[31m"}


def test_names_that_are_no_utf8(bench, injected):
    named(bench, injected, "no UTF-8", lambda place, words: place.run(words=words))


def named(bench, injected, name, run):
    """Inputs, output and report below folders of a name."""
    place, text = bench.place(COMMANDS["edit, report"]), NAMES[name]
    (place.work / "in").rename(place.work / text)
    (place.work / text / "ft1" / f"{text}.txt").write_text("beside")
    words = ["edit", f"{text}/base", f"{text}/ft1", "-o", f"out {text}", "--report", f"{text}.json"]
    before = place.dates(text)
    outcome = run(place, words)
    assert outcome.code == 0, outcome
    check_words(outcome)
    assert place.dates(text) == before
    whole = bench.reference(place.command).tree
    for file in (place.work / f"out {text}").glob("*.safetensors"):
        assert file.read_bytes() == whole[f"out/{file.name}"]
    assert (place.work / f"out {text}" / f"{text}.txt").read_text() == "beside"
    assert json.loads((place.work / f"{text}.json").read_text())["schema_version"]
    refused = run(place, words)
    assert refused.code == 1
    check_words(refused)
    injected(f"a name: {name}")
    place.clear()


@pytest.mark.thorough
@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("name", NAMES)
def test_names_and_locales(bench, injected, name, locale):
    named(bench, injected, name, lambda place, words: ended(start_anew(place, words, **LOCALES[locale])))


@pytest.mark.parametrize("date", [0, 2**33, -1], ids=["1970", "2242", "1969"])
def test_inputs_of_another_time(bench, injected, date):
    """Dates of files tell whether a file changed, not when."""
    place = bench.place(COMMANDS["edit several"])
    for path in (place.work / "in").rglob("*"):
        os.utime(path, ns=(date * 10**9, date * 10**9))
    place.inputs = place.dates()
    sealed = next(s for s in bench.reference(place.command).steps if s.startswith("fsync out.partial/files"))
    place.check(place.run(fault={"at": sealed, "signals": [9]}), [-9])
    place.finish()
    injected("inputs of another time")
    place.clear()
