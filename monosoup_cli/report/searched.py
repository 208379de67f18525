"""What a search has found: tables of its candidates, its front and its choice, and charts of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monosoup_cli.methods.search import Goal, coarse
from monosoup_cli.report.labels import placed
from monosoup_cli.report.scored import Chart, Curve, cells_of, sweep_charts
from monosoup_cli.report.words import plural, printable, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "charts_of",
    "made_by",
    "notes_on_search",
    "roles_of",
    "scoring_table",
    "search_sentences",
    "search_table",
]

MAX_ROWS = 12
"""How many candidates a table shows."""
FINETUNED, BASE = "wise --alpha 1", "wise --alpha 0"
"""The candidates that are the fine-tuned model, or the mean of several, and the base."""
FAMILIES = ("edit", "wise", "lines", "stock")


def scoring_table(done: Sequence[tuple[str, Mapping[str, float]]], now: str = "") -> RenderableType:
    """Show the last checkpoints that were scored, and the best in each score.

    Args:
        done: What each is called, and its scores by name. Those with other names have no row.
        now: What is being scored now.
    """
    from rich.console import Group
    from rich.text import Text

    from monosoup_cli.report.grid import grid

    names = list(done[0][1]) if done else []
    done = [one for one in done if one[1].keys() == {*names}]
    table = grid("", "", *names, show_header=bool(names))
    last = list(enumerate(done, start=1))[-MAX_ROWS:]
    for (number, (label, _)), cells in zip(last, cells_of([one[1][1] for one in last], names), strict=True):
        table.add_row(str(number), Text(printable(label)), *cells)
    if names:
        table.columns[1].justify = "left"
    best = [
        Text(f"{printable(name)}: best {shown(scores[name])}, {printable(label)}")
        for name in names
        for label, scores in [max(done, key=lambda one: one[1][name])]
    ]
    return Group(table, *best, Text(printable(now)))


def search_table(report: Mapping[str, Any]) -> RenderableType:
    """Show the inputs, the front of two scores or the best of one, the choice, and the final scores."""
    from rich.console import Group
    from rich.text import Text

    from monosoup_cli.report.grid import grid

    search = report["search"]
    names, candidates, chosen = search["scores"], search["candidates"], search["chosen"]
    of_label = {one["candidate"]: one["scores"] for one in candidates}
    distinct = [one["candidate"] for one in candidates if "same_as" not in one]
    is_single = len(search["finetuned"]) == 1
    rows: list[tuple[str, Mapping[str, float], str]] = []

    def add(source: str, scores: Mapping[str, float], *words: str, label: str | None = None) -> None:
        words += ("front",) * (len(names) > 1 and label in search["front"]) + ("chosen",) * (label == chosen)
        rows.append((source, scores, ", ".join(words)))

    for one in search["finetuned"]:
        add(one["source"], one["scores"], "fine-tuned", label=FINETUNED if is_single else None)
    if BASE in of_label:
        add(BASE, of_label[BASE], "base", label=BASE)
    inputs = {BASE, *([FINETUNED] if is_single else [])}
    others = [label for label in (search["front"] if len(names) > 1 else distinct) if label not in inputs]
    if len(names) == 1:
        others = sorted(others, key=lambda label: -of_label[label][names[0]])[:MAX_ROWS]
    for label in [*others, *({chosen} - inputs - {*others})]:
        add(label, of_label[label], label=label)
    table = grid("", *names, "", show_header=True)
    table.columns[-1].justify = "left"
    for (source, _, words), cells in zip(rows, cells_of([one[1] for one in rows], names), strict=True):
        table.add_row(Text(printable(source)), *cells, words)
    facts = grid("", "")
    hidden = len({*distinct} - inputs - {*others, chosen})
    rest = f"; the report has the {hidden:,} not shown" if hidden else ""
    facts.add_row("tried", f"{plural(len(candidates), 'candidate')}, {len(distinct):,} of them scored{rest}")
    facts.add_row("chosen", Text(printable(search["chosen"])))
    facts.add_row("rule", Text(printable(_rule(search))))
    for name, score in report["output"].get("scores", {}).items():
        compared = (
            f"; {printable(one['source'])}: {shown(one['final_scores'][name])}"
            for one in search["finetuned"]
            if name in one.get("final_scores", {})
        )
        facts.add_row(Text(printable(f"final {name}")), Text(f"{shown(score)}{''.join(compared)}"))
    return Group(table, Text(""), facts)


def made_by(report: Mapping[str, Any]) -> str:
    """Return the line with the command that makes the choice. Nothing may fold it: it is copied."""
    return f"made by: {printable(report['search']['command'], 1000)}"


def notes_on_search(report: Mapping[str, Any]) -> list[str]:
    """Return what to keep in mind of a search's result."""
    search = report["search"]
    names = " and ".join(map(repr, search["scores"]))
    chose, are = ("scores", "they are") if len(search["scores"]) > 1 else ("score", "it is")
    finals = " and ".join(f"'final {name}'" for name in report["output"].get("scores", {}))
    advice = (
        f"report {finals} instead" if finals else "report a score on other data, such as --final-score gives"
    )
    notes = [f"the {chose} {names} chose the output, so {are} likely too high for it: {advice}"]
    within = " within --max-loss" if search["max_loss"] else ""
    if not search["is_within"]:
        notes.append("no candidate stays within --max-loss: this one loses least")
    if search["chosen"] == FINETUNED and len(search["finetuned"]) == 1:
        notes.append(
            f"no candidate{within} is better than the fine-tuned model, so the output is a copy of it"
        )
    alone = _best_alone(search)
    if alone is not None:
        score = f"{search['prefer']} {shown(alone['scores'][search['prefer']])}"
        notes.append(f"no candidate{within} is better than {printable(alone['source'])} alone ({score})")
    if search["chosen"] == BASE:
        notes.append("no candidate is better than the base, so the output has its weights")
    first = {one.label for one in coarse(is_of_several=True, has_blocks=True)}
    tried = [one["candidate"] in first for one in search.get("candidates", ()) if "same_as" not in one]
    if len(tried) == search.get("budget") and tried.count(False) < tried.count(True) / 2:
        notes.append(
            f"{tried.count(True)} of the budget of {len(tried)} went to the coarse pass, so little near the"
            " best was tried"
        )
    if search["not_tried"]:
        notes.append(f"no blocks were found in the names, so {', '.join(search['not_tried'])} was not tried")
    return notes


