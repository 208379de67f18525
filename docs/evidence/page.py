"""The page docs/evidence.md, from the results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docs.evidence.data import ROOT
from docs.evidence.intervals import Estimate, accuracy, difference, estimate, spearman, spearman_interval
from docs.evidence.study import STUDIES, Study, results

Results = list[dict[str, Any]]

TITLES = {"text": "Text: sentiment", "vision": "Vision: digits"}

INTRODUCTION = """\
# Evidence

<!-- written by make evidence; edit docs/evidence/page.py instead -->

`make evidence` trains small models, runs every method on them through the command line, and writes this
page. It needs no GPU and no model hub. The scores of every example are in `docs/evidence/results/`, and the
page comes from them alone.

How to read the tables: "in" is accuracy in distribution, "out" is the mean accuracy over the shifted tasks.
A method's figures are differences from the fine-tuned checkpoint, in points. The brackets are 95 %
intervals, paired over the examples. They say what other examples might have given, not what other models
might. Each figure after a bracket is one seed. The intervals are not corrected for their number: of a
hundred methods without any effect, about five would still seem to have one. **Bold** marks an interval
without 0.
"""

SETTINGS = {
    "text": """\
The base is MiniLM-L6, with a linear probe as its head. It is fine-tuned on 3,000 movie-review sentences.
Out of distribution are sentences of product reviews, newspaper editorials and tweets (Hutto and Gilbert,
2014). The label is the sign of the mean human rating; ratings within 0.5 of 0 are left out. Four fine-tunes
are healthy: 2·10⁻⁵ for 2 epochs, 5·10⁻⁵ for 2 and for 3, and 10⁻⁴ for 2. One is over-trained: 5·10⁻⁴ for 4
epochs.
""",
    "vision": """\
