"""The table of hints: a row has the words of a hint, and a function that follows it to its end.

A row provokes the error (`refused`) or the note (`noted`) with real inputs and the real command line, does
what the printed words say, and shows that the end is reached: the command runs, and what it writes loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from typer.main import get_command

from monosoup_cli.cli.app import app
from monosoup_cli.errors import FLAG
from tests.conftest import Pair, Result, Run
from tests.hints.sites import Site

Follow = Callable[["Trial"], None]


class Row(NamedTuple):
    file: str
    words: str
    follow: Follow
    marks: tuple[pytest.MarkDecorator, ...]


ROWS: list[Row] = []
"""Every row has words that are found in one hint of its file alone."""


def follows(
    file: str, *words: str, marks: tuple[pytest.MarkDecorator, ...] = ()
) -> Callable[[Follow], Follow]:
    """Put a function into the table, once for each of the hints."""

    def register(follow: Follow) -> Follow:
        ROWS.extend(Row(file, each, follow, marks) for each in words)
        return follow

    return register


OTHERS = re.compile(
    r"`[^`]*`|mlx_lm\.convert .*|python -m .*|(its|a|the) command (of the others )?with --(resume|part [^;]*)"
)
"""What hints say of other programs, and of a command that is run again."""


@cache
def options_of(command: str) -> set[str]:
    """The options of a command of the shell."""
    commands: Any = get_command(app)
    return {option for each in commands.commands[command].params for option in each.opts}


def _as_in_a_recipe(text: str) -> str:
    """A message with the names that a recipe has for options."""
    return FLAG.sub(lambda flag: flag[0].removeprefix("--").replace("-", "_"), text)


class Trial:
    """What a row has at hand: a small pair, a place for the output, the command line, and the printed hint.

    Attributes:
        hint: The hint as it was printed.
        blanks: What was printed where the words are only known when the program runs.
    """

    def __init__(
        self, site: Site, pair: Pair, run: Run, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        self.site, self.run, self.tmp, self.request = site, run, tmp_path, request
        self.base, self.finetuned, self.out = *pair, tmp_path / "out"
        self.edit = ("edit", self.base, self.finetuned, "-o", self.out)
        self.hint, self.blanks, self.is_ended = "", list[str](), False

    def refused(self, *argv: object) -> Result:
        """Run a command that fails and prints the hint."""
        result = self.run(*argv)
        assert result.code != 0, result
        return self.look(result, str(argv[0]))

    def noted(self, *argv: object) -> Result:
        """Run a command that works and prints the hint."""
        result = self.run(*argv)
        assert result.code == 0, result
        return self.look(result, str(argv[0]))

    def look(self, result: Result, command: str | None = None) -> Result:
        """Find the hint in what was printed. It names no option that the command does not have."""
        problems = [part for part in re.split("…+", self.site.problem) if part]
        found = self.site.find(result.err + result.out)
        assert found is not None, result
        said = result.err + result.out
        problems = [_as_in_a_recipe(part) for part in problems] if command == "run" else problems
        assert all(part in said for part in problems), result
        self.hint, self.blanks = found
        if command is not None:
            named = FLAG.findall(OTHERS.sub("", self.hint))
            assert {*named} <= options_of(command), f"{command} does not have all of {named}"
        return result

    def options(self, number: int = 0) -> list[str]:
        """An option that the hint names, with its value if it has one."""
        options = re.findall(
            r"(?<![\w-])(--[a-z-]+)(?: ((?:keep|cpu|cuda)\b|\d+|[^\s;]+=[^\s;]+))?", self.hint
        )
        return [word for word in options[number] if word]

    def code(self, **names: object) -> None:
        """Run the Python that the hint has."""
        line = re.search(r"torch\.save\(.*\)", self.hint)
        assert line is not None
        exec(line[0], {"torch": torch, **names})

    def works(self, *argv: object) -> Result:
        """Run a command to its end."""
        result = self.run(*argv)
        assert result.code == 0, result
        self.is_ended = True
        return result

    def loads(self, *argv: object, output: Path | None = None) -> Result:
        """Run a command to its end, and load what it wrote."""
        result = self.works(*argv)
        self.ended(output or self.out)
        return result

    def ended(self, output: Path) -> None:
        """Load what was written."""
        files = [output] if output.is_file() else sorted(output.rglob("*.safetensors"))
        assert files
        assert all(load_file(file) for file in files)
        self.is_ended = True
