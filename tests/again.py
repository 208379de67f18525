"""`pytest --again`: what a test has a command write is written again, as its report says, to the same bytes.

It happens at once, in a folder of its own: what a test changes afterwards plays no part. Commands that tests
run in other processes are left out.
"""

from __future__ import annotations

import filecmp
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from monosoup_cli.api.again import other_environment, recorded_step
from monosoup_cli.errors import MonosoupError
from monosoup_cli.pipeline import execute, parts
from monosoup_cli.pipeline.ready import Ready, make_ready
from monosoup_cli.report.files import REPORT_NAME, as_text
from monosoup_cli.sources.library_files import CARD_NAME

__all__ = ["COUNTS", "install"]

COUNTS: Counter[str] = Counter()
"""How many outputs were made again, and why others were not."""
is_on = False


def install() -> None:
    """Have every output that is published made again."""
    for module in (execute, parts):
        module.publish = _checked(module.publish)


def _checked(publish: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(publish)
    def checked(
        ready: Ready, partial: object, whole: Mapping[str, Any], reports: list[dict[str, Any]]
    ) -> dict[str, Any]:
        global is_on
        published = publish(ready, partial, whole, reports)
        planned = ready.planned
        if is_on or planned.destination.path != Path(planned.task.order.output):  # again, or a draft
            return published
        is_on = True
        try:
            _run_again(json.loads(as_text(whole)), planned.destination.path)
        finally:
            is_on = False
        return published

    return checked


def _run_again(report: Mapping[str, Any], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
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
    return {str(one.relative_to(path.parent)) for one in files if one.name not in (REPORT_NAME, CARD_NAME)}
