"""The errors that monosoup raises.

    MonosoupError
    ├── UsageError        contradictory or invalid arguments (exit code 2)
    ├── CheckpointError   a file that cannot be read, or is malformed
    │   └── AccessError   the Hub needs another token, or a new one
    ├── MismatchError     inputs that do not match each other
    ├── NonfiniteError    NaN or Inf in an input
    │   └── ResultOverflowError   a result of finite inputs that does not fit its dtype
    ├── OutputError       OUT cannot be written, or must not be
    │   ├── OutputExistsError     OUT already exists
    │   └── ResumeError           an interrupted run that cannot be resumed with these arguments
    ├── ScoreError        the user's score command failed, or did not print a number
    ├── ReportError       a file that is not a report, or of an unknown version
    └── ResourceError     not enough memory or disk space, found before the work starts

Any other exception is a bug. This module only imports the standard library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AccessError",
    "CheckpointError",
    "Keyword",
    "MismatchError",
    "MonosoupError",
    "NonfiniteError",
    "OutputError",
    "OutputExistsError",
    "ReportError",
    "ResourceError",
    "ResultOverflowError",
    "ResumeError",
    "ScoreError",
    "UsageError",
    "crop",
    "has_marks",
    "mapped",
    "masked",
    "mismatch_in",
    "some",
    "without_tokens",
]


MAX_CROPPED = 300


def crop(text: str, limit: int = MAX_CROPPED) -> str:
    """Cut out the middle of a text that is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"


ON_WINDOWS = (
    "monosoup runs on Linux and macOS, and on Windows in the Windows Subsystem for Linux (wsl --install)"
)


def some(words: Sequence[str], limit: int, joint: str = " and ") -> str:
    """The first of some words, and how many more there are; a single one more takes no more room."""
    if len(words) <= limit + 1:
        return ", ".join(words)
    return f"{', '.join(words[:limit])}{joint}{len(words) - limit:,} more"


TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[\w.~-]{20,})")
FLAG = re.compile(r"(?<![\w-])(?:--[a-z][a-z-]*|-o)(?![\w-])")
OF_A_FLAG = re.compile(
    rf"`[a-z][^`]*`|(?P<flag>{FLAG.pattern})"
    r"(?: (?P<value>'[^']*'|(?!--)[^\s;,(]*[^\s;,(.:)])(?P<ends>(?=$|[;,)]))?)?"
)
"""A flag, the word after it, and whether a clause ends there. What backticks have is for the shell."""
BARE = re.compile(r"[A-Z]+|\d[\d.]*|'.*'|True")
"""A value that Python has without quotes, or that has its own."""
VALUE = re.compile(r"'.*'|\d.*|[A-Z]+|.*[=*/].*")
"""A word that is a value wherever it stands, such as a quoted one, a number or a placeholder."""
SECRET_IN_URL = re.compile(r"(?<=://)[^\s/:@]*:[^\s/@]*@|(?<=https://)[^\s/@]+@|(?<=http://)[^\s/@]+@")
SECRET_IN_QUERY = re.compile(
    r"(?i)(?<=[?&])(?=[\w-]*(?:token|signature|secret|password|key))(?=([\w-]+)=)\1=[^\s&#'\"`,;|<>()\\]+"
)
"""The two facts are looked for apart, so that a long name takes no longer than its length."""


@dataclass(frozen=True)
class Keyword:
    """What an option of the shell is called elsewhere.

    Attributes:
        name: Its name there.
        is_switch: Whether the shell gives it no value.
        choices: The words that it takes.
        is_in_yaml: Whether it is a key of a recipe, and not a keyword of Python.
    """

    name: str
    is_switch: bool = False
    choices: Collection[str] = ()
    is_in_yaml: bool = False

    def set_to(self, value: str) -> str:
        """Say that it has a value."""
        if self.is_in_yaml:
            return f"{self.name}: {value}"
        return f"{self.name}={value if BARE.fullmatch(value) else repr(value)}"


def with_names(text: str, names: Mapping[str, Keyword], *, is_advice: bool = False) -> str:
    """A text with other names for options of the shell. Advice says what to set them to."""

    def renamed(found: re.Match[str]) -> str:
        keyword, value = names.get(found["flag"] or ""), found["value"]
        if keyword is None:
            return found[0]
        rest = "" if value is None else f" {value}"
        if not is_advice:
            return f"{keyword.name}{rest}"
        if keyword.is_switch:
            return f"{keyword.set_to('true' if keyword.is_in_yaml else 'True')}{rest}"
        is_value = found["ends"] is not None or value in keyword.choices or VALUE.fullmatch(value or "")
        return keyword.set_to(value) if value and is_value else f"{keyword.name}{rest}"

    return OF_A_FLAG.sub(renamed, text)


def has_marks(text: str) -> bool:
    """Whether a text may have something for `without_tokens`: far quicker than its patterns."""
    return "hf_" in text or "api_org_" in text or "://" in text


