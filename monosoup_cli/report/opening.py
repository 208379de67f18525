"""The first sentences of a page: what was done, to what, how much of the model it is, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from monosoup_cli.report.kept import moved_by_step
from monosoup_cli.report.records import outputs_in, sources_in, summary_in
from monosoup_cli.report.rows import Row
from monosoup_cli.report.scored import sweep_sentences
from monosoup_cli.report.searched import search_sentences
from monosoup_cli.report.steps import moves_all, step_in, step_of
from monosoup_cli.report.words import parameters, plural, scale_words

__all__ = ["OF_REACH", "REACH", "opening", "reach_of", "reach_of_layer"]

REACH = {"edit": "equivalent α", "wise": "WiSE α", "lines": "mean scale", "stock": "mean ratio"}
"""What commands call how far an output is from the base."""
OF_REACH = {"wise": "alpha", "edit": "equivalent_alpha", "lines": "scale", "stock": "ratio"}
"""The measure that it is."""


def reach_of(report: Mapping[str, Any], output: Mapping[str, Any]) -> float | None:
    """Return how far an output is from the base (0) to the fine-tuned weights (1), on average over layers.

    Args:
        report: The report.
        output: One of its outputs, with the `summary`; or the report itself.

    Returns:
        The reach; None where nothing is edited, or where the command has none.
    """
    arguments = {**report["arguments"], **output.get("arguments", {})}
    own = {"edit": "wise", "wise": "alpha"}.get(report["command"])
    if any(own in layer.get("settings", ()) for layer in output.get("layers", ())):
        return None  # one layer goes further than another
    if report["command"] == "wise":
        alpha = arguments.get("alpha")
        return float(alpha) if isinstance(alpha, (int, float)) else None
    mean = output["summary"]["means"].get(OF_REACH.get(report["command"], ""))
    return None if mean is None else float(step_of({"arguments": arguments}) * mean)


def reach_of_layer(report: Mapping[str, Any], row: Row) -> float | None:
    """Return how far a layer of a report is from the base (0) to the fine-tuned weights (1).

    Returns:
        The reach; None where it is not known, or where the command has none. An edit keeps vectors as
        fine-tuned, unless it interpolates all.
    """
    if report["command"] == "edit" and row["reason"] == "vector":
        return step_of(report)
    value = row.get(OF_REACH.get(report["command"], ""))
    if value is None:
        return None
    return float(step_in(row, step_of(report)) * value)


def opening(report: Mapping[str, Any]) -> list[str]:
    """Return the first sentences of a report's page."""
    command, wrote = report["command"], outputs_in(report)
    summary = summary_in(report)
    if "search" in report:
        what = _search(report)
    else:
        what = DONE[command](report) if command in DONE else f"{command} made this from {_finetuned(report)}"
    several = f", as {plural(len(wrote), 'checkpoint')}" if len(wrote) > 1 else ""
    of_all = parameters(summary["parameters_edited"], summary.get("parameters"))
    counted = f"{summary['edited']:,} of {plural(summary['tensors'], 'tensor')}, {of_all}"
    did = {"inspect-spectrum": "covers", "extract": "covers"}.get(command, "edited")
    moved = moved_by_step(command, report["arguments"]).keys() & summary["kept"].keys()
    is_of_all = moves_all(report["arguments"])
    too = "; --wise also moved tensors that the edit keeps" if moved and is_of_all else ""
    return [
        f"{what}{several}.",
        *(search_sentences(report) if "search" in report else ()),
        f"{'The chosen command' if 'search' in report else 'It'} {did} {counted}{too}.",
        *_meaning(report, wrote, summary),
        *sweep_sentences(report),
    ]


def _meaning(
    report: Mapping[str, Any], wrote: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> list[str]:
    command, means = report["command"], summary["means"]
    reaches = [reach_of(report, one) for one in (wrote if "outputs" in report else [report])]
    known = [reach for reach in reaches if reach is not None]
    known_means = {name for name, mean in means.items() if mean is not None}
    meant = []
    if (
        command in ("edit", "inspect-spectrum")
        and len(wrote) < 2
        and {"lambda_high", "lambda_low"} <= known_means
        and not any("wise" in layer.get("settings", ()) for layer in report.get("layers", ()))
    ):
        high, low = (step_of(report) * means[name] for name in ("lambda_high", "lambda_low"))
        keeps = "the edit keeps" if step_of(report) == 1.0 else "the result keeps"
        keeps = "the edit would keep" if command == "inspect-spectrum" else keeps
        meant.append(
            f"On average over the layers, {keeps} {high:.0%} of the strong part of an update and"
            f" {low:.0%} of its weak part."
        )
    if known and command in REACH:
        low, high = min(known), max(known)
        far = f"{low:.0%} to {high:.0%}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.0%}"
        reach = f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f}"
        them = "the results lie" if len(known) > 1 else "the result lies"
        them = them.capitalize() if command == "wise" else f"On average over the layers, {them}"
        target = "mean of the fine-tuned checkpoints" if _is_mean(report) else "fine-tuned weights"
        meant.append(f"{them} {far} of the way from the base to the {target} ({REACH[command]} {reach}).")
    if means.get("factor_error") is not None:
        meant.append(f"The adapter leaves out {means['factor_error']:.1%} of an update, on average.")
    return meant


