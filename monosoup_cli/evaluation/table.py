"""The harnesses whose files are read, and the one way to read what the user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.evaluation.clip_benchmark import ClipBenchmark
from monosoup_cli.evaluation.lm_eval import LmEval
from monosoup_cli.evaluation.place import Place, named
from monosoup_cli.evaluation.plain import Plain
from monosoup_cli.evaluation.task import Choice, Harness, Task

__all__ = ["HARNESSES", "read_tasks"]

HARNESSES: Sequence[Harness] = (LmEval(), ClipBenchmark(), Plain())
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
    found = _read(place, choice)
    if found is None and place.is_folder():
        inside = [one for one in place.inside() if not one.name.startswith(".")]
        if len(inside) > MAX_FILES:
            raise CheckpointError(f"has more than {MAX_FILES:,} files", path=source)
        read = [_read(one, choice) for one in inside if not one.is_folder()]
        found = [task for tasks in read for task in tasks or ()]
    if not found:
        expected = "; ".join(harness.files for harness in HARNESSES)
        raise CheckpointError("has no scores of a known harness", path=source, expected=expected)
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


def _read(place: Place, choice: Choice) -> list[Task] | None:
    """What the first harness that knows the file or folder reads in it."""
    for harness in HARNESSES:
        found = harness.read(place, choice)
        if found is not None:
            return found
    return None
