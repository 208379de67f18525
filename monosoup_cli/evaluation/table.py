"""The harnesses whose files are read, and the one way to read what the user names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from monosoup_cli.errors import CheckpointError, crop, some
from monosoup_cli.evaluation.clip_benchmark import ClipBenchmark
from monosoup_cli.evaluation.lm_eval import LmEval
from monosoup_cli.evaluation.place import Place, named
from monosoup_cli.evaluation.plain import Plain
from monosoup_cli.evaluation.task import NAMED, Choice, Harness, Task

__all__ = ["HARNESSES", "read_tasks"]

LM_EVAL = LmEval()
HARNESSES: Sequence[Harness] = (LM_EVAL, ClipBenchmark(), Plain())
MAX_FILES = 10_000


def read_tasks(source: str, choice: Choice) -> tuple[dict[str, Task], Iterable[str]]:
    """Read every task that a harness left in a file or a folder.

    Returns:
        The tasks by name, and the files that links took from elsewhere.

    Raises:
        CheckpointError: There is nothing that a known harness left, it is not as the harness leaves it, or
            a task is there twice.
    """
    try:
        place = named(source)
    except FileNotFoundError:
        raise CheckpointError("no such file or folder", path=source) from None
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise CheckpointError(f"cannot be read: {why}", path=source) from None
    if place.is_folder():
        found = LM_EVAL.read_folder(place, choice) or list(_read_all(place, choice))
    else:
        found = _read(place, choice)
    if not found:
        expected = "; ".join(harness.files for harness in HARNESSES)
        folders = [crop(repr(one.name), 80) for one in place.folders()] if place.is_folder() else []
        raise CheckpointError(
            "has no scores of a known harness",
            path=source,
            expected=expected,
            found=f"the folders {some(folders, NAMED)}" if folders else None,
        )
    tasks: dict[str, Task] = {}
    for task in found:
        if task.name in tasks:
            raise CheckpointError(
                f"the task {crop(repr(task.name), 80)} is there twice",
                path=source,
                found=f"{tasks[task.name].path} and {task.path}",
            )
        tasks[task.name] = task
    return tasks, place.linked()


def _read_all(folder: Place, choice: Choice) -> Iterator[Task]:
    """What harnesses read in the files of a folder."""
    inside = [one for one in folder.inside() if not one.name.startswith(".") and _harnesses(one)]
    if len(inside) > MAX_FILES:
        raise CheckpointError(f"has more than {MAX_FILES:,} files", path=folder.shown)
    for one in inside:
        if not one.is_folder():
            yield from _read(one, choice)


def _read(file: Place, choice: Choice) -> list[Task]:
    """What the first harness that knows a file reads in it."""
    for harness in _harnesses(file):
        found = harness.read(file, choice)
        if found is not None:
            return found
    return []


def _harnesses(file: Place) -> list[Harness]:
    """The harnesses whose files end as this one does."""
    return [harness for harness in HARNESSES if file.path.suffix.lower() in harness.suffixes]
