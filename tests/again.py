"""`pytest --again`: what a test has a command write is written again, as its report says, to the same bytes.

It happens at once, in a folder of its own: what a test changes afterwards plays no part. Left out are
commands that tests run in other processes, and tests marked `once`, which change or count what a run reads.
"""

from __future__ import annotations

import filecmp
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from monosoup_cli.api.again import recorded_step
from monosoup_cli.errors import MonosoupError
from monosoup_cli.pipeline import execute, parts
from monosoup_cli.pipeline.ready import Ready, make_ready
from monosoup_cli.pipeline.repeated import other_environment
from monosoup_cli.report.files import as_text, is_report
from monosoup_cli.sources.library_files import CARD_NAME

__all__ = ["COUNTS", "afterwards", "install", "once"]

COUNTS: Counter[str] = Counter()
"""How many outputs were made again, and why others were not."""
is_on = False
waiting: list[tuple[dict[str, Any], Path]] | None = None


@contextmanager
def once() -> Iterator[None]:
    """What is written inside is not made again."""
    global is_on
    before, is_on = is_on, True
    try:
        yield
    finally:
        is_on = before


@contextmanager
def afterwards() -> Iterator[None]:
    """What is written inside is made again at the end: whoever watches inside sees one run."""
    global waiting
    waiting = found = []
    try:
        yield
    finally:
        waiting = None
    for report, path in found:
        if path.exists():  # what `verify --again` writes is gone
            _run_again(report, path)


def install() -> None:
    """Have every output that is published made again."""
    for module in (execute, parts):
        module.publish = _checked(module.publish)


def _checked(publish: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(publish)
    def checked(
        ready: Ready, partial: object, whole: Mapping[str, Any], reports: list[dict[str, Any]]
    ) -> dict[str, Any]:
        published = publish(ready, partial, whole, reports)
        planned = ready.planned
        if is_on or planned.destination.path != Path(planned.task.order.output):  # again, or a draft
            return published
        report = json.loads(as_text(whole)), planned.destination.path
        if waiting is None:
            _run_again(*report)
        else:
            waiting.append(report)
        return published

    return checked


def _run_again(report: Mapping[str, Any], path: Path) -> None:
    with once(), tempfile.TemporaryDirectory() as folder:
        again = Path(folder, path.name)
        try:
            _, arguments, opened = recorded_step(report, str(again))
            with opened(arguments) as planned:
                made = execute.execute(make_ready(planned))
        except MonosoupError as error:
            COUNTS[f"{report['command']}: {type(error).__name__}: {error.problem}"] += 1
            raise AssertionError(f"the report of {path} does not run again: {error}") from error
        if changed := other_environment(report, made):
            COUNTS[f"elsewhere: {', '.join(changed)}"] += 1
            return
        names = _names(path)
        assert names == _names(again)
        _, different, errors = filecmp.cmpfiles(path.parent, again.parent, [*names], shallow=False)
        assert (different, errors) == ([], []), f"{path}, made again, has other bytes: {different}"
        COUNTS[report["command"]] += 1


def _names(path: Path) -> set[str]:
    """The files of an output, but for its reports and model cards, which have its path and the time."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    same = [one for one in files if one.name != CARD_NAME and not is_report(one)]
    return {str(one.relative_to(path.parent)) for one in same}
