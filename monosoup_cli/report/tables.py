"""Plans and reports as tables for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from monosoup_cli.report.words import duration, plural, shown, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from monosoup_cli.pipeline.job import Job

__all__ = ["plan_table", "plan_to_json", "summary_table"]

SYMBOLS = {
    "k_ratio": "k/r",
    "rho": "ρ",
    "cos_alpha": "cos α",
    "lambda_high": "λ_high",
    "lambda_low": "λ_low",
    "equivalent_alpha": "equivalent α",
    "anisotropy": "anisotropy",
    "relative_update": "‖Δ‖/‖W0‖",
}


def plan_to_json(job: Job) -> dict[str, Any]:
    """The plan of a dry run: what would be done to each tensor, and what it takes."""
    return {
        "command": job.recipe.command,
        "output": {
            "path": str(job.output),
            "files": [{"name": file.name, "bytes": file.nbytes} for file in job.layout.files],
            "side_files": sorted(job.side_files),
        },
        "device": ", ".join(str(device) for device in job.devices),
        "workers": job.workers,
        "memory_bytes": job.memory_bytes,
        "only_in_base": list(job.plan.only_in_base),
        "layers": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "action": "edited" if tensor.is_edited else "kept",
                "reason": tensor.reason,
                "matrices": tensor.matrices if tensor.is_edited else 0,
            }
            for tensor in job.plan.tensors
        ],
    }


def plan_table(job: Job) -> RenderableType:
    """The plan of a dry run: a line a tensor, then the totals."""
    table = _grid("", "", "")
    for tensor in job.plan.tensors:
        view = " × ".join(str(size) for size in tensor.shape)
        if tensor.cut is not None:
            view = f"{tensor.cut.rows} × {tensor.cut.columns}"
            if tensor.stack is not None:
                view = f"{tensor.stack} of {view}"
        action = f"{job.recipe.verb} {view}" if tensor.is_edited else f"keep: {tensor.reason}"
        table.add_row(Text(shown(tensor.name)), tensor.dtype, action)
    reasons = Counter(tensor.reason for tensor in job.plan.tensors if not tensor.is_edited)
    totals = _grid("", "")
    _add_inputs(totals, [(role, checkpoint.source) for role, checkpoint in job.inputs])
    totals.add_row(job.recipe.verb, plural(len(job.plan.edited), "tensor"))
    totals.add_row("keep", _counts(reasons) or "none")
    if job.plan.only_in_base:
        totals.add_row("only in base", f"{plural(len(job.plan.only_in_base), 'tensor')}, not written")
    files = plural(len(job.layout.files) * len(job.recipe.variants), "file")
    totals.add_row("write", Text(f"{size(job.nbytes)} in {files} to {shown(job.output)}"))
    memory = f"about {size(job.memory_bytes)} for {plural(job.workers, 'worker')}, beside the libraries"
    totals.add_row("memory", memory)
    return Group(table, Text(""), totals)


def summary_table(report: Mapping[str, Any], report_path: Path | None) -> RenderableType:
    """What a run did: counts, means and ranges over the edited layers, time, and the paths."""
    summary, timing = report["summary"], report["timing"]
    counts = _grid("", "")
    _add_inputs(counts, [(entry["role"], entry["source"]) for entry in report["inputs"]])
    counts.add_row(
        "edited", f"{plural(summary['edited'], 'tensor')}, {_count(summary['parameters_edited'])} parameters"
    )
    counts.add_row("kept", _counts(summary["kept"]) or "none")
    if report["arguments"].get("wise") is not None:
        counts.add_row("wise", f"{report['arguments']['wise']:g} of the way from the base, vectors too")
    seconds = max(timing["seconds"], 1e-9)
    moved = timing["bytes_read"] + timing["bytes_written"]
    counts.add_row("time", f"{duration(seconds)}, {size(moved / seconds)}/s read and written")
    total = sum(file["bytes"] for file in report["output"]["files"])
    counts.add_row("wrote", Text(f"{shown(report['output']['path'])} ({size(total)})"))
    counts.add_row("report", Text("stdout" if report_path is None else shown(report_path)))
    if not any(summary["ranges"].values()):
        return counts
    means = _grid("", "mean", "min", "max", show_header=True)
    for name, bounds in summary["ranges"].items():
        if bounds is not None:
            means.add_row(SYMBOLS[name], *(f"{value:.4g}" for value in (summary["means"][name], *bounds)))
    return Group(counts, Text(""), means)


def _add_inputs(table: Table, inputs: Sequence[tuple[str, str]]) -> None:
    for role, source in inputs:
        table.add_row("fine-tuned" if role == "finetuned" else role, Text(shown(source)))


def _grid(first: str, *others: str, show_header: bool = False) -> Table:
    table = Table(box=None, show_header=show_header, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right" if show_header else "left", overflow="fold")
    return table


def _counts(reasons: Mapping[Any, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