def _update(report: Mapping[str, Any]) -> str:
    return f"what fine-tuning changed from {_base(report)} to {_finetuned(report)}"


def _sources(report: Mapping[str, Any], role: str) -> list[str]:
    return [PurePath(source).name or source for source in sources_in(report, role)]


def _is_mean(report: Mapping[str, Any]) -> bool:
    return len(_sources(report, "finetuned")) > 1


def _finetuned(report: Mapping[str, Any]) -> str:
    names = _sources(report, "finetuned")
    mean = f"{_weighted(report)}mean"
    return names[0] if len(names) == 1 else f"the {mean} of {plural(len(names), 'checkpoint')}"


def _weighted(report: Mapping[str, Any]) -> str:
    return "weighted " if report["arguments"].get("weights") else ""


def _times(report: Mapping[str, Any]) -> str:
    scale = scale_words(report["arguments"])
    return f", {scale}" if scale else ""


def _adapters(report: Mapping[str, Any]) -> str:
    count = len(_sources(report, "finetuned"))
    return "1 LoRA adapter" if count == 1 else f"The {_weighted(report)}sum of {count} LoRA adapters"


def _base(report: Mapping[str, Any]) -> str:
    return next(iter(_sources(report, "base")), "its base")


def _chosen(report: Mapping[str, Any], how: str) -> str:
    members, of = report["selection"]["members"], plural(len(report["selection"]["order"]), "checkpoint")
    if len(members) == 1:
        return f"{PurePath(members[0]).name} alone, of {of}, {how}"
    return f"the mean of {len(members)} of {of}, {how}"


def _soup(report: Mapping[str, Any]) -> str:
    if "selection" in report:
        return f"A greedy soup: {_chosen(report, 'chosen by their scores')}"
    return f"A model soup: {_finetuned(report)}"


def _sfgs(report: Mapping[str, Any]) -> str:
    how = "chosen by how alike their updates are"
    return f"A soup: {_chosen(report, how) if 'selection' in report else _finetuned(report)}"


def _search(report: Mapping[str, Any]) -> str:
    search = report["search"]
    tried, chosen = plural(len(search["candidates"]), "candidate"), search["chosen"]
    return f"A search tried {tried} between {_base(report)} and {_finetuned(report)}, and chose {chosen}"


def _edit(report: Mapping[str, Any]) -> str:
    step, done = step_of(report), f"MonoSoup edited {_update(report)}"
    if step == 1.0:
        return done
    return f"{done}, and --wise interpolated: the weights are {step:g} of the way from the base to the edit"


def _transplant(report: Mapping[str, Any]) -> str:
    names = _sources(report, "finetuned")
    them = f"update of {names[0]}" if len(names) == 1 else f"updates of {plural(len(names), 'checkpoint')}"
    onto = next(iter(_sources(report, "onto")), "another base")
    return f"Task arithmetic added to {onto} the {them} from {_base(report)}{_times(report)}"


DONE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "edit": _edit,
    "inspect-spectrum": lambda report: (
        f"This is what MonoSoup's edit would do to {_update(report)}; nothing was written"
    ),
    "stock": lambda report: f"Model Stock moved from {_base(report)} towards {_finetuned(report)}",
    "soup": _soup,
    "sfgs": _sfgs,
    "wise": lambda report: f"WiSE-FT interpolated between {_base(report)} and {_finetuned(report)}",
    "lines": lambda report: f"LiNeS scaled {_update(report)} by the depth of each layer",
    "merge": lambda report: f"{_adapters(report)} merged into {_base(report)}{_times(report)}",
    "extract": lambda report: f"A LoRA adapter extracted from {_update(report)}{_times(report)}",
    "transplant": _transplant,
}
"""What each command did, without the full stop."""
