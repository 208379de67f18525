"""Scores of checkpoints: from a file, or from a command that the user names, whose scores are journalled."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monosoup_cli.errors import ScoreError, UsageError, crop
from monosoup_cli.formats.files import read_json
from monosoup_cli.options import StrPath
from monosoup_cli.outputs.writer import PartialOutput

__all__ = ["noted_score", "run_score_command", "scores_of"]


def scores_of(scores: StrPath | Mapping[str, float], sources: Sequence[str]) -> dict[str, float]:
    """Find the score of every source.

    Args:
        scores: A mapping from paths to numbers, or the path of a JSON file that has one. A path matches a
            source that is written like it, or that leads to the same place.
        sources: The checkpoints, as the user typed them.

    Raises:
        UsageError: A score is missing or not a finite number.
    """
    where = None if isinstance(scores, Mapping) else os.fspath(scores)
    numbers: Any = scores if isinstance(scores, Mapping) else read_json(Path(str(where)).resolve(), "scores")
    if not isinstance(numbers, Mapping):
        raise UsageError("the scores must be an object that maps paths to numbers", path=where)
    by_place = {os.path.realpath(path): score for path, score in numbers.items() if "\0" not in path}
    return {
        source: _finite(numbers.get(source, by_place.get(os.path.realpath(source))), source, where)
        for source in sources
    }


def _finite(score: Any, source: str, where: str | None) -> float:
    try:
        if isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score):
            return float(score)
    except OverflowError:
        pass
    raise UsageError(
        f"no score for {source}", path=where, expected="a number under that path", found=crop(str(score))
    )


def noted_score(name: str, template: str, path: Callable[[], StrPath], partial: PartialOutput) -> float:
    """The score that the journal has under a name; otherwise that of the command, which is then noted.

    Args:
        name: What is scored.
        template: The command.
        path: Makes the checkpoint, or finds it, and returns its path.
        partial: The output with the journal.
    """
    if name not in partial.notes:
        checkpoint = path()
        partial.workplace.open_files.prove()
        has_work = bool(partial.notes or partial.finished)
        partial.note(name, run_score_command(template, checkpoint, has_work=has_work))
    return float(partial.notes[name])


def run_score_command(template: str, path: StrPath, *, has_work: bool = False) -> float:
    """Run a score command through the shell; the last line that it prints is the score.

    When this is interrupted, the command and its children are killed.

    Args:
        template: The command; `{}` is replaced by the quoted path.
        path: The checkpoint.
        has_work: Whether something is kept for a resumed run; for the message of an error.

    Raises:
        ScoreError: The command failed, or printed no finite number.
    """
    command = template.replace("{}", shlex.quote(os.fspath(path)))
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        printed, errors = (_text(stream) for stream in (stdout, stderr))
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ScoreError(f"the score command failed with {how}", command, errors, has_work=has_work)
    lines = printed.strip().splitlines()
    try:
        score = float(lines[-1])
    except (IndexError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        last = repr(lines[-1]) if lines else "nothing"
        raise ScoreError(
            f"the score command printed no number: found {last}", command, errors, has_work=has_work
        )
    return score


MAX_OUTPUT_BYTES = 1 << 20


def _text(stream: Any) -> str:
    """The last part of a file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - MAX_OUTPUT_BYTES, 0))
    return str(stream.read().decode(errors="replace"))
