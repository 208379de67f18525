"""What `monosoup` alone prints: jobs, each with a command that the command line accepts."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from monosoup_cli.cli.app import app, main
from monosoup_cli.cli.jobs import JOBS
from tests.cli.test_app import in_a_terminal

README = (Path(__file__).parents[2] / "README.md").read_text()
ALONE = [sys.executable, "-m", "monosoup_cli"]


@pytest.mark.parametrize("command", JOBS.values())
def test_every_job_is_a_command_of_the_readme_that_parses(command):
    name, *words = command.split()
    group = typer.main.get_command(app)
    found = group.get_command(group.make_context("monosoup", [name]), name)
    assert found is not None
    found.make_context(name, words)
    assert f"monosoup {name} " in README


def test_alone_it_prints_the_jobs(capsys):
    """As any wrong usage, on stderr and with 2: a script without its command has not done its work."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "What do you want to do?"
    assert [line for line in lines if line.startswith("  ")] == [
        f"  {job:<24}monosoup {command}" for job, command in JOBS.items()
    ]
    assert lines[-1] == "All commands:         monosoup --help"
    assert max(map(len, lines)) <= 80


def test_help_is_what_people_expect_of_it(capsys):
    assert main([]) == 2
    jobs = capsys.readouterr().err
    assert (main(["help"]), *capsys.readouterr()) == (0, jobs, "")
    assert main(["edit", "--help"]) == 0
    page = capsys.readouterr().out
    assert (main(["help", "edit"]), *capsys.readouterr()) == (0, page, "")
    assert (main(["help", "help"]), *capsys.readouterr()) == (0, jobs, "")
    for words, meant in ((["help", "edti"], "edit"), (["hlep"], "help"), (["hlep", "edit"], "help")):
        assert main(words) == 2
        assert f"did you mean {meant}?" in capsys.readouterr().err
    assert main(["help", "edit", "nope"]) == 2
    said = "error: help takes one command: found 'edit' 'nope'\n"
    assert capsys.readouterr() == ("", said)


def test_in_a_terminal_it_says_the_same_as_in_a_pipe():
    piped = subprocess.run(ALONE, capture_output=True, text=True, check=False)
    assert piped.returncode == 2
    assert in_a_terminal(ALONE, code=2).replace("\r\n", "\n") == piped.stderr
