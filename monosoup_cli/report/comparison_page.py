"""Two reports side by side as one self-contained HTML page, without scripts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from monosoup_cli.report.comparison import (
    CHANGE,
    ONLY_BOTH,
    ORDER,
    WITHOUT_MEASURE,
    action_words,
    arrow,
    before_wise,
    change_words,
    compared_measures,
    heading_of,
    is_same,
    value_text,
)
from monosoup_cli.report.glossary import MEANINGS, OF_COMPARISONS
from monosoup_cli.report.markup import Markup, bar, frame, glossary, header, items, prose, table, text
from monosoup_cli.report.opening import REACH, opening, reach_of
from monosoup_cli.report.words import plural

__all__ = ["comparison_page"]

SHOWN_ROWS = 20
"""How many layers are in sight at once; the others open."""
MAX_ROWS = 2000
"""The most layers that a page has."""
SIDES = ("first", "second")
EXPLAINED = {**MEANINGS, **OF_COMPARISONS}


def comparison_page(
    comparison: Mapping[str, Any],
    reports: tuple[Mapping[str, Any], Mapping[str, Any]],
    names: tuple[str, str],
) -> str:
    """Return the page of a comparison. Names are untrusted: they are escaped, and the page runs no script.

    Args:
        comparison: What `compare_reports` returns for the reports.
        reports: The reports.
        names: What the page calls them.
    """
    sections = [*_inputs(reports, names), *_settings(comparison, names), *_means(comparison, names)]
    title, told = f"{names[0]} and {names[1]}", prose(_opening(comparison, reports, names))
    head = header(title, "compare", f'<p class="opening">{told}</p>')
    main = "\n".join([*sections, *_layers(comparison), *_glossary(comparison)])
    return frame(title, "compare", f"{head}<main>\n{main}\n</main>", css=["page.css", "compare.css"])


def _opening(
    comparison: Mapping[str, Any],
    reports: tuple[Mapping[str, Any], Mapping[str, Any]],
    names: tuple[str, str],
) -> str:
    """How far both are from the base, in how many tensors they differ, where most, and what is unknown."""
    changed, apart = comparison["changed"], comparison["not_compared"]
    alone = sum(len(one["names"]) for one in comparison["action_alone"])
    of = plural(len(changed) + comparison["same"] + len(apart) + alone, "tensor")
    first, second = (reach_of(report, report) for report in reports)
    said = []
    if first is not None and second is not None and not is_same("reach", first, second):
        said.append(
            f"{names[0]} lies {first:.0%} of the way from the base to the fine-tuned weights, and {names[1]}"
            f" lies {second:.0%} of the way."
        )
    if changed:
        most = changed[0]
        one, other = arrow(most["measures"][most["by"]], most["by"]).split(" → ")
        what = "it" if most["by"] == "reason" else f"its {heading_of(most['by'])}"
        said += [
            f"{names[0]} and {names[1]} differ in {len(changed):,} of the {of} that both reports have.",
            f"They differ most in {most['name']}: {what} is {one} in {names[0]} and {other} in {names[1]}.",
            *_meaning(most["by"]),
        ]
    elif not apart and not alone:
        said.append(f"{names[0]} and {names[1]} agree in all {of} that both reports have.")
    if alone:
        said.append(f"In {alone:,} of the {of}, the action alone differs: edited or kept, or why kept.")
    if apart:
        have = "has" if len(apart) == 1 else "have"
        said.append(f"{len(apart):,} of the {of} {have} no measure in both reports.")
    return " ".join(said)


def _meaning(measure: str) -> Iterator[str]:
    """The first sentence of what a measure means, where that is known."""
    meaning = EXPLAINED.get(measure, "").partition(". ")[0].removesuffix(".")
    if meaning:
        yield f"The {heading_of(measure)} is {meaning[0].lower()}{meaning[1:]}."


def _inputs(reports: tuple[Mapping[str, Any], Mapping[str, Any]], names: tuple[str, str]) -> Iterator[Markup]:
    """What each report is about, and how far its result is from the base."""
    yield Markup("<section><h2>What was done</h2>")
    rows = []
    for report, name in zip(reports, names, strict=True):
        reach = reach_of(report, report)
        words = REACH.get(report["command"], "")
        far = "–" if reach is None else bar(reach, f"{words} {reach:.2f}")
        rows.append([name, Markup(f'<span class="told">{prose(" ".join(opening(report)))}</span>'), far])
    yield table(["report", "what was done", "from base (0) to fine-tuned (1)"], rows)
    yield Markup("</section>")


def _settings(comparison: Mapping[str, Any], names: tuple[str, str]) -> Iterator[Markup]:
    commands, arguments = comparison["commands"], comparison["arguments"]
    rows = [["command", *commands]] if commands[0] != commands[1] else []
    rows += [[name, *map(value_text, pair)] for name, pair in arguments.items()]
    if rows:
        yield Markup("<section><h2>Settings that differ</h2>")
        yield table(["option", *names], rows)
        if commands[0] != commands[1]:
            yield Markup(f'<p class="note">{text(ONLY_BOTH[0].upper() + ONLY_BOTH[1:])}.</p>')
        yield Markup("</section>")


def _means(comparison: Mapping[str, Any], names: tuple[str, str]) -> Iterator[Markup]:
    means = comparison["means"]
    if means:
        yield Markup("<section><h2>Means over the layers</h2>")
        rows = [
            [
                _word(name),
                *(f"{value:.4g}" for value in pair),
                "none" if is_same(name, *pair) else f"{pair[1] - pair[0]:+.4g}",
            ]
            for name, pair in means.items()
        ]
        yield table(["measure", *names, "difference"], rows)
        yield from _before_wise(comparison, means)
        yield Markup("</section>")


def _before_wise(comparison: Mapping[str, Any], measures: Collection[str]) -> Iterator[Markup]:
    if words := before_wise(comparison, measures):
        yield Markup(f'<p class="note">{prose(words)}.</p>')


def _layers(comparison: Mapping[str, Any]) -> Iterator[Markup]:
    yield Markup("<section><h2>Tensors that differ</h2>")
    changed = comparison["changed"][:MAX_ROWS]
    if changed:
        measures = compared_measures(changed)
        largest = max(one["change"] for one in changed) or 1.0
        rows = []
        for one in changed:
            cells = [arrow(one["measures"].get(name), name) for name in measures]
            rows.append([_name(one["name"]), bar(one["change"] / largest, change_words(one)), *cells])
        yield Markup(f'<p class="note">{text(ORDER[0].upper() + ORDER[1:])}.</p>')
        head = ["tensor", CHANGE, *map(_word, measures)]
        if not before_wise(comparison, comparison["means"]):
            yield from _before_wise(comparison, measures)
        yield table(head, rows[:SHOWN_ROWS])
        if others := rows[SHOWN_ROWS:]:
            summary = f"{plural(len(others), 'tensor')} that differ less"
            yield Markup(f"<details><summary>{summary}</summary>{table(head, others)}</details>")
    same = comparison["same"]
    facts = [f"{plural(same, 'tensor')} {'is' if same == 1 else 'are'} the same in both."] if same else []
    if len(changed) < len(comparison["changed"]):
        facts.append(f"{len(comparison['changed']) - len(changed):,} more tensors differ, less than these.")
    if apart := comparison["not_compared"]:
        facts.append(f"{plural(len(apart), 'tensor')} {WITHOUT_MEASURE}.")
    facts += [f"The action alone differs: {words}." for words in action_words(comparison)]
    for side in SIDES:
        if only := comparison[f"only_in_{side}"]:
            some = ", ".join([*only[:3], *(["…"] if len(only) > 3 else [])])
            facts.append(f"Only in the {side}: {plural(len(only), 'tensor')}, {some}.")
    yield items(facts)
    yield Markup("</section>")


def _glossary(comparison: Mapping[str, Any]) -> Iterator[Markup]:
    used = dict.fromkeys((*comparison["means"], *compared_measures(comparison["changed"])))
    meanings = {heading_of(name): EXPLAINED[name] for name in used if name in EXPLAINED}
    if meanings:
        yield glossary(meanings)


def _word(name: str) -> Markup:
    """A measure's label, with what it means where one points at it."""
    label = text(heading_of(name))
    return Markup(f'<abbr title="{text(EXPLAINED[name])}">{label}</abbr>') if name in EXPLAINED else label


def _name(name: str) -> Markup:
    """A layer's name, which may be broken after each of its dots."""
    broken = text(name).replace(".", ".<wbr>")
    return Markup(f'<span class="layer" title="{text(name)}">{broken}</span>')
