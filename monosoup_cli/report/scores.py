"""A comparison of scores as tables for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.errors import some
from monosoup_cli.report.words import plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = [
    "CHANGES",
    "LOWER",
    "NO_CHANGE",
    "against",
    "card_remarks",
    "card_tables",
    "change",
    "direction",
    "has_lower",
    "metric_of",
    "number",
    "scores_as_csv",
    "scores_table",
    "shown_interval",
    "shown_name",
    "shown_p",
    "shown_rows",
    "signed",
]

CHANGES = {
    "healed": "healed",
    "preserved": "preserved",
    "newly_damaged": "damaged",
    "retained": "retained",
    "like_base": "as base",
}
"""What is counted of samples, and its heading."""
CORRECTED = "p is corrected for the number of comparisons."
"""What explains the p of the table, where there is one."""
LOWER = "↓: lower is better."
"""What explains the mark of `direction`."""
WHERE = "In: like the data of the fine-tuning. Out: unlike it. Of several tasks, the row has the mean."
"""What explains the groups in a model card."""
NO_CHANGE = "no change"
"""What stands in the place of an interval where every sample scores as before."""
MAX_NAME = 200
MAX_HEADING = 12
"""How much of a model's name heads its column, where the whole name has no room."""
NAMED = 4
"""How many tasks of a metric are named below a table."""


def number(value: float) -> str:
    """A score with as many digits as a person reads."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{'+' if value >= 0 else '-'}{number(abs(value))}"


def shown_interval(interval: Sequence[float] | None, between: str = " ") -> str:
    """The two ends of an interval, with what is between them; nothing is drawn of samples that are alike."""
    if interval is None:
        return "–"
    if not any(interval):
        return NO_CHANGE
    return between.join(f"{one:+.3f}" if abs(one) < 10 else f"{one:+.3g}" for one in interval)


def shown_p(p: float | None) -> str:
    """A p-value with two digits."""
    return "–" if p is None else "<.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def change(counts: Mapping[str, int] | None) -> str:
    """How many samples of how many."""
    return "–" if counts is None else f"{counts['count']}/{counts['of']}"


def direction(record: Mapping[str, Any]) -> str:
    """The mark behind the name of a task or group whose scores are better when lower."""
    return " ↓" if record["higher_is_better"] is False else ""


def metric_of(record: Mapping[str, Any]) -> str:
    """What a task is scored by, or the tasks of a group are."""
    return printable(record.get("metric") or ", ".join(record["metrics"]), MAX_NAME)


def has_lower(comparison: Mapping[str, Any]) -> bool:
    """Whether a task or group has that mark."""
    return any(map(direction, (*comparison["groups"], *comparison["tasks"])))


def shown_name(record: Mapping[str, Any]) -> str:
    """The name of a task, or of a group with the number of its tasks, and the mark of its direction."""
    of = f" ({plural(len(record['tasks']), 'task')})" if "tasks" in record else ""
    return f"{printable(record['name'], MAX_NAME)}{of}{direction(record)}"


def shown_rows(comparison: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the groups of several tasks, and the tasks, each with the name that tables show.

    The name of a task is followed by its groups, so a group of one task needs no row.
    """
    groups = {group["name"]: group["tasks"] for group in comparison["groups"]}
    for record in comparison["groups"]:
        if len(record["tasks"]) > 1:
            yield shown_name(record), record
    for record in comparison["tasks"]:
        of = ", ".join(group for group, tasks in groups.items() if record["name"] in tasks)
        name = printable(record["name"], MAX_NAME)
        yield f"{name}{of and f' ({of})'}{direction(record)}", record


def card_tables(comparison: Mapping[str, Any]) -> list[list[list[str]]]:
    """Two tables of the first edited model for its model card: its scores, and what became of the samples.

    Each begins with its heading. The second is left out where no answers are right or wrong.
    """
    level = f"{comparison['level']:.0%} interval"
    scores = [["task", "metric", "base", "fine-tuned", "this model", "difference", level, "p, corrected"]]
    counts = [["task", *CHANGES.values()]]
    for shown, record in shown_rows(comparison):
        one = record["edited"][0]
        values = map(number, (record["base"], record["finetuned"], one["value"]))
        shares = [signed(one["difference"]), shown_interval(one["interval"], " to ")]
        scores.append([shown, metric_of(record), *values, *shares, shown_p(one["corrected_p"])])
        if "healed" in one:
            counts.append([shown, *(change(one.get(kind)) for kind in CHANGES)])
    return [scores, counts] if len(counts) > 1 else [scores]