def _best_alone(search: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The best of several fine-tuned models, if it is better than the choice: within the limits, which the
    choice may not be, or in the preferred score."""
    models = search["finetuned"]
    if len(models) == 1:
        return None
    goal = Goal.within(search["prefer"], search["max_loss"], [one["scores"] for one in models])
    best: Mapping[str, Any] = min(models, key=lambda one: goal.rank(one["scores"]))
    (chosen,) = (one for one in search["candidates"] if one["candidate"] == search["chosen"])
    return best if goal.rank(best["scores"])[:2] < goal.rank(chosen["scores"])[:2] else None


def search_sentences(report: Mapping[str, Any]) -> list[str]:
    """Say by which rule a search chose, how its choice scores, and the inputs beside it."""
    search = report["search"]
    of_label = {one["candidate"]: one["scores"] for one in search["candidates"]}
    tuned = "the fine-tuned model" if len(search["finetuned"]) == 1 else "the mean of the fine-tuned models"
    others = {BASE: "the base", FINETUNED: tuned}
    said = [_rule(search)]
    for name in search["scores"]:
        against = " and ".join(
            f"{words} has {shown(of_label[label][name])}"
            for label, words in others.items()
            if label in of_label and label != search["chosen"]
        )
        beside = f"; {against}" if against else ""
        said.append(f"The choice has {name!r} {shown(of_label[search['chosen']][name])}{beside}.")
    return said


def _rule(search: Mapping[str, Any]) -> str:
    """Say which candidate a search chooses."""
    prefer, others = search["prefer"], [name for name in search["scores"] if name != search["prefer"]]
    if not search["max_loss"]:
        cost = "".join(f", whatever it costs in {name!r}" for name in others)
        return f"It is the candidate with the best {prefer!r}{cost}."
    losses = " and ".join(f"at most {loss:g} of {name!r}" for name, loss in search["max_loss"].items())
    best = "fine-tuned model" if len(search["finetuned"]) == 1 else "best of the fine-tuned models"
    if search["is_within"]:
        return f"It has the best {prefer!r} of the candidates that lose {losses} against the {best}."
    return f"No candidate loses {losses} against the {best}, so it is the one that loses least."


def roles_of(search: Mapping[str, Any]) -> dict[str, str]:
    """What the candidates are called that are the inputs, or the mean of several."""
    return {BASE: "base", FINETUNED: "fine-tuned" if len(search["finetuned"]) == 1 else "mean"}


def charts_of(report: Mapping[str, Any]) -> list[Chart]:
    """The charts of the scores in a report: of a search, or of a sweep."""
    return [*map(placed, _charts(report["search"]) if "search" in report else sweep_charts(report))]


def _charts(search: Mapping[str, Any]) -> list[Chart]:
    """The charts of a search: two scores against each other with the front, or one score trial by trial."""
    candidates, names = search["candidates"], search["scores"]
    x, y = names if len(names) > 1 else ("candidate", names[0])
    roles = roles_of(search)

    def place(number: int, scores: Mapping[str, float]) -> tuple[float, float]:
        return (scores[x] if len(names) > 1 else float(number), scores[y])

    def named(candidate: str) -> str:
        words = [roles.get(candidate, ""), "chosen" if candidate == search["chosen"] else ""]
        return ", ".join(filter(None, words))

    numbered = list(enumerate(candidates, start=1))
    curves = [
        Curve(
            family,
            [place(number, one["scores"]) for number, one in some],
            is_line=False,
            names=[named(one["candidate"]) for _, one in some],
        )
        for family in FAMILIES
        if (some := [pair for pair in numbered if pair[1]["candidate"].split(" ")[0] == family])
    ]
    at = {one["candidate"]: place(number, one["scores"]) for number, one in numbered}
    if len(names) > 1:
        curves.append(Curve("Pareto front", [at[label] for label in search["front"]]))
        curves.append(
            Curve("fine-tuned", [place(0, one["scores"]) for one in search["finetuned"]], is_line=False)
        )
    curves.append(Curve("chosen", [at[search["chosen"]]], is_line=False))
    if len(names) > 1:
        note = "Higher scores are up and to the right. No candidate beats those of the Pareto front in both."
        return [Chart(f"{y} against {x}", x, y, curves, note)]
    return [Chart(f"{y} over candidates", x, y, curves, "Candidates are numbered as they were tried.")]
