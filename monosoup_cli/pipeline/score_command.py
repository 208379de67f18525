"""Scores of checkpoints: from a file, or from a command that the user names, whose scores are journalled."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monosoup_cli.errors import ScoreError, UsageError, crop
from monosoup_cli.formats.files import read_json
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.options import StrPath
from monosoup_cli.outputs.open_files import as_time, facts, to_set_time
from monosoup_cli.outputs.side_files import side_files
from monosoup_cli.outputs.writer import PartialOutput
from monosoup_cli.sources.folders import CACHED
from monosoup_cli.sources.source import Source

__all__ = ["Scored", "noted_score", "run_score_command", "scores_of"]


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


@dataclass(frozen=True)
class Scored:
    """A checkpoint that is scored, and what no command may change.

    Attributes:
        path: The checkpoint.
        own: The files that the run has written.
        inputs: The inputs of the run.
    """

    path: Path
    own: Sequence[Path]
    inputs: Sequence[Source]

    def score(self, template: str, *, has_work: bool = False) -> float:
        """The score by a command.

        Raises:
            ScoreError: The command failed, printed no finite number, or changed a file.
        """
        inputs = {one.path: one for source in self.inputs for one in _inputs(source)}
        before = {path: _facts(path) for path in (*self.own, *inputs)}
        score = run_score_command(template, self.path, has_work=has_work)
        for path, known in before.items():
            if _facts(path) != known and path in inputs:
                raise ScoreError(
                    "the score command changed this input",
                    template,
                    path=inputs[path].shown,
                    hint=_way_back(inputs[path]),
                )
            if _facts(path) != known:
                raise ScoreError(
                    "the score command changed this file",
                    template,
                    path=path,
                    hint="have it work on a copy, then rerun with --resume",
                )
        return score


class _Input(NamedTuple):
    """A file of an input on the disk: what messages call it, and what a resumed run recognises it by."""

    path: Path
    shown: str
    version: Mapping[str, Any]


def _inputs(source: Source) -> Iterator[_Input]:
    for shard in source.files.shards:
        for stored in stored_files(shard).values():
            if stored.path is not None:
                yield _Input(stored.path, stored.shown, stored.version)
    for file in side_files(source.files).carried:
        yield _Input(file.path, file.shown, file.version)


def _way_back(file: _Input) -> str:
    """What to do where a command has changed an input: a resumed run knows the file by its time."""
    if "mtime_ns" not in file.version:
        cached = next(str(above) for above in file.path.parents if above.name.startswith(CACHED))
        return f"remove {shlex.quote(cached)}, have the command work on a copy, then rerun with --resume"
    command = to_set_time(as_time(file.version["mtime_ns"]), file.shown)
    return (
        f"put it back with its old time (`{command}`), have the command work on a copy, rerun with --resume"
    )


def _facts(path: Path) -> tuple[int, ...] | None:
    """What a file is recognised by; None where it is gone."""
    try:
        return facts(path.stat())
    except OSError:
        return None


def noted_score(name: str, template: str, scored: Callable[[], Scored], partial: PartialOutput) -> float:
    """The score that the journal has under a name; otherwise that of the command, which is then noted.

    Args:
        name: What is scored.
        template: The command.
        scored: Makes the checkpoint, or finds it.
        partial: The output with the journal.
    """
    if name not in partial.notes:
        checkpoint = scored()
        partial.workplace.open_files.prove()
        has_work = bool(partial.notes or partial.finished)
        started = time.monotonic()
        score = checkpoint.score(template, has_work=has_work)
        partial.spent.score_seconds += time.monotonic() - started
        partial.note(name, score)
    return float(partial.notes[name])


def run_score_command(template: str, path: StrPath, *, has_work: bool = False) -> float:
    """Run a score command through the shell; the last line that it prints is the score.

    When this is interrupted, the command and its children are killed.

    Args:
        template: The command; `{}` is replaced by an absolute path, since commands change folders.
        path: The checkpoint.
        has_work: Whether something is kept for a resumed run; for the message of an error.

    Raises:
        ScoreError: The command failed, or printed no finite number.
    """
    # messages are passed on, and say no more of this machine than the user has typed
    shown = template.replace("{}", str(path))
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        _filled(template, Path(path).absolute()) as command,
    ):
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
        raise ScoreError(f"the score command failed with {how}", shown, errors, has_work=has_work)
    lines = printed.strip().splitlines()
    try:
        score = float(lines[-1])
    except (IndexError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        last = repr(lines[-1]) if lines else "nothing"
        raise ScoreError(
            f"the score command printed no number: found {last}", shown, errors, has_work=has_work
        )
    return score


WORD = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|\{\}""", re.DOTALL)
"""What the shell reads as a whole: an escaped character, quotes with what is in them; and {}."""
SUBSTITUTION = re.compile(r"`|\$\(")
PLAIN = ("{}", "'{}", '"{}')


@contextmanager
def _filled(template: str, path: Path) -> Iterator[str]:
    """Replace {} by a path, quoted where it needs to be: the user need not quote it, and may.

    In quotes that begin with something else there may be another command, as of `sh -c`. There a link, which
    is right in any quotes, stands for the path.
    """
    quoted = shlex.quote(str(path))
    if quoted == str(path):
        yield template.replace("{}", quoted)
        return
    words = [word for word in WORD.findall(template) if "{}" in word]
    if all(word.startswith(PLAIN) for word in words) and not SUBSTITUTION.search(template):
        yield WORD.sub(lambda found: _in_its_quotes(found[0], quoted), template)
        return
    with tempfile.TemporaryDirectory(prefix="monosoup-") as folder:
        if shlex.quote(folder) != folder:
            raise UsageError("TMPDIR has a character that the shell reads in its own way", found=folder)
        link = Path(folder, f"checkpoint{path.suffix if path.is_file() else ''}")
        link.symlink_to(path)
        yield template.replace("{}", str(link))


def _in_its_quotes(word: str, quoted: str) -> str:
    """Quotes of the user end before the path, and begin again after it."""
    return word.replace("{}", quoted if word == "{}" else f"{word[0]}{quoted}{word[0]}")


MAX_OUTPUT_BYTES = 1 << 20


def _text(stream: Any) -> str:
    """The last part of a file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - MAX_OUTPUT_BYTES, 0))
    return str(stream.read().decode(errors="replace"))