def card_remarks(comparison: Mapping[str, Any]) -> list[str]:
    """What explains the first of the tables in a model card."""
    return [WHERE] * bool(comparison["groups"]) + [LOWER] * has_lower(comparison)


def against(comparison: Mapping[str, Any], edited: str) -> str:
    """The heading of an edited model's table."""
    tuned = printable(comparison["models"]["finetuned"], MAX_NAME)
    return f"{printable(edited, MAX_NAME)} against {tuned} (fine-tuned)"


def scores_table(comparison: Mapping[str, Any]) -> RenderableType:
    """Return two tables for each edited model: its scores, and what became of the samples."""
    from rich.console import Group
    from rich.text import Text

    from monosoup_cli.report.grid import first_that_fits, grid

    parts = list[Any]()
    for at, name in enumerate(comparison["models"]["edited"]):
        heading = printable(name, MAX_NAME)
        short = printable(name, MAX_HEADING)
        least = Group(_differences(comparison, at, short, has_metric=False), Text(_scored_by(comparison)))
        less = first_that_fits(_differences(comparison, at, short, has_metric=True), least)
        table: Any = first_that_fits(_differences(comparison, at, heading, has_metric=True), less)
        parts += [*([Text("")] if at else []), Text(against(comparison, name), style="bold"), table]
        counted = [
            (shown, record["edited"][at])
            for shown, record in shown_rows(comparison)
            if "like_base" in record["edited"][at]
        ]
        if counted:
            kinds = [kind for kind in CHANGES if any(kind in one for _, one in counted)]
            table = grid("task", *(CHANGES[kind] for kind in kinds), show_header=True)
            for shown, one in counted:
                table.add_row(Text(shown), *(change(one.get(kind)) for kind in kinds))
            parts += [Text(""), table]
    records = (*comparison["groups"], *comparison["tasks"])
    tested = any(one["corrected_p"] is not None for record in records for one in record["edited"])
    words = [CORRECTED] * tested + [LOWER] * has_lower(comparison)
    if words:
        parts += [Text(""), *map(Text, words)]
    return Group(*parts)


def _differences(comparison: Mapping[str, Any], at: int, edited: str, *, has_metric: bool) -> Table:
    from rich.text import Text

    from monosoup_cli.report.grid import grid

    metric = ["metric"] if has_metric else []
    head = ("base", "fine-tuned", edited, "diff", "95% interval", "p")
    table = grid("task", *metric, *head, show_header=True)
    if has_metric:
        table.columns[1].justify = "left"
    for shown, record in shown_rows(comparison):
        one = record["edited"][at]
        values = (record["base"], record["finetuned"], one["value"])
        cells = [*map(number, values), signed(one["difference"]), shown_interval(one["interval"])]
        of = [Text(metric_of(record))] if has_metric else []
        table.add_row(Text(shown), *of, *cells, shown_p(one["corrected_p"]))
    return table


def _scored_by(comparison: Mapping[str, Any]) -> str:
    """What the tasks are scored by, where the table has no room for it."""
    tasks: dict[str, list[str]] = {}
    for task in comparison["tasks"]:
        tasks.setdefault(metric_of(task), []).append(printable(task["name"], MAX_NAME))
    if len(tasks) == 1:
        return f"scored by {', '.join(tasks)}"
    return f"scored by {'; '.join(f'{metric}: {some(names, NAMED)}' for metric, names in tasks.items())}"


def scores_as_csv(comparison: Mapping[str, Any]) -> str:
    """Return a line for each task or group and each edited model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = [f"{kind}{part}" for kind in CHANGES for part in ("", "_of")]
    writer.writerow(
        [
            *(
                "edited_model",
                "row",
                "name",
                "metric",
                "higher_is_better",
                "samples",
                "base",
                "finetuned",
                "edited",
                "difference",
            ),
            *("low", "high", "test", "p", "corrected_p", *counts),
        ]
    )
    for kind in ("groups", "tasks"):
        for record in comparison[kind]:
            for name, one in zip(comparison["models"]["edited"], record["edited"], strict=True):
                found = [one.get(change) or {} for change in CHANGES]
                writer.writerow(
                    [
                        printable(name, MAX_NAME),
                        kind.removesuffix("s"),
                        printable(record["name"], MAX_NAME),
                        metric_of(record),
                        {True: "true", False: "false", None: None}[record["higher_is_better"]],
                        record.get("samples"),
                        *(record["base"], record["finetuned"], one["value"], one["difference"]),
                        *(one["interval"] or (None, None)),
                        *(one["test"], one["p"], one["corrected_p"]),
                        *(each.get(part) for each in found for part in ("count", "of")),
                    ]
                )
    return text.getvalue()
