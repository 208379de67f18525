"""The harnesses whose files are read, and the one way to read what the user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.evaluation.clip_benchmark import ClipBenchmark
from monosoup_cli.evaluation.lm_eval import LmEval
from monosoup_cli.evaluation.plain import Plain
from monosoup_cli.evaluation.task import Choice, Harness, Task

__all__ = ["HARNESSES", "read_tasks"]

HARNESSES: Sequence[Harness] = (LmEval(), ClipBenchmark(), Plain())
MAX_FILES = 10_000


def read_tasks(source: str, choice: Choice) -> dict[str, Task]:
    """Read every task that a harness left in a file or a folder.

    Raises:
        CheckpointError: There is nothing that a known harness left, it is not as the harness leaves it, or
            a task is there twice.
    """
    try:
        path = Path(source).resolve(strict=True)
        found = _read(path, source, choice)
        if found is None and path.is_dir():
            names = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
            if len(names) > MAX_FILES:
                raise CheckpointError(f"has more than {MAX_FILES:,} files", path=source)
            files = [name for name in names if not (path / name).is_dir()]
            read = [_read(path / name, f"{source.rstrip('/')}/{name}", choice) for name in files]
            found = [task for tasks in read for task in tasks or ()]
    except FileNotFoundError:
        raise CheckpointError("no such file or folder", path=source) from None
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise CheckpointError(f"cannot be read: {why}", path=source) from None
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
    return tasks


def _read(path: Path, shown: str, choice: Choice) -> list[Task] | None:
    """What the first harness that knows the file or folder reads in it."""
    for harness in HARNESSES:
        found = harness.read(path, shown, choice)
        if found is not None:
            return found
    return None