The base is a small convolutional network. It learned scikit-learn's digits of five forms, turned, moved and
noisy. It is fine-tuned on clean digits of five other forms. In distribution are further digits from these.
Out of distribution are digits of forms that no network saw, and held-out digits that are turned and moved,
or noisy. Four fine-tunes are healthy: 3·10⁻⁴ for 10 epochs, 10⁻³ for 10 and for 30, and 3·10⁻³ for 10. One
is over-trained: 10⁻² for 30 epochs.
""",
}

PICTURES = {
    "arrows": "From each fine-tuned checkpoint to its edit (the paper's Fig. 12)",
    "wise": "Interpolation from the base to the fine-tuned checkpoint, and to the edit (Fig. 4)",
    "energy": "The energy at which the update is split, and the parts of the weighting (Figs. 5 and 10)",
    "truncation": "The strong part alone (Figs. 3, 6 and 7)",
    "pairs": "Model Stock of two fine-tunes against the better of them, and their cosines (Fig. 1)",
    "depth": "The coefficients over depth (Fig. 13)",
}

MEASURES = {
    "relative_update": "‖Δ‖/‖W0‖",
    "k_ratio": "k/r",
    "cos_alpha": "cos α",
    "lambda_high": "λ_high",
    "anisotropy": "anisotropy",
    "equivalent_alpha": "equivalent α",
    "noise_ratio": "k at the noise edge / r",
    "half_way": "median σ / σ₁",
}


FEWEST = 10
"""Checkpoints that a correlation is computed from."""


def write_page() -> None:
    """The page and its pictures."""
    from docs.evidence.pictures import draw

    found = {name: list(results(study)) for name, study in STUDIES.items()}
    found = {name: each for name, each in found.items() if each}
    folder = ROOT / "docs" / "evidence" / "pictures"
    drawn = {name: draw(STUDIES[name], each, folder) for name, each in found.items()}
    (ROOT / "docs" / "evidence.md").write_text(page(found, drawn))


def page(found: dict[str, Results], drawn: dict[str, list[Path]]) -> str:
    """The text of the page."""
    parts = [INTRODUCTION]
    for name, seeds in found.items():
        parts += section(STUDIES[name], seeds, drawn.get(name, []))
    return "\n".join([*parts, *decides(found)])


def section(study: Study, seeds: Results, drawn: list[Path]) -> Iterable[str]:
    """What one study found."""
    yield f"## {TITLES[study.name]}\n"
    yield SETTINGS[study.name]
    yield rests_on(study, seeds)
    yield checkpoints(study, seeds)
    groups = {"healthy": study.healthy, "over-trained": study.overtrained}
    for title, recipes in groups.items():
        rows = methods(study, seeds, recipes)
        if rows:
            yield f"### {title.capitalize()} fine-tunes\n"
            yield method_table(rows)
            yield summary(rows)
    rows = together(study, seeds)
    if rows:
        yield "### All fine-tunes of a seed together\n"
        yield "The differences are from the mean score of the fine-tunes.\n"
        yield method_table(rows)
        yield summary(rows)
    for path in drawn:
        kind = path.stem.split("-")[0]
        yield f"![{PICTURES[kind]}](evidence/pictures/{path.name})\n\n*{PICTURES[kind]}.*\n"


def rests_on(study: Study, seeds: Results) -> str:
    """Which seeds and checkpoints there are, and on what."""
    count = sum(len(each["checkpoints"]) for each in seeds)
    sizes = ", ".join(f"{len(answers)} {task}" for task, answers in seeds[0]["base"].items())
    versions = ", ".join(f"{name} {version}" for name, version in seeds[0]["versions"].items())
    planned = len(study.recipes) * len(study.seeds)
    numbers = ", ".join(str(each["seed"]) for each in seeds)
    return (
        f"The results rest on {count} of the {planned} fine-tunes of a full run,"
        f" from seed {numbers}. Examples scored: {sizes}."
        f" Made with {versions}.\n"
    )


def checkpoints(study: Study, seeds: Results) -> str:
    """The accuracy of the base and of every fine-tune, before anything is edited."""
    scored: dict[str, list[dict[str, str]]] = {"base": [each["base"] for each in seeds]}
    for recipe in study.recipes:
        own = [each["checkpoints"][recipe] for each in seeds if recipe in each["checkpoints"]]
        scored[recipe] = [each["scores"]["fine-tuned"] for each in own]
    tasks = (*study.inside, *study.outside)
    rows = [
        [
            name,
            str(len(own)),
            *(f"{sum(accuracy(each[task]) for each in own) / len(own):.1f}" for task in tasks),
        ]
        for name, own in scored.items()
        if own
    ]
    return table(["checkpoint", "seeds", *tasks], rows)


Row = tuple[str, int, Estimate, Estimate]
"""A method, how many checkpoints it was run on, and the differences in and out of distribution."""


def methods(study: Study, seeds: Results, recipes: tuple[str, ...]) -> list[Row]:
    """Every method on some fine-tunes, against the fine-tune itself."""
    labels = dict.fromkeys(
        label
        for each in seeds
        for recipe in recipes
        for label in each["checkpoints"].get(recipe, {"scores": {}})["scores"]
    )
    rows = []
    for label in labels:
        if label != "fine-tuned":
            pairs = [
                (each["seed"], own["scores"][label], own["scores"]["fine-tuned"])
                for each in seeds
                for recipe in recipes
                if label in (own := each["checkpoints"].get(recipe, {"scores": {}}))["scores"]
            ]
            rows.append(row(study, label, pairs))
    return rows


def together(study: Study, seeds: Results) -> list[Row]:
    """What is made of all fine-tunes, against each of them."""
    labels = dict.fromkeys(label for each in seeds for label in each["together"])
    return [
        row(
            study,
            label,
            [
                (each["seed"], each["together"][label], own["scores"]["fine-tuned"])
                for each in seeds
                if label in each["together"]
                for own in each["checkpoints"].values()
            ],
        )
        for label in labels
    ]


def row(study: Study, label: str, pairs: list[tuple[int, dict[str, str], dict[str, str]]]) -> Row:
    """A method's differences on both sides."""

    def side(tasks: tuple[str, ...]) -> Estimate:
        rows: dict[str, dict[int, list[list[float]]]] = {task: {} for task in tasks}
        for seed, after, before in pairs:
            for task in tasks:
                rows[task].setdefault(seed, []).append(difference(after[task], before[task]))
        return estimate(rows, same_examples=study.same_examples)

    return label, len(pairs), side(study.inside), side(study.outside)


