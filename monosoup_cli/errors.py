"""Every error that monosoup raises on purpose.

    MonosoupError
    ├── UsageError        the command or the call contradicts itself (exit code 2)
    ├── CheckpointError   a file that cannot be read, or not be trusted
    │   └── AccessError   the Hub asks for another token, or for a new one
    ├── MismatchError     inputs that do not belong together
    ├── NonfiniteError    NaN or Inf in an input
    │   └── ResultOverflowError   a result that does not fit its dtype, of finite inputs
    ├── OutputError       OUT cannot be written, or must not be
    │   ├── OutputExistsError     OUT is there already
    │   └── ResumeError           an interrupted run that these arguments do not continue
    ├── ScoreError        the user's score command failed, or printed no number
    ├── ReportError       a file that is no report, or one of a version that is not known
    └── ResourceError     not enough memory or disk, known before the work starts

Anything else that escapes is a bug. This module needs the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AccessError",
    "CheckpointError",
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
    "cropped",
    "mismatch_in",
    "without_tokens",
]


MAX_CROPPED = 300


def cropped(text: str, limit: int = MAX_CROPPED) -> str:
    """`text`, its middle cut out where it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"


TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[\w.~-]{20,})")
SECRET_IN_URL = re.compile(r"(?<=://)[^\s/:@]*:[^\s/@]*@")


def without_tokens(text: str) -> str:
    """`text` with `hf_…` in place of what looks like a token of the Hub, or a password in an address."""
    return SECRET_IN_URL.sub("hf_…@", TOKEN.sub("hf_…", text))


class MonosoupError(Exception):
    """A refusal or a failure that the user can act on.

    The facts are fields; `str()` puts them into one line:
    ``FILE: tensor 'NAME': problem: expected E, found F; hint``.
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
            where.append(f"tensor {cropped(repr(self.tensor))}")
        line = ": ".join([*where, self.problem])
        facts = [
            f"{word} {fact}"
            for word, fact in (("expected", self.expected), ("found", self.found))
            if fact is not None
        ]
        if facts:
            line += f": {', '.join(facts)}"
        return line if self.hint is None else f"{line}; {self.hint}"


class UsageError(MonosoupError):
    """The arguments contradict each other or are out of range."""

    exit_code = 2


class CheckpointError(MonosoupError):
    """A checkpoint that cannot be read, or whose headers cannot be trusted."""


class AccessError(CheckpointError):
    """The Hub does not let this token read or write; `hint` says how to get one that may."""


class MismatchError(MonosoupError):
    """Checkpoints that do not belong together: names, shapes or dtypes disagree."""


@contextmanager
def mismatch_in(path: str) -> Iterator[None]:
    """Have a MismatchError that is raised inside name this file."""
    try:
        yield
    except MismatchError as error:
        error.path = path
        raise


class NonfiniteError(MonosoupError):
    """NaN or Inf, in an input or after the cast to the output's dtype."""


class ResultOverflowError(NonfiniteError):
    """The inputs are finite, and a result is not: it does not fit float64, or the output's dtype."""


class OutputError(MonosoupError):
    """OUT cannot be written, or must not be: it exists, is an input, or is in use."""


class OutputExistsError(OutputError):
    """OUT exists and is not to be replaced, or there is nothing left to resume."""


class ResumeError(OutputError):
    """An interrupted run that these inputs, options or this machine do not continue."""


class ScoreError(MonosoupError):
    """The user's score command failed, or printed no number; `stderr` is what it printed there.

    `has_scores` is True where earlier scores are kept for a resumed run.
    """

    def __init__(self, problem: str, command: str, stderr: str, *, has_scores: bool = False) -> None:
        again = "fix it, then rerun with --resume: earlier scores are kept"
        super().__init__(
            f"{problem}: {cropped(command)}", hint=again if has_scores else "fix it, then run it again"
        )
        self.stderr = stderr


class ReportError(MonosoupError):
    """A file that is no report of monosoup's, or of a version that is not known."""


class ResourceError(MonosoupError):
    """Not enough memory or disk for the run; found before any work is done."""
