"""Plans and reports as tables for a terminal, and plans as JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from monosoup_cli.errors import some
from monosoup_cli.names import in_order, places
from monosoup_cli.report.grid import grid
from monosoup_cli.report.kept import kept_line
from monosoup_cli.report.measures import FACTS, SPLITS, is_number, label_of
from monosoup_cli.report.records import measures_of, outputs_in, summary_in
from monosoup_cli.report.scored import scored_in, scores_table
from monosoup_cli.report.steps import before_step, step_of
from monosoup_cli.report.words import (
    ROLES,
    duration,
    parameters,
    plural,
    printable,
    rough,
    settings_words,
    shown,
    size,
    updates_words,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from monosoup_cli.report.preview import Cost, Preview


__all__ = [
    "MAX_FOLDED_ROWS",
    "averaged_table",
    "part_table",
    "plan_rows",
    "plan_table",
    "plan_to_json",
    "summary_table",
]

PARTS_OF_SUMMARY = {
    *("tensors", "edited", "kept", "parameters", "parameters_edited", "means", "ranges", "clamped")
}
"""The parts of a summary that have their own lines. The others are sums of measures of a new method."""
NO_NEWS = {"hidden", "old model card or report"}
"""Reasons to leave side files out that hold for nearly every folder."""
MAX_NAMED = 6
"""How many files a line names."""
MAX_FOLDED_ROWS = 2000
"""How many rows are folded to the width of a terminal, which takes rich half a millisecond a cell."""


def plan_to_json(
    plan: Preview, notes: Sequence[str], selection: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the plan of a dry run as JSON: what the run would do to each tensor, and what it needs."""
    folders, cost = [folder for folder in plan.folders if folder], plan.cost
    parameters_edited, of_all = _parameters(plan)
    on_cards = {"device_memory_bytes": cost.device_memory_bytes} if cost.device_memory_bytes else {}
    return {
        "command": plan.call.command,
        "output": {
            "path": plan.path,
            "files": [{"name": name, "bytes": nbytes} for name, nbytes in plan.files],
            **plan.side_files,
            **({"folders": folders} if folders else {}),
        },
        **plan.details,
        **({} if selection is None else {"selection": selection}),
        "device": cost.device,
        "download_bytes": cost.download_bytes,
        "workers": cost.workers,
        "memory_bytes": cost.memory_bytes,
        **on_cards,
        "estimated_seconds": None if cost.seconds is None else float(f"{cost.seconds:.2g}"),
        **({"candidates": cost.candidates} if cost.candidates else {}),
        **({"scorings": cost.trials} if cost.trials else {}),
        **({"draft_bytes": cost.draft_bytes} if cost.draft_bytes else {}),
        **({"shared_bytes": cost.shared_bytes} if cost.shared_bytes else {}),
        "parameters": of_all,
        "parameters_edited": parameters_edited,
        "only_in_base": list(plan.only_in_base),
        "notes": list(notes),
        "layers": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                **({"shared_rows": tensor.shared_rows} if tensor.is_edited and tensor.shared_rows else {}),
                "dtype": tensor.dtype,
                "action": "edited" if tensor.is_edited else "kept",
                "reason": tensor.reason,
                "matrices": (tensor.stack or 1) if tensor.is_edited else 0,
                **(tensor.measures if tensor.is_edited else {}),
                **({"settings": dict(tensor.settings)} if tensor.settings else {}),
            }
            for tensor in plan.tensors
        ],
    }


def plan_table(plan: Preview) -> RenderableType:
    """Return the totals of a dry run's plan as a table."""
    reasons = Counter(tensor.reason for tensor in plan.tensors if not tensor.is_edited)
    edited, cost = sum(tensor.is_edited for tensor in plan.tensors), plan.cost
    nbytes = sum(size_of_file for _, size_of_file in plan.files)
    totals = grid("", "")
    _add_inputs(totals, plan.inputs)
    _add_stacks(totals, plan.details.get("stacks", []))
    parameters_edited, of_all = _parameters(plan)
    totals.add_row(plan.verb, f"{plural(edited, 'tensor')}, {parameters(parameters_edited, of_all)}")
    roles = [role for role, _ in plan.inputs]
    _add_updates(totals, plan.call.command, plan.call.arguments, roles)
    totals.add_row(*kept_line(reasons, plan.call.command, plan.call.arguments, roles, verb="keep"))
    if "part" in plan.details:
        number, shares = plan.details["part"], plan.details["shares"]
        own, least, most = (f"{share:.1%}" for share in (shares[number - 1], min(shares), max(shares)))
        words = f"{number}/{len(shares)}, {plan.details['state']}"
        totals.add_row("part", f"{words}, {own} of the work; parts have {least} to {most}")
    if plan.only_in_base:
        totals.add_row("only in base", f"{plural(len(plan.only_in_base), 'tensor')}, not written")
    if cost.trials:
        drafts = f", {size(cost.draft_bytes)} of drafts at a time" if cost.draft_bytes else ""
        drafts += f", about {size(cost.shared_bytes)} that they share" if cost.shared_bytes else ""
        candidates = f" for {cost.candidates:,} candidates" if cost.candidates else ""
        totals.add_row("score", f"at most {cost.trials:,} times{candidates}{drafts}")
    if cost.download_bytes:
        totals.add_row("download", size(cost.download_bytes))
    files = plural(len(plan.files) * len(plan.folders), "file")
    written = f"{'at most ' if plan.details.get('is_bound') else ''}{size(nbytes * len(plan.folders))}"
    totals.add_row("write", Text(f"{written} in {files} to {printable(plan.path)}"))
    if "part" in plan.details and plan.files:
        of_each = f", in each of {len(plan.folders):,} folders" if len(plan.folders) > 1 else ""
        names = _named([name for name, _ in plan.files])
        totals.add_row("files", Text(f"{names}{of_each}"))
    _add_side_files(totals, plan.side_files)
    if plan.push is not None:
        totals.add_row("push", Text(f"to {printable(plan.push)}"))
    memory = (
        f"about {size(cost.memory_bytes)} for {plural(cost.workers, 'worker')}, in addition to torch itself"
    )
    if cost.device_memory_bytes:
        memory += f"; about {size(cost.device_memory_bytes)} on each card"
    totals.add_row("memory", memory)
    totals.add_row("time", _time(cost))
    return totals


