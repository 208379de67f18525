"""The scores of one task, and the protocol of what reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

from monosoup_cli.errors import CheckpointError, UsageError, crop, some
from monosoup_cli.evaluation.place import Place
from monosoup_cli.evaluation.values import plain
from monosoup_cli.formats.files import blocks_of

__all__ = ["Choice", "Dataset", "Harness", "Samples", "Task", "lines_of"]

MAX_BYTES = 4_000_000_000
"""The largest file of samples that is read."""
MAX_LINE_BYTES = 16_000_000
MAX_SAMPLES = 1_000_000
"""The most samples of a task; all of ImageNet's validation set has 50,000."""
NAMED = 4


@dataclass(frozen=True)
class Dataset:
    """A dataset as a harness names it: by its id on the Hub or otherwise, and its part."""

    id: str
    part: str


@dataclass(frozen=True)
class Task:
    """The scores of a model on one task.

    Attributes:
        name: The name of the task.
        metric: The name of the metric.
        higher_is_better: Whether higher values are better.
        value: The value of the metric over all samples.
        path: Where it was read: the file of its samples, if there is one.
        scores: The score of each sample, by id; None if there are none whose mean is `value`.
        why_no_scores: Why there are none.
        contents: The hash of each sample's document, by id, where the harness left it.
        groups: The groups of the harness that the task is in.
        harness: What evaluated it.
        dataset: The dataset that it was evaluated on, if the harness left it.
        is_named_by_file: Whether it has its name from the file alone.
    """

    name: str
    metric: str
    higher_is_better: bool
    value: float
    path: str
    scores: Mapping[str, float] | None = None
    why_no_scores: str = ""
    contents: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[str] = ()
    harness: str = ""
    dataset: Dataset | None = None
    is_named_by_file: bool = False


class Choice:
    """Which metric is read of each task.

    Args:
        words: `METRIC` for every task that has it, or `TASK=METRIC` for tasks whose names match.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        pairs = [word.rpartition("=") for word in words]
        self._words = [(task or "*", metric, bool(equals)) for task, equals, metric in pairs]
        self._unused = dict.fromkeys(words)
        self._there: dict[str, None] = {}

    def of(self, task: str, metrics: Sequence[str], path: str) -> str:
        """The metric of a task: the last one asked for that it has, or its first.

        A metric of lm-eval may be asked for without its filter: `acc` is `acc,none`.

        Raises:
            UsageError: It lacks the metric that was asked for by its name.
        """
        self._there |= dict.fromkeys(metrics)
        for pattern, wanted, is_for_task in reversed(self._words):
            if not fnmatchcase(task, pattern):
                continue
            found = [one for one in metrics if wanted in (one, one.partition(",")[0])]
            if found:
                self._unused.pop(f"{pattern}={wanted}" if is_for_task else wanted, None)
                return found[0]
            if is_for_task:
                raise UsageError(
                    f"the task {crop(repr(task), 80)} has no metric {crop(repr(wanted), 80)}",
                    path=path,
                    found=some([crop(one, 80) for one in metrics], NAMED),
                )
        return metrics[0]

    def check_used(self) -> None:
        """Raise UsageError for a metric that no task has."""
        for word in self._unused:
            raise UsageError(
                f"no task has the metric of --metric {crop(word, 80)}",
                found=some([repr(crop(plain(one), 80)) for one in self._there], NAMED),
            )


class Harness(Protocol):
    """What reads the files of one harness.

    Attributes:
        name: What the harness is called.
        files: What its files are, for messages.
        suffixes: How the names of its files end.
    """

    name: str
    files: str
    suffixes: ClassVar[Sequence[str]]

    def read(self, file: Place, choice: Choice) -> list[Task] | None:
        """Read a file with one of these suffixes; None if it is not of this harness.

        Raises:
            CheckpointError: It is of this harness, but not as the harness writes it.
        """
        ...


def lines_of(place: Place) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, without those that are empty.

    Raises:
        CheckpointError: It cannot be read, or is too large.
    """
    file = place.open()
    try:
        if file.nbytes > MAX_BYTES:
            raise CheckpointError("too large to be scores", path=file.shown, found=f"{file.nbytes:,} bytes")
        rest, number = b"", 0
        for block in blocks_of(file):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                number += 1
                if line.strip():
                    yield number, line
            if len(rest) > MAX_LINE_BYTES:
                raise CheckpointError(f"line {number + 1:,} is too long", path=file.shown)
        if rest.strip():
            yield number + 1, rest
    finally:
        file.close()


class Samples:
    """The scores of one task by the ids of its samples, as they are read.

    Args:
        task: The name of the task.
        path: The file, for errors.
    """

    def __init__(self, task: str, path: str) -> None:
        self._task, self._path = task, path
        self._scores: dict[str, float] = {}
        self._again: list[str] = []

    def add(self, name: str, score: float, where: str) -> None:
        """Add the score of a sample.

        Raises:
            CheckpointError: There are too many.
        """
        if len(self._scores) + len(self._again) >= MAX_SAMPLES:
            raise CheckpointError(f"has more than {MAX_SAMPLES:,} samples of a task", path=self._path)
        if name in self._scores:
            self._again.append(f"{crop(repr(name), 40)} ({where})")
        self._scores[name] = score

    def scores(self) -> dict[str, float]:
        """Return the score of each sample.

        Raises:
            CheckpointError: Some ids are there twice.
        """
        if self._again:
            raise CheckpointError(
                f"the task {crop(repr(self._task), 80)} has ids twice",
                path=self._path,
                found=some(self._again, NAMED),
            )
        return self._scores