def without_tokens(text: str) -> str:
    """Replace what looks like a token of the Hub by `hf_…`, and a secret in an address by `…`."""
    if has_marks(text):
        text = TOKEN.sub("hf_…", text)
        text = SECRET_IN_QUERY.sub(r"\1=…", SECRET_IN_URL.sub("…@", text))
    return text


def masked(value: Any) -> Any:
    """A JSON value whose texts have no tokens. In the text of the JSON, escapes would hide some."""
    return mapped(value, without_tokens)


def mapped(value: Any, change: Callable[[str], str], untouched: Container[str] = ()) -> Any:
    """A JSON value with every text and every name changed, but for the values under `untouched` names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [mapped(one, change, untouched) for one in value]
    if isinstance(value, dict):
        return {
            change(name): one if name in untouched else mapped(one, change, untouched)
            for name, one in value.items()
        }
    return value


class MonosoupError(Exception):
    """An error that the user can act on.

    `str()` is one line: ``PATH: tensor 'NAME': problem: expected E, found F; hint``. It names options as the
    user typed them: flags in the shell, keywords in Python. It has no tokens, since tracebacks are passed on.

    Attributes:
        problem: What is wrong.
        path: The file or folder; None if there is none.
        tensor: The name of the tensor.
        expected: What was expected.
        found: What was found instead.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = None if path is None else os.fspath(path)
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        where = [] if self.path is None else [self.path]
        if self.tensor is not None:
            where.append(f"tensor {crop(repr(self.tensor))}")
        line = ": ".join([*where, self.problem])
        facts = [
            f"{word} {fact if str(fact) else 'nothing'}"
            for word, fact in (("expected", self.expected), ("found", self.found))
            if fact is not None
        ]
        if facts:
            line += f": {', '.join(facts)}"
        return without_tokens(line if self.hint is None else f"{line}; {self.hint}")

    def to_json(self) -> dict[str, str | None]:
        """The fields, with facts as text."""
        expected, found = (None if fact is None else str(fact) for fact in (self.expected, self.found))
        return {
            "problem": self.problem,
            "path": self.path,
            "tensor": self.tensor,
            "expected": expected,
            "found": found,
            "hint": self.hint,
        }

    def rename_options(self, names: Mapping[str, Keyword]) -> None:
        """Name options in another way.

        Args:
            names: The keywords for flags, such as "on_nonfinite" for "--on-nonfinite".
        """
        self.problem = with_names(self.problem, names)
        self.hint = None if self.hint is None else with_names(self.hint, names, is_advice=True)


class UsageError(MonosoupError):
    """The arguments contradict each other or are invalid."""

    exit_code = 2


class CheckpointError(MonosoupError):
    """A checkpoint cannot be read, or is malformed.

    Where the system refused to read it, `__cause__` is its OSError: the next run may be luckier."""


class AccessError(CheckpointError):
    """The Hub does not let this token read or write. `hint` says how to get one that may."""


class MismatchError(MonosoupError):
    """The names, shapes or dtypes of checkpoints do not match."""


@contextmanager
def mismatch_in(path: str) -> Iterator[None]:
    """Set the path of a MismatchError that is raised inside the `with` block."""
    try:
        yield
    except MismatchError as error:
        error.path = path
        raise


class NonfiniteError(MonosoupError):
    """An input or a result contains NaN or Inf."""


class ResultOverflowError(NonfiniteError):
    """The inputs are finite, but a result does not fit float64 or the output's dtype."""


class OutputError(MonosoupError):
    """The output cannot be written, or must not be: it exists, is an input, or is in use."""


class OutputExistsError(OutputError):
    """The output already exists, or is complete and cannot be resumed."""


class ResumeError(OutputError):
    """An interrupted run cannot be resumed with these inputs or options, or on this machine."""


class ScoreError(MonosoupError):
    """The user's score command failed, or did not print a number.

    Args:
        problem: What went wrong.
        command: The command.
        stderr: What it printed to stderr.
        has_work: Whether earlier scores, or finished tensors, are kept for a resumed run.
        path: The file that it must not change, but has.
        hint: What to do next, where that is not to mend the command.
    """

    def __init__(
        self,
        problem: str,
        command: str,
        stderr: str = "",
        *,
        has_work: bool = False,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        again = "fix what it runs, then rerun with --resume: what is finished is kept"
        then = again if has_work else "fix it, then run monosoup again"
        super().__init__(f"{problem}: {crop(command)}", path=path, hint=hint or then)
        self.stderr = stderr

    def rename_options(self, names: Mapping[str, Keyword]) -> None:
        """Name options in the hint in another way; those in the problem are the command's own."""
        problem = self.problem
        super().rename_options(names)
        self.problem = problem


class ReportError(MonosoupError):
    """A file is not a report of monosoup, or has an unknown version."""


class ResourceError(MonosoupError):
    """There is not enough memory or disk space for the run. Raised before any work is done."""
