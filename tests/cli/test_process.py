"""What the system does to the process of a command: signals, bad streams, limits. All processes are real."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from monosoup_cli.cli.app import app, main
from tests import warm

MODULE = [sys.executable, "-m", "monosoup_cli"]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def shell(script, *words, **options):
    """Run a script of bash, whose "$@" is a command."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **options}
    command = ["bash", "-c", script, "bash", *map(str, words)]
    return subprocess.run(command, capture_output=True, env=environment, timeout=100, check=False)


def python(program, *arguments):
    """Run a program in a process in which no signal is ignored."""

    def restore():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, preexec_fn=restore, timeout=100, check=False
    )


@pytest.fixture
def edit(pair, tmp_path):
    return [*MODULE, "edit", *pair, "-o", tmp_path / "out"]


@pytest.fixture
def whole(pair, tmp_path):
    """The bytes of the output."""
    assert main(["edit", *map(str, pair), "-o", str(tmp_path / "whole"), "--quiet"]) == 0
    return (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("streams", ["0>&- 1>&- 2>&-", "2>/dev/full", "2> >(head -c0) >/dev/full"])
def test_a_run_goes_on_where_nobody_can_be_told(edit, whole, tmp_path, streams):
    found = shell(f'"$@" {streams}', *edit)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "0>&- >/dev/full 2>/dev/full", ">&- 2>&-"])
def test_a_report_that_stdout_does_not_take_is_an_error(edit, whole, tmp_path, streams):
    found = shell(f'"$@" --report - {streams}', *edit)
    assert (found.returncode, found.stdout) == (1, b"")
    lines = [line for line in found.stderr.decode().splitlines() if not line.startswith("note: ")]
    assert len(lines) == (0 if "2>" in streams else 1)
    assert all(line.startswith("error: stdout ") for line in lines)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("words", [["--help"], ["edit", "--help"], ["--version"]], ids=" ".join)
def test_a_help_that_stdout_does_not_take_is_an_error(words):
    """The help of `edit` is longer than the buffer: it fails when it is written, not when it is flushed."""
    found = shell('"$@" >/dev/full', *MODULE, *words)
    assert (found.returncode, found.stderr.count(b"\n")) == (1, 1), found.stderr.decode()
    assert found.stderr.startswith(b"error: stdout cannot be written: ")
    found = shell('"$@" | head -c1; exit ${PIPESTATUS[0]}', *MODULE, *words)
    assert (found.returncode, found.stderr) == (0, b"")


def test_an_error_that_nobody_can_be_told_is_no_traceback():
    for streams in ("2>/dev/full", "2>&-", "2> >(head -c0)"):
        for words in (["report", "missing"], ["edit"]):
            found = shell(f'"$@" {streams}', *MODULE, *words)
            assert (found.returncode, found.stdout, found.stderr) == (1 + (words == ["edit"]), b"", b"")


def test_no_file_takes_the_number_of_a_closed_stream():
    program = """if True:
        import os
        from monosoup_cli.__main__ import run
        from monosoup_cli.cli import app
        def main():
            return min(os.open(os.devnull, os.O_RDONLY), 99) - 3
        app.main = main
        run()
    """
    found = shell('"$@" 0>&- 1>&- 2>&-', sys.executable, "-c", program)
    assert found.returncode == 0


WHILE_LEAVING = """if True:
    import atexit, os, signal, sys
    from monosoup_cli.__main__ import run
    from monosoup_cli.cli import app

    number, when = int(sys.argv[1]), sys.argv[2]
    command = app.main

    class Last:
        def __del__(self, kill=os.kill, process=os.getpid()):
            kill(process, number)

    def main():
        if when == "first":
            signal.raise_signal(number)
        code = command(["--version"])
        if when == "leaving":
            atexit.register(signal.raise_signal, number)
        return code

    if when == "late":
        atexit.register(signal.raise_signal, number)
    if when == "last":
        sys.last = Last()
    app.main = main
    run()
"""


