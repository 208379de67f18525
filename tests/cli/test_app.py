"""How the command talks: streams, exit codes, formats, and what it loads."""

import ctypes
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.cli.app import main

DOCS = Path(monosoup_cli.__file__).parents[1] / "docs"
SCHEMA = json.loads((DOCS / "report.schema.json").read_text())


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"mlp.weight": torch.randn(20, 12, generator=generator), "norm.weight": torch.ones(12)}
    finetuned = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(finetuned, tmp_path / "finetuned.safetensors")
    return [str(tmp_path / "base.safetensors"), str(tmp_path / "finetuned.safetensors")]


@pytest.fixture
def edit(files, tmp_path, capsys):
    """Run `monosoup edit` in this process: (exit code, stdout, stderr)."""

    def run(*options):
        code = main(["edit", *files, "-o", str(tmp_path / "out"), *options])
        return code, *capsys.readouterr()

    return run


def test_people_read_stderr(edit, tmp_path):
    code, stdout, stderr = edit()
    assert (code, stdout) == (0, "")
    for fact in ("1 tensor,", "vector 1", "k/r", "λ_high", str(tmp_path / "out"), "monosoup_report.json"):
        assert fact in stderr
    assert "\x1b" not in stderr
    assert all(len(line) <= 80 for line in stderr.splitlines() if str(tmp_path) not in line)
    assert not any(line.endswith(" ") for line in stderr.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--energy", "0.8"], "at most about 0.53 at 0.8 (the equivalent α)"),
        (["--energy", "0.2,0.5,0.9,0.95"], "at most about 0.5 at 0.5, 0.65 at 0.9 (the equivalent α)"),
        (["--energy", "0.5", "--weighting", "high"], "at most about 0.5 at 0.5 (the equivalent α)"),
        (["--energy", "0.8", "--weighting", "high"], None),
        (["--energy", "0.95"], None),
        ([], None),
    ],
)
def test_what_energy_does_is_said_before_the_run(edit, tmp_path, options, said):
    notes = json.loads(edit("--dry-run", "--format", "json", *options)[1])["notes"]
    assert [one for one in notes if "--energy" in one] == notes
    assert [said in one for one in notes] == ([] if said is None else [True])
    shown = [f"note: {one}" for one in notes]
    assert edit("--dry-run", *options)[2].splitlines() == shown
    _, report, err = edit("--format", "json", *options)
    assert json.loads(report)["notes"] == notes
    assert err.splitlines()[: len(shown)] == shown


@pytest.mark.parametrize(
    ("options", "is_far"),
    [
        (["--energy", "0.7"], True),
        (["--weighting", "uniform"], True),
        ([], False),
        (["--energy", "0.7", "--wise", "0.9"], False),
    ],
)
def test_an_edit_that_went_far_says_so(edit, options, is_far):
    _, report, err = edit("--format", "json", *options)
    (alpha,) = [one["equivalent_alpha"] for one in json.loads(report)["layers"] if one["action"] == "edited"]
    assert (alpha < 0.7) == bool(options)
    said = (
        f"note: the edit goes {1 - alpha:.0%} of the way back to the base (its equivalent α is {alpha:.2g})"
    )
    assert (said in err) == is_far
    assert is_far or "the way back" not in err


def test_quiet_says_nothing(edit):
    assert edit("--quiet") == (0, "", "")


@pytest.mark.parametrize("option", [["--format", "json"], ["--report", "-"]])
def test_the_report_on_stdout(edit, option, tmp_path):
    code, stdout, _ = edit(*option)
    assert code == 0
    jsonschema.validate(json.loads(stdout), SCHEMA)
    assert (tmp_path / "out" / "monosoup_report.json").exists() == (option[0] == "--format")