def _parameters(plan: Preview) -> tuple[int, int]:
    """How many parameters are edited, and how many there are."""
    edited = sum(math.prod(tensor.shape) for tensor in plan.tensors if tensor.is_edited)
    return edited, sum(math.prod(tensor.shape) for tensor in plan.tensors)


def _time(cost: Cost) -> str:
    """Say how long a run takes and on what that rests, or why nothing is said."""
    if cost.seconds is None or cost.calibration_seconds is None:
        why = "a score command may take any time" if cost.trials else "no card has been measured yet"
        return f"not estimated: {why}"
    calibration = f"estimated from a calibration of {cost.calibration_seconds:.1f} s"
    download = ", without the download" if cost.download_bytes else ""
    where = f"on {plural(cost.cores, 'core')}, with the start"
    return f"about {rough(cost.seconds)} {where}; {calibration}{download}"


def plan_rows(plan: Preview) -> Iterator[tuple[str, str, str]]:
    """Yield the name and the dtype of every tensor, by depth, and what is planned for it."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    where = places({name: tensor.shape for name, tensor in tensors.items()})
    for tensor in map(tensors.__getitem__, in_order(where)):
        sizes = [str(size) for size in tensor.shape]
        if tensor.shared_rows not in (None, *tensor.shape[:1]):
            sizes[0] = f"{tensor.shared_rows} of {tensor.shape[0]} rows"
        view = " × ".join(sizes)
        if tensor.matrix is not None:
            rows, columns = tensor.matrix
            view = f"{sizes[0]} × {columns}"
            if tensor.stack is not None:
                view = f"{sizes[0]} of {rows} × {columns}"
        action = f"{plan.verb} {view}".rstrip() if tensor.is_edited else f"keep: {tensor.reason}"
        if tensor.measures:
            action += _planned_measures(tensor.measures, plan.details.get("stacks", []))
        if tensor.settings:
            action += f", {printable(settings_words(tensor.settings))}"
        yield printable(tensor.name), tensor.dtype, action


def _planned_measures(measures: Mapping[str, Any], stacks: Sequence[Mapping[str, Any]]) -> str:
    """Describe the measures that a method plans: the scale and the block of LiNeS, and those of any method.

    The block is named with its stack where there are several.
    """
    words = f" by {measures['scale']:.4g}" if is_number(measures.get("scale")) else ""
    if measures.get("block") is not None:
        words += f", block {measures['block']}"
        words += f" of {printable(measures['stack'])}" if len(stacks) > 1 else ""
    for name, value in measures.items():
        if name not in {"scale", "block", "stack"} and is_number(value):
            words += f", {label_of(name)} {value:.4g}"
    return words


def summary_table(report: Mapping[str, Any], report_path: Path | None = None) -> RenderableType:
    """Summarise a run: counts, means and ranges over the edited layers, the time, and the files it wrote."""
    wrote = outputs_in(report)
    summary, timing = summary_in(report), report["timing"]
    counts = grid("", "")
    _add_inputs(counts, [(entry["role"], entry["source"]) for entry in report["inputs"]])
    _add_stacks(counts, report.get("stacks", []))
    of_all = parameters(summary["parameters_edited"], summary.get("parameters"))
    counts.add_row("edited" if wrote else "layers", f"{plural(summary['edited'], 'tensor')}, {of_all}")
    roles = [entry["role"] for entry in report["inputs"]]
    _add_updates(counts, report["command"], report["arguments"], roles)
    overlapping = sum("shared_rows" in layer for layer in report.get("layers", ()))
    if overlapping:
        counts.add_row("overlap", f"{plural(overlapping, 'tensor')}, the rows that all inputs have")
    if "clamped" in summary:
        counts.add_row("clamped", f"{plural(summary['clamped'], 'ratio')} below 0")
    for name, total in summary.items():
        if name not in PARTS_OF_SUMMARY and is_number(total):
            counts.add_row(label_of(name), f"{total:,}")
    counts.add_row(*kept_line(summary["kept"], report["command"], report["arguments"], roles))
    _add_splits(counts, report.get("layers", ()))
    if (step := step_of(report)) != 1.0:
        counts.add_row("wise", f"{step:g} of the way from the base to the edited weights")
    for glob, settings in (report["arguments"].get("layers") or {}).items():
        counts.add_row("layers", Text(printable(f"{glob}: {settings_words(settings)}")))
    seconds = max(timing["seconds"], 1e-9)
    moved = timing["bytes_read"] + timing["bytes_written"]
    done = "read and written" if wrote else "read"
    scored = scored_in(report)
    # score commands take a time of their own
    has_rate = not scored and report.keys().isdisjoint(("search", "selection"))
    rate = f", {size(moved / seconds)}/s {done}" if has_rate else ""
    if "score_seconds" in timing:
        rate += f", of which {duration(timing['score_seconds'])} in score commands"
    counts.add_row("time", f"{duration(seconds)}{rate}")
    for output in wrote:
        total = sum(file["bytes"] for file in output["files"])
        counts.add_row("wrote", Text(f"{printable(output['path'])} ({size(total)})"))
    if wrote:
        _add_side_files(counts, wrote[0])
    if report_path is not None:
        counts.add_row("report", Text(printable(report_path)))
    if len(scored) > 1:
        return Group(counts, Text(""), scores_table(scored))
    for one in scored if "search" not in report else ():  # the table of the search shows them
        counts.add_row("scores", ", ".join(f"{name} {shown(score)}" for name, score in one.scores.items()))
    if len(wrote) > 1 or not any(summary["ranges"].values()):
        return counts
    means = grid("", "mean", "min", "max", show_header=True)
    for name, bounds in summary["ranges"].items():
        if bounds is not None and name not in FACTS:
            means.add_row(label_of(name), *(f"{value:.4g}" for value in (summary["means"][name], *bounds)))
    before = before_step(report)
    return Group(counts, Text(""), means, *([Text(""), Text(before)] if before else []))


def _add_updates(table: Table, command: str, arguments: Mapping[str, Any], roles: Sequence[str]) -> None:
    """Add a line on what is made of updates, and on an update of two names."""
    if words := updates_words(command, arguments, roles.count("finetuned")):
        table.add_row(*words)
    if command == "transplant":
        table.add_row("D", "onto − base")


def part_table(facts: Mapping[str, Any], path: Path) -> RenderableType:
    """Summarise one part of an output."""
    table = grid("", "")
    nbytes = sum(file["bytes"] for files in facts["files"].values() for file in files)
    table.add_row("part", f"{facts['part']}, {plural(len(facts['records']), 'tensor')}")
    table.add_row("time", duration(facts["timing"]["seconds"]))
    table.add_row("wrote", Text(f"{printable(path)} ({size(nbytes)})"))
    return table


def _add_splits(table: Table, layers: Sequence[Mapping[str, Any]]) -> None:
    """Add what k each rule would give, where an inspection compared them."""
    measured = [part for part in measures_of(layers) if all(part.get(name) is not None for name in SPLITS)]
    if measured:
        medians = {label_of(name): statistics.median(part[name] for part in measured) for name in SPLITS}
        words = ", ".join(f"{label.removeprefix('k ')} {value:g}" for label, value in medians.items())
        table.add_row("k by split", f"{words} (medians)")


def averaged_table(averaged: Sequence[Mapping[str, Any]]) -> Table:
    """The step of every checkpoint of a run, and its weight by each schedule.

    Args:
        averaged: What the report has of them.
    """
    table = grid("checkpoint", "step", *map(str, averaged[0]["weights"]), show_header=True)
    for one in averaged:
        weights = [f"{weight:.3f}" for weight in one["weights"].values()]
        table.add_row(Text(printable(one["source"])), f"{one['step']:,}", *weights)
    return table


def _add_stacks(table: Table, stacks: Sequence[Mapping[str, Any]]) -> None:
    for stack in stacks:
        table.add_row("blocks", Text(f"{stack['length']} of {printable(stack['name'] or '(no prefix)')}"))


def _add_inputs(table: Table, inputs: Sequence[tuple[str, str]]) -> None:
    for role, source in inputs:
        table.add_row(ROLES.get(role, printable(role)), Text(printable(source)))


def _add_side_files(table: Table, output: Mapping[str, Any]) -> None:
    """Add a line on what is carried beside the weights, and one for each reason to leave something out."""
    if output.get("side_files"):
        table.add_row("carried", Text(_named(output["side_files"])))
    left_out = [one for one in output.get("left_out", ()) if one["why"] not in NO_NEWS]
    for why in dict.fromkeys(one["why"] for one in left_out):
        names = [one["name"] for one in left_out if one["why"] == why]
        owner, _, rest = printable(why).removeprefix("of ").partition("; ")
        words = f"{owner}'s {_named(names)} ({rest})" if rest else f"{_named(names)} ({printable(why)})"
        table.add_row("left out", Text(words))  # the base's config.json (the adapter has its own)


def _named(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return some([printable(name) for name in names], MAX_NAMED)
