"""Whether a run of the command of a report gave what the report has, and why it may not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from monosoup_cli.errors import some
from monosoup_cli.pipeline.verify_inputs import compared_facts, other_facts
from monosoup_cli.report.records import outputs_in
from monosoup_cli.sources.library_files import CARD_NAME, EVAL_RESULTS

__all__ = ["checksums", "other_environment", "other_weights", "why_others"]

ENVIRONMENT = ("python", "torch", "safetensors", "device", "cuda")
NAMED = 4
"""How many names a sentence has."""


def checksums(report: Mapping[str, Any], groups: Sequence[str] = ("files", "other_files")) -> dict[str, Any]:
    """The SHA-256 of every file but model cards and scores, by its name in OUT, as far as it is known."""
    return {
        f"{PurePosixPath(output['path']).name}/{name}" if "outputs" in report else name: file.get("sha256")
        for output in outputs_in(report)
        for group in groups
        for file in output.get(group, ())
        if (name := file["name"]) not in (CARD_NAME, EVAL_RESULTS)
    }


def other_weights(report: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Say if a run of the command of a report wrote other weights than the report has."""
    before, now = (checksums(one, ("files",)) for one in (report, again))
    if [*before.values()] == [*now.values()]:
        return []
    is_file, was_file = (
        str(one["arguments"].get("output")).endswith(".safetensors") for one in (again, report)
    )
    if len(before) != len(now) or is_file != was_file:
        return ["the weights are in other files than those of the report, so they were not compared"]
    others = [name for name, old in zip(now, before.values(), strict=True) if now[name] != old]
    return [
        f"not the bytes of the report: {some(others, NAMED)}; {why_others(report, again, of_weights=True)}"
    ]


def why_others(report: Mapping[str, Any], again: Mapping[str, Any], *, of_weights: bool = False) -> str:
    """Why a run again may have given other bytes, or `of_weights`, as far as the two reports tell."""
    changed = [*other_environment(report, again), *other_facts(report, again, of_weights=of_weights)]
    if changed:
        return f"not as in that run: {some(changed, NAMED)}"
    same = some([*compared_facts(report["inputs"]), "versions", "machine"], 8)
    return f"as in that run: {same}; perhaps the report or the tensors of an input were changed"


def other_environment(report: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What of the environment, on which the last bits depend, is not as it was."""
    before = {**report["environment"], "monosoup": report["tool"]["version"]}
    now = {**again["environment"], "monosoup": again["tool"]["version"]}
    return [
        f"{name} {now.get(name)}, not {before.get(name)}"
        for name in (*ENVIRONMENT, "monosoup")
        if before.get(name) != now.get(name)
    ]