def test_the_report_elsewhere(edit, tmp_path):
    code, _, _ = edit("--report", str(tmp_path / "r.json"))
    assert code == 0
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), SCHEMA)
    assert not (tmp_path / "out" / "monosoup_report.json").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(edit, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, stdout, _ = edit("--dry-run")
    assert code == 0
    assert re.search(r"mlp\.weight +F32 +edit 20 × 12", stdout)
    assert re.search(r"norm\.weight +F32 +keep: vector", stdout)
    code, stdout, _ = edit("--dry-run", "--format", "json")
    plan = json.loads(stdout)
    assert [layer["reason"] for layer in plan["layers"]] == [None, "vector"]
    assert plan["memory_bytes"] > 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--energy", "0"],
        ["--energy", "1.5"],
        ["--energy", "0.5", "--rank", "3"],
        ["--rank", "0"],
        ["--wise", "2"],
        ["--device", "tpu"],
        ["--max-shard-size", "big"],
        ["--workers", "0"],
        ["--max-shard-size", "1GB", "-o", "one.safetensors"],
        ["--include", "no such name"],
        ["--stacked", "mlp.weight"],
        ["--colour"],
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2(files, tmp_path, capsys, options):
    arguments = files[:1] if not options else [*files, "-o", str(tmp_path / "out"), *options]
    assert main(["edit", *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert "rror: " in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_a_terminal_that_knows_only_ascii(files, tmp_path):
    command = [sys.executable, "-m", "monosoup_cli", "edit", *files, "-o", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for options, stream in (["--dry-run"], "stdout"), ([], "stderr"):
        result = subprocess.run([*command, *options], capture_output=True, env=environment, check=True)
        assert b"\\x" in getattr(result, stream) or b"\\u" in getattr(result, stream)


@pytest.mark.parametrize("target", ["2>&-", "2>/dev/full", "2> >(true)"])
@pytest.mark.parametrize("options", [[], ["--resume", "--overwrite"]])
def test_messages_that_nobody_can_read_fail_nothing(files, tmp_path, target, options):
    words = [sys.executable, "-m", "monosoup_cli", "edit", *files, "-o", str(tmp_path / "out"), *options]
    for _ in range(2 if "--overwrite" in options else 1):
        shell = subprocess.run(
            ["bash", "-c", f"{shlex.join(words)} {target}"], capture_output=True, text=True, check=False
        )
        assert (shell.returncode, shell.stdout) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_two_interrupts_leave_a_terminal_that_can_be_used(tmp_path):
    for name, seed in (("base", 0), ("ft", 1)):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{n}.weight": torch.randn(1600, 1600, generator=generator) for n in range(4)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    words = ["edit", tmp_path / "base.safetensors", tmp_path / "ft.safetensors", "-o", tmp_path / "out"]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "monosoup_cli", *words, "--workers", "1"]
    with subprocess.Popen(command, stderr=follower, env=environment) as process:
        os.close(follower)
        seen = b""
        while b"\x1b[?25l" not in seen:  # the bar has hidden the cursor
            seen += os.read(leader, 4096)
        time.sleep(0.5)  # in the first decomposition, which takes longer
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # the first signal waits for it, the second does not
        process.send_signal(signal.SIGINT)
        while True:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # the terminal is closed
                break
    os.close(leader)
    assert process.returncode in (130, -signal.SIGINT)  # the latter where the first had ended the run
    assert seen.count(b"\x1b[?25h") >= 1
    assert seen.endswith(b"\n")


@pytest.mark.parametrize("module", ["numpy.lib.scimath", "torch.nn.modules.module", "torch.distributed"])
def test_an_interrupt_while_torch_is_imported_is_not_lost(module, files):
    if module.startswith("numpy"):
        pytest.importorskip("numpy")
    program = f"""if True:
        import signal, sys
        from monosoup_cli.cli.app import main

        def interrupt(event, found):
            if event == "import" and found[0] == "{module}":
                signal.raise_signal(signal.SIGINT)

        sys.addaudithook(interrupt)
        sys.exit(main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", program, "inspect-spectrum", *files]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "error: interrupted\n")


def test_debugging_shows_the_traceback(files, tmp_path):
    command = [sys.executable, "-m", "monosoup_cli", "edit", "missing", files[1], "-o", str(tmp_path / "out")]
    for value in ("", "1"):
        environment = {**os.environ, "MONOSOUP_DEBUG": value}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 1
        assert ("Traceback" in result.stderr) == (value == "1")


def test_every_option_has_a_help_text_and_the_command_an_example(capsys):
    assert main(["edit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example: monosoup edit" in text
    for option in ("--energy", "--wise", "--resume", "--overwrite", "--max-shard-size", "--on-nonfinite"):
        assert option in text


@pytest.mark.parametrize("arguments", [[], ["--help"], ["edit", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys; from monosoup_cli.cli.app import main\n"
        f"assert main({arguments!r}) == {0 if arguments else 2}\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'huggingface_hub', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_importing_the_package_loads_no_torch():
    code = "import sys, monosoup_cli; monosoup_cli.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_garbage_is_collected_again_once_torch_is_there(files, tmp_path):
    arguments = ["edit", *files, "-o", str(tmp_path / "out"), "--quiet"]
    code = f"""
import gc, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            assert not gc.isenabled()

sys.meta_path.insert(0, Watch())
sys.argv[1:] = {arguments}
from monosoup_cli.__main__ import run
try:
    run()
finally:
    assert "torch" in sys.modules and gc.isenabled() and gc.get_freeze_count()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_reference_is_current():
    command = [
        Path(sys.executable).with_name("typer"),
        "monosoup_cli.cli.app",
        "utils",
        "docs",
        "--name",
        "monosoup",
    ]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert found.strip() == (DOCS / "cli.md").read_text().strip(), "run `make docs`"


def in_a_terminal(command, environment=None, code=0):
    """What a person sees: the bytes that the command writes to a terminal of 80 columns."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update({"COLUMNS": "80", "TERM": "xterm", **(environment or {})})
        os.execv(command[0], command)
    seen = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    return seen.decode()


@pytest.mark.parametrize(
    ("environment", "options", "is_live"),
    [({}, [], True), ({"TERM": "dumb"}, [], False), ({}, ["--no-progress"], False)],
    ids=["terminal", "dumb terminal", "--no-progress"],
)
def test_the_progress_bar_moves_where_it_can(files, tmp_path, environment, options, is_live):
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", "monosoup_cli", "edit", *files, "-o", out, *options]
    seen = in_a_terminal(command, environment)
    assert ("\x1b[2K" in seen) == is_live
    assert "λ_high" in seen


def test_reports_of_other_commands_words(edit, tmp_path):
    """The options of the command are those of the function, and end in the report by the same names."""
    edit("--energy", "0.5", "--exclude", "norm.*", "--dtype", "bfloat16")
    found = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())["arguments"]
    assert (found["energy"], found["exclude"], found["dtype"]) == (0.5, ["norm.*"], "bfloat16")
    assert load_file(tmp_path / "out" / "model.safetensors")["mlp.weight"].dtype == torch.bfloat16


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc is told")
def test_freed_buffers_are_given_back():
    """A buffer that is smaller than one that was freed before is mapped on its own, too."""
    code = """
import ctypes
import fcntl
from monosoup_cli.cli.writing import import_torch

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks mmaps mapped a b c d e".split()]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info
import_torch()
large = bytearray(16 << 20)
del large
before = info().mapped
small = bytearray(2 << 20)
print(info().mapped - before)
"""
    mapped = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)
    assert mapped >= 2 << 20


@pytest.mark.parametrize("columns", [None, "60"])
def test_messages_fold_at_words_in_a_terminal_alone(files, tmp_path, monkeypatch, capsys, columns):
    missing = tmp_path / ("a-long-name-" * 8)
    command = ["edit", files[0], str(missing), "-o", "out", "--energy", "0.5"]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) > 80
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with open(follower, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(command) == 1
        assert main(["edit", *files, "-o", str(tmp_path / "out"), "--energy", "0.5", "--dry-run"]) == 0
        seen = os.read(leader, 1 << 16).decode()
        monkeypatch.undo()
    os.close(leader)
    folded = seen.split("\r\n")
    start = next(number for number, one in enumerate(folded) if one.startswith("note: "))
    assert " ".join(folded[:start]) == line
    assert start > 1
    assert len(folded) - start > 2
    assert all(len(one) <= int(columns or 80) for one in folded if str(missing) not in one)