@pytest.mark.parametrize("when", ["first", "leaving", "late", "last"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_process_begins_or_ends(number, when):
    """It ends at once, with the code of the signal; once nothing is left to do, with its own."""
    found = python(WHILE_LEAVING, int(number), when)
    assert found.returncode == (SIGNALS[number] if when in ("first", "leaving") else 0), found
    assert found.stderr == ""


WHILE_IMPORTING = """if True:
    import signal, sys
    from monosoup_cli.__main__ import run

    number = int(sys.argv.pop())

    def interrupt(event, found):
        if event == "import" and found[0] == "monosoup_cli.cli.writing":
            signal.raise_signal(number)

    sys.addaudithook(interrupt)
    run()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_commands_are_imported(number):
    found = python(WHILE_IMPORTING, "--version", int(number))
    assert (found.returncode, found.stdout, found.stderr) == (SIGNALS[number], "", "")


HANG_UP = """if True:
    import signal, sys
    from monosoup_cli.__main__ import run

    def hang_up(event, found):
        if event == "import" and found[0] == "torch.nn.modules.module":
            signal.raise_signal(signal.SIGHUP)

    if sys.argv.pop(1) == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.addaudithook(hang_up)
    run()
"""


def test_a_terminal_that_hangs_up_ends_the_run_unless_it_is_ignored(pair, tmp_path):
    words = ("edit", *pair, "-o", tmp_path / "out", "--quiet")
    found = python(HANG_UP, "terminal", *words)
    assert (found.returncode, found.stderr.splitlines()[0]) == (129, "error: interrupted")
    assert not (tmp_path / "out").exists()
    found = python(HANG_UP, "nohup", *words)
    assert (found.returncode, found.stderr) == (0, "")


MEMORY = """if True:
    import torch
    from monosoup_cli.__main__ import run

    def lacking(solve):
        def solved(matrix, **options):
            if matrix.shape[-1] == 200:
                torch.empty(1 << 50, dtype=torch.uint8)  # more than there are addresses
            return solve(matrix, **options)
        return solved

    torch.linalg.eigh, torch.linalg.eigvalsh = map(lacking, (torch.linalg.eigh, torch.linalg.eigvalsh))
    run()
"""


def test_a_lack_of_memory_is_one_line_and_what_is_done_is_kept(tmp_path):
    paths = [tmp_path / "base.safetensors", tmp_path / "ft.safetensors"]
    for seed, path in enumerate(paths):
        normal = torch.Generator().manual_seed(seed)
        sizes = {"layers.0.weight": 100, "layers.1.weight": 200}
        save_file({name: torch.randn(n, n, generator=normal) for name, n in sizes.items()}, path)
    words = ["edit", *paths, "-o", tmp_path / "out", "--workers", "1"]
    found = python(MEMORY, *words, "--quiet")
    assert found.returncode == 1, found
    assert found.stderr.startswith(
        "error: tensor 'layers.1.weight': ran out of memory on the host; rerun with --"
    )
    assert found.stderr.count("\n") == 1
    assert b"layers.0.weight" in (tmp_path / "out.partial" / "journal").read_bytes()
    assert not (tmp_path / "out").exists()
    assert main([str(word) for word in [*words, "--resume", "--quiet"]]) == 0
    assert main([str(word) for word in [*words[:4], tmp_path / "whole", "--quiet"]]) == 0
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"layers.0.weight", "layers.1.weight"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("shortage", "words"),
    [
        (MemoryError(), "ran out of memory; free some memory, then run it again"),
        (RuntimeError("can't start new thread"), "no more threads; raise `ulimit -u`, then run it again"),
        (OSError(errno.EMFILE, "Too many open files"), "no more files; raise `ulimit -n` to 1024 or more"),
    ],
    ids=["memory", "threads", "files"],
)
def test_what_is_advised_are_options_that_the_command_has(run, monkeypatch, shortage, words):
    def lacking(argv, prog_name):
        raise shortage

    commands = typer.main.get_command(app).commands
    monkeypatch.setattr("monosoup_cli.cli.app.app", lacking)
    for name, command in commands.items():
        own = {flag for each in command.params for flag in each.opts}
        said = run(name, "--report", "x")
        assert (said.code, said.err.count("\n"), words in said.err) == (1, 1, True), said
        named = re.findall("--[a-z]+", said.err)
        assert set(named) <= own, name
        assert ("--workers" in named) == ("--workers" in own and "files" not in words), name


def test_limits_name_what_ran_out(edit):
    for limits, word in (
        ("ulimit -n 5", b"ulimit -n"),
        ("ulimit -n 64", b"expected at least 82, found 64; raise the limit: `ulimit -n 82`"),
        ("ulimit -v 200000", b"memory"),
        ("ulimit -s 60000000; ulimit -v 40000000", b"threads"),
    ):
        found = shell(f'{limits}; "$@"', *edit, "--quiet")
        lines = found.stderr.splitlines()
        assert (found.returncode, found.stdout, len(lines)) == (1, b"", 1), (limits, found)
        assert lines[0].startswith(b"error: "), lines
        assert word in lines[0]


def test_a_locale_without_utf8_and_names_that_are_none(pair, tmp_path):
    odd = tmp_path / os.fsdecode(b"odd \xff\xfe name")
    odd.mkdir()
    names = [odd / path.name for path in pair]
    for path, name in zip(pair, names, strict=True):
        path.rename(name)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    for output in (odd / "out", odd / os.fsdecode(b"\xe9.safetensors")):
        found = shell('"$@"', *MODULE, "edit", *names, "-o", output, **locale)
        assert (found.returncode, found.stdout) == (0, b""), found
        assert b"Traceback" not in found.stderr
    for words in (["report", odd / "out"], ["inspect-spectrum", *names], ["edit", names[0], odd / "\u20ac"]):
        found = shell('"$@"', *MODULE, *words, **locale)
        assert found.returncode == (2 if words[0] == "edit" else 0), found
        assert b"Traceback" not in found.stderr


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_an_interrupted_run_says_how_to_go_on(pair, tmp_path, options):
    out = tmp_path / "out"
    if options:
        out.mkdir()
    interrupt = "kill -INT $PPID; sleep 60; : {}"
    command = ["edit", *map(str, pair), "-o", str(out), *options]
    ended = warm.run([*command, "--score", interrupt], dict(os.environ))
    assert ended.returncode == 130
    both = " ".join([*options, "--resume"])
    assert f"note: rerun the command with {both} to continue from here\n" in ended.stderr
    again = warm.run([*command, "--score", "echo 1; : {}", "--resume"], dict(os.environ))
    assert again.returncode == 0, again.stderr
