"""Completion in a real bash, from a home in which `monosoup --install-completion` was run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = """
. ~/.bashrc
[[ $(complete -p monosoup) == 'complete -o default -F '* ]] || exit 3
ask() {
    COMP_WORDS=(monosoup "$@"); COMP_CWORD=$#; COMPREPLY=()
    _monosoup_completion monosoup "${@: -1}" "${@: -2:1}"
    echo "${COMPREPLY[@]}"
}
ask ed
ask edit --on-m
ask edit --on-mismatch ''
ask edit ba
"""


@pytest.fixture
def home(tmp_path):
    """An empty home, with monosoup on the PATH."""
    command = tmp_path / "bin" / "monosoup"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom monosoup_cli.__main__ import run\nrun()\n")
    command.chmod(0o755)
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    return lambda *words, **more: subprocess.run(
        words, env={**env, **more}, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )


def test_bash_completes_commands_options_and_values_and_leaves_files_to_bash(home, tmp_path):
    (tmp_path / "base.safetensors").touch()
    installed = home("bash", "--norc", "-c", "monosoup --install-completion && true")
    assert installed.returncode == 0, installed.stderr
    done = home("bash", "--norc", "-c", ASK)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["edit", "--on-mismatch", "error keep overlap", ""]


def test_completion_loads_no_torch(home):
    asked = {"COMP_WORDS": "monosoup\nedit\n--on-", "COMP_CWORD": "2", "_MONOSOUP_COMPLETE": "complete_bash"}
    done = home("monosoup", PYTHONPROFILEIMPORTTIME="1", **asked)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.stdout.splitlines() == ["--on-mismatch", "--on-nonfinite"]
    assert "monosoup_cli.cli.app" in imported
    assert not imported & {"torch", "safetensors", "huggingface_hub", "numpy"}