def method_table(rows: list[Row]) -> str:
    """Methods with their intervals."""
    return table(
        ["method", "checkpoints", "in", "seeds", "out", "seeds"],
        [
            [f"`{label}`" if "α" not in label else label, str(count), *shown(inside), *shown(outside)]
            for label, count, inside, outside in rows
        ],
    )


def shown(found: Estimate) -> list[str]:
    """A difference, its interval, and the seeds."""
    text = f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"
    text = text if found.word == "not shown" else f"**{text}**"
    return [text, " ".join(signed(each) for each in found.seeds)]


def signed(value: float) -> str:
    """Points with a sign; a true minus."""
    return f"{value:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def summary(rows: list[Row]) -> str:
    """For every method, where it helped and where not."""

    def named(side: Callable[[Row], Estimate], word: str) -> str:
        names = [f"`{row[0]}`" if "α" not in row[0] else row[0] for row in rows if side(row).word == word]
        return ", ".join(names) or "none"

    sides = {"In distribution": lambda row: row[2], "Out of distribution": lambda row: row[3]}
    lines = [
        f"- {title}, helped: {named(side, 'helped')}. Hurt: {named(side, 'hurt')}."
        for title, side in sides.items()
    ]
    return "\n".join([*lines, "- For all others the interval has 0 in it: neither is shown.\n"])


def decides(found: dict[str, Results]) -> Iterable[str]:
    """What the spectra tell of the gain, over all checkpoints."""
    yield "## What decides it\n"
    yield (
        "Does what `inspect-spectrum` knows without data predict the gain of `edit` out of distribution? The"
        " table has Spearman's correlation over checkpoints, with a 95 % bootstrap interval.\n"
    )
    gains = {name: gains_of(STUDIES[name], seeds) for name, seeds in found.items()}
    header = ["measure", *(f"{name} ({len(each)})" for name, each in gains.items())]
    rows, telling = [], []
    for measure, title in MEASURES.items():
        cells = []
        for name, each in gains.items():
            if len(each) < FEWEST:
                cells.append("too few")
                continue
            values, gain = [means[measure] for means, _ in each], [gain for _, gain in each]
            low, high = spearman_interval(values, gain)
            cell = f"{hundredths(spearman(values, gain))} [{hundredths(low)}, {hundredths(high)}]"
            cells.append(cell if low <= 0 <= high else f"**{cell}**")
            telling += [] if low <= 0 <= high else [f"{title} ({name})"]
        rows.append([title, *cells])
    yield table(header, rows)
    yield (
        f"The interval is without 0 for: {', '.join(telling) or 'none'}. Checkpoints of a seed share their"
        " base and data, so the true intervals are wider.\n"
    )


def gains_of(study: Study, seeds: Results) -> list[tuple[dict[str, float], float]]:
    """For every checkpoint its measures, and the gain of `edit` out of distribution."""
    found = []
    for each in seeds:
        for own in each["checkpoints"].values():
            before, after = own["scores"]["fine-tuned"], own["scores"]["edit"]
            gain = sum(accuracy(after[task]) - accuracy(before[task]) for task in study.outside)
            found.append((own["spectrum"]["means"], gain / len(study.outside)))
    return found


def hundredths(value: float) -> str:
    """A correlation."""
    return f"{value:+.2f}".replace("-", "−")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; the first column is text."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
