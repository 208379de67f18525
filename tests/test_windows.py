"""Windows, which lacks `fcntl` and signals that monosoup needs: one clear sentence, from either way in."""

import subprocess
import sys

import pytest

SYSTEM = """
import os, sys
os.name = "nt"
sys.modules["fcntl"] = sys.modules["resource"] = None  # an import of them fails
"""
SENTENCE = "on Windows in the Windows Subsystem for Linux (wsl --install)"


def test_the_command_says_where_it_runs():
    code = SYSTEM + "import monosoup_cli.__main__"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: ")
    assert SENTENCE in result.stderr


@pytest.mark.parametrize("words", ["monosoup_cli.edit", "from monosoup_cli import edit", "dir(monosoup_cli)"])
def test_the_functions_do_too(words):
    code = f"{SYSTEM}\nimport monosoup_cli\nprint(monosoup_cli.__version__)\n{words}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout
    assert "ImportError" in result.stderr.splitlines()[-1]
    assert SENTENCE in result.stderr
