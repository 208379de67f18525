"""The form in which a report is published: without local folders and the values of private options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from monosoup_cli.errors import ReportError, mapped
from monosoup_cli.options import DeclaredOption
from monosoup_cli.report.files import REPORT_NAME, as_text, read_report

__all__ = ["HIDDEN", "published", "published_reports"]

HIDDEN = "…"
"""Stands for the value of a private option, here as in model cards."""
NOT_IN_PATHS = r"/:;,'\"`()\n"
FOLDER = rf"/[^\s{NOT_IN_PATHS}](?:[^{NOT_IN_PATHS}]*[^\s{NOT_IN_PATHS}])?(?=/)"
OUTSIDE = re.compile(rf"(?<![^\s'\"`(,])(?:~|\.\.(?:/\.\.)*)?(?:{FOLDER})*/[^\s/:;,'\"`)]+/?")
"""A path that is absolute or leads out of a folder, alone or in a sentence. Its folders may have spaces."""
WITH_PATHS = {"arguments", "inputs", "output", "outputs", "selection", "search", "notes", "doubts"}
"""The parts of a report that name places outside of the output."""
WITH_NAMES = {"files", "other_files", "side_files", "left_out", "summary"}
"""The parts of those that do not."""


def published_reports(
    folder: Path, own: Path | None, declared: Mapping[str, DeclaredOption]
) -> dict[str, bytes]:
    """The published form of every report in an output, by its path inside.

    Args:
        folder: The output.
        own: Where the report of the run is, inside or not.
        declared: The options of the command.
    """
    places = {*folder.rglob(REPORT_NAME), *([own] if own is not None and own.parent == folder else [])}
    reports = {}
    for place in sorted(places):
        try:
            report = published(read_report(place), declared)
        except ReportError:  # a side file of that name
            continue
        reports[place.relative_to(folder).as_posix()] = as_text(report).encode()
    return reports


def published(report: Mapping[str, Any], declared: Mapping[str, DeclaredOption]) -> dict[str, Any]:
    """A report in which a local path is its last component, and private options have no values.

    Paths with the same last component get numbers, because a report tells checkpoints apart by them.
    """
    named = _names(report)
    known = "|".join(re.escape(path) for path in sorted(named, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w./~-])(?:{known})(?![\w-])")

    def without_folders(text: str) -> str:
        if text in named:
            return named[text]
        text = pattern.sub(lambda found: named[found[0]], text)
        return OUTSIDE.sub(lambda found: PurePath(found[0]).name, text)

    arguments = {
        name: HIDDEN if _is_secret(value, declared.get(name)) else value
        for name, value in report["arguments"].items()
    }
    parts = {**report, "arguments": arguments}
    for name in WITH_PATHS & parts.keys():
        parts[name] = mapped(parts[name], without_folders, WITH_NAMES)
    return parts


def _is_secret(value: Any, declared: DeclaredOption | None) -> bool:
    """Whether an argument has texts that may have secrets. Scores by checkpoint have none."""
    is_text = bool(value) and isinstance(value, (str, list))
    return declared is not None and declared.option.is_private and is_text


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """What every local path of a report is called."""
    arguments = report["arguments"]
    paths = [one["source"] for one in report["inputs"] if one.get("revision") is None]
    paths += [str(arguments[name]) for name in ("output", "report") if arguments.get(name) is not None]
    named: dict[str, str] = {}
    taken = Counter[str]()
    for path in sorted(dict.fromkeys(paths), key=lambda path: "/" in path):  # a bare name stays as it is
        name = PurePath(path).name or HIDDEN
        taken[name] += 1
        named[path] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return named
