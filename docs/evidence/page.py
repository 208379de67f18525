"""The page docs/evidence.md, from the results alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import rankdata

from docs.evidence.commands import AT_MEAN, alike
from docs.evidence.data import ROOT
from docs.evidence.intervals import Correlation, Estimate, accuracy, difference, estimate, spearman
from docs.evidence.study import STUDIES, Study, results
from monosoup_cli.report.verdict import LARGE_UPDATE, SMALL_UPDATE

Results = list[dict[str, Any]]

TITLES = {"text": "Text: sentiment", "vision": "Vision: digits", "lora": "LoRA: sentiment by adapters"}

INTRODUCTION = """\
# Evidence

<!-- written by make evidence; edit docs/evidence/page.py instead -->

`make evidence` trains small models, runs every method on them through the command line, and writes this
page. It needs no GPU and no model hub. The page is made from the scores of every example, which are in
`docs/evidence/results/`. A second run on the same kind of processor gives the same answers; another kind
trains other weights. We made the LoRA study on two kinds: 93 of the 96 differences that the second one found
lay in the intervals of the first.

How to read the tables: "in" is accuracy in distribution, and "out" is the mean accuracy over the shifted
tasks. A method's figures are differences from the fine-tuned checkpoint, in points. The brackets are 95 %
intervals, paired over the examples. An interval has room for what other examples might have given, and for
what other seeds might have given. A seed draws the training data, and in vision all data. The figures after
a bracket are those of single seeds. The intervals are not corrected for their number: if a hundred methods
had no effect at all, about five would still seem to have one. **Bold** marks an interval without 0.

"wise at the equivalent α" is the interpolation between base and fine-tuned checkpoint that comes nearest to
`edit`; `inspect-spectrum` shows this α. The row below it compares `edit` with that interpolation, so it shows
what the edit does beyond interpolating. "wise at the mean λ_high" takes the mean of the layers' λ_high as its
α.
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
    "lora": """\
The base and the data are those of the first study. The base and its head are frozen; adapters of rank 8 on
all linear layers are trained. Two are healthy: 5·10⁻⁴ for 2 epochs, and 2·10⁻³ for 3. One is over-trained:
5·10⁻³ for 6 epochs. The commands read the adapters.
""",
}

GROUPS = {"healthy": "Healthy fine-tunes", "overtrained": "Over-trained fine-tunes"}

BEYOND = "`edit` against wise at the equivalent α"

FIRST = (
    "edit",
    "edit --split energy-entropy",
    "edit --split noise",
    "edit --split noise --weighting high",
    "edit --energy 0.8",
    "edit --wise 0.5",
    "wise --alpha 0.5",
    alike("entropy"),
    BEYOND,
    AT_MEAN,
)
"""The methods that are run on every fine-tune, as the first table shows them."""

PICTURES = {
    "arrows": "From each fine-tuned checkpoint to its edit (the paper's Fig. 12)",
    "wise": "Interpolation from the base to the fine-tuned checkpoint, and to the edit (Fig. 4)",
    "energy": "The energy at which the update is split, and the parts of the weighting (Figs. 5 and 10)",
    "truncation": "The strong part alone (Figs. 3, 6 and 7)",
    "pairs": "Model Stock of two fine-tunes against the better of them, and their cosines (Fig. 1)",
    "depth": "The coefficients over depth (Fig. 13)",
    "features": "Linear CKA of each block's features with the base's (Figs. 8 and 9)",
}

MEASURES = {
    "relative_update": "‖Δ‖/‖W0‖",
    "k_ratio": "k/r",
    "cos_alpha": "cos low",
    "lambda_high": "λ_high",
    "anisotropy": "anisotropy",
    "equivalent_alpha": "equivalent α",
    "noise_ratio": "k at the noise edge / r",
    "half_way": "median σ / σ₁",
}


GLANCE = "Mean accuracy of the bases, their fine-tunes and the edits"

COLLAPSED = 10
"""Points below the base in distribution from which training has failed."""

FEWEST = 4
"""Seeds that a correlation is computed from."""


def write_page() -> None:
    """The page and its pictures."""
    from docs.evidence.pictures import draw, glance

    found = {name: list(results(study)) for name, study in STUDIES.items()}
    found = {name: each for name, each in found.items() if each}
    folder = ROOT / "docs" / "evidence" / "pictures"
    drawn = {name: draw(STUDIES[name], each, folder) for name, each in found.items()}
    glance(found, folder)
    (ROOT / "docs" / "evidence.md").write_text(page(found, drawn))


def page(found: dict[str, Results], drawn: dict[str, list[Path]]) -> str:
    """The text of the page."""
    parts = [INTRODUCTION, *overview(found)]
    for name, seeds in found.items():
        parts += section(STUDIES[name], seeds, drawn.get(name, []))
    return folded("\n".join([*parts, *decides(found)]))


WIDTH = 112
"""Characters of a line of the page."""

UNBROKEN = "\0"
"""Stands for a space in code while lines are wrapped."""


def folded(text: str) -> str:
    """The text with its long lines wrapped, but for tables and pictures; code stays on its line."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("|", "![")) or len(line) <= WIDTH:
            lines.append(line)
            continue
        whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", UNBROKEN), line)
        indent = "  " if line.startswith("- ") else ""
        parts = textwrap.wrap(
            whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [part.replace(UNBROKEN, " ") for part in parts]
    return "\n".join(lines)


def section(study: Study, seeds: Results, drawn: list[Path]) -> Iterable[str]:
    """What one study found."""
    yield f"## {TITLES[study.name]}\n"
    yield SETTINGS[study.name]
    yield rests_on(study, seeds)
    yield checkpoints(study, seeds)
    yield collapsed(study, seeds)
    for group, title in GROUPS.items():
        rows = methods(study, seeds, getattr(study, group))
        if rows:
            yield f"### {title}\n"
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
        alt = PICTURES[kind].split(" (")[0]
        yield f"![{alt}](evidence/pictures/{path.name})\n\n*{PICTURES[kind]}.*\n"


def overview(found: dict[str, Results]) -> Iterable[str]:
    """The methods of every fine-tune side by side, in all studies."""
    yield "## At a glance\n"
    yield f"![{GLANCE}](evidence/pictures/glance.svg)\n\n*{GLANCE}.*\n"
    yield "Points gained against the fine-tuned checkpoint; the intervals are in the tables below.\n"
    for group, title in GROUPS.items():
        of_study = {
            name: {row[0]: row for row in methods(STUDIES[name], seeds, getattr(STUDIES[name], group))}
            for name, seeds in found.items()
        }
        rows = [
            [
                named(label),
                *(
                    emphasised(side, signed(side.mean))
                    for rows in of_study.values()
                    if label in rows
                    for side in rows[label][2:]
                ),
            ]
            for label in FIRST
        ]
        yield f"{title}:\n"
        yield table([title.lower(), *(f"{name}, {side}" for name in found for side in ("in", "out"))], rows)


def named(label: str) -> str:
    """A method as the page writes it: commands as code."""
    return label if " at the " in label else f"`{label}`"


def emphasised(found: Estimate, text: str) -> str:
    """In bold if the interval is without 0."""
    return text if found.word == "not shown" else f"**{text}**"


def rests_on(study: Study, seeds: Results) -> str:
    """Which seeds and checkpoints there are, and on what."""
    count = sum(len(each["checkpoints"]) for each in seeds)
    sizes = ", ".join(f"{len(answers)} {task}" for task, answers in seeds[0]["base"].items())
    versions = ", ".join(f"{name} {version}" for name, version in seeds[0]["versions"].items())
    planned = len(study.recipes) * len(study.seeds)
    numbers = ", ".join(str(each["seed"]) for each in seeds)
    return (
        f"The results rest on {count} of the {planned} fine-tunes of a full run, from seed {numbers}."
        f" Each model was scored on {sizes}. The versions were {versions}.\n"
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


def collapsed(study: Study, seeds: Results) -> str:
    """The fine-tunes that are far worse than their base where they were trained."""

    def inside(scores: dict[str, str]) -> float:
        return sum(accuracy(scores[task]) for task in study.inside) / len(study.inside)

    found = [
        f"{recipe} of seed {each['seed']}"
        for each in seeds
        for recipe, own in each["checkpoints"].items()
        if inside(own["scores"]["fine-tuned"]) < inside(each["base"]) - COLLAPSED
    ]
    return (
        f"Fine-tunes that are more than {COLLAPSED} points below their base in distribution:"
        f" {', '.join(found) or 'none'}. The tables count such fine-tunes, too.\n"
    )


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
            rows.append(row(study, label, of_recipes(seeds, recipes, label, "fine-tuned")))
        if label == alike("entropy"):
            rows.append(row(study, BEYOND, of_recipes(seeds, recipes, "edit", label)))
    return rows


Pair = tuple[int, dict[str, str], dict[str, str]]
"""A seed, what is scored, and what it is compared with."""


def of_recipes(seeds: Results, recipes: tuple[str, ...], label: str, against: str) -> list[Pair]:
    """The scores of two methods on all fine-tunes that have both."""
    found = [(each["seed"], each["checkpoints"].get(recipe)) for each in seeds for recipe in recipes]
    scores = [(seed, own["scores"]) for seed, own in found if own]
    return [(seed, own[label], own[against]) for seed, own in scores if label in own]


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


def row(study: Study, label: str, pairs: list[Pair]) -> Row:
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
            [named(label), str(count), *shown(inside), *shown(outside)]
            for label, count, inside, outside in rows
        ],
    )


def shown(found: Estimate) -> list[str]:
    """A difference, its interval, and the seeds."""
    text = f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"
    return [emphasised(found, text), " ".join(signed(each) for each in found.seeds)]


def signed(value: float, digits: int = 1) -> str:
    """A number with a sign, unless it is 0; a true minus."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def summary(rows: list[Row]) -> str:
    """For every method, where it helped and where not."""

    def those(side: Callable[[Row], Estimate], word: str) -> str:
        return ", ".join(named(row[0]) for row in rows if side(row).word == word) or "none"

    sides = {"In distribution": lambda row: row[2], "Out of distribution": lambda row: row[3]}
    lines = [
        f"- {title}, these helped: {those(side, 'helped')}. These hurt: {those(side, 'hurt')}."
        for title, side in sides.items()
    ]
    return "\n".join([*lines, "- The intervals of all others contain 0, so they show neither.\n"])


def decides(found: dict[str, Results]) -> Iterable[str]:
    """What the spectra tell of the gain, over all checkpoints."""
    yield "## What decides it\n"
    yield (
        "`inspect-spectrum` measures the update without data. Do its measures predict what `edit` gains out"
        " of distribution? The table has Spearman's rank correlation over checkpoints. The 95 % interval is"
        " from a bootstrap over whole seeds, as the checkpoints of a seed share their base and data. In the"
        " last column, checkpoints are ranked within their study.\n"
    )
    studies = {name: gains_of(STUDIES[name], seeds) for name, seeds in found.items()}
    studies |= {"all": [each for gains in studies.values() for each in ranked(gains)]}
    header = ["measure", *(f"{name} ({len(each)})" for name, each in studies.items())]
    rows, telling = [], []
    for measure, title in MEASURES.items():
        cells = []
        for name, gains in studies.items():
            if len({gain.seed for gain in gains}) < FEWEST:
                cells.append("too few")
                continue
            values = [each.measures[measure] for each in gains]
            if len(set(values)) == 1:
                cells.append("constant")
                continue
            correlation = spearman(values, [each.gain for each in gains], [each.seed for each in gains])
            cells.append(hundredths(correlation))
            telling += [f"{title} ({name})"] if correlation.is_shown else []
        rows.append([title, *cells])
    yield table(header, rows)
    yield f"The interval does not contain 0 for these: {', '.join(telling) or 'none'}.\n"
    yield from by_size(found)


SIZES = {
    f"below {SMALL_UPDATE:g}": (0.0, SMALL_UPDATE),
    f"{SMALL_UPDATE:g} to {LARGE_UPDATE:g}": (SMALL_UPDATE, LARGE_UPDATE),
    f"from {LARGE_UPDATE:g} on": (LARGE_UPDATE, float("inf")),
}
"""Of the mean ‖Δ‖/‖W0‖."""


def by_size(found: dict[str, Results]) -> Iterable[str]:
    """The gain of `edit` out of distribution, for small and large updates."""
    yield (
        "The next table has what `edit` gained out of distribution, by the mean ‖Δ‖/‖W0‖ of a checkpoint's"
        " layers, with the number of checkpoints in brackets. It is why `inspect-spectrum` says whether an"
        " update is small or large.\n"
    )
    rows = []
    for title, (low, high) in SIZES.items():
        cells = []
        for name, seeds in found.items():
            pairs = [
                (each["seed"], own["scores"]["edit"], own["scores"]["fine-tuned"])
                for each in seeds
                for own in each["checkpoints"].values()
                if low <= own["spectrum"]["means"]["relative_update"] < high
            ]
            outside = row(STUDIES[name], title, pairs)[3] if pairs else None
            cells.append(f"{shown(outside)[0]} ({len(pairs)})" if outside else "none")
        rows.append([title, *cells])
    yield table(["mean ‖Δ‖/‖W0‖", *found], rows)


class Gain(NamedTuple):
    """What was known of a checkpoint without data, and what `edit` gained out of distribution."""

    seed: str
    measures: dict[str, float]
    gain: float


def gains_of(study: Study, seeds: Results) -> list[Gain]:
    """For every checkpoint its measures, and the gain of `edit` out of distribution."""
    found = []
    for each in seeds:
        for own in each["checkpoints"].values():
            before, after = own["scores"]["fine-tuned"], own["scores"]["edit"]
            gain = sum(accuracy(after[task]) - accuracy(before[task]) for task in study.outside)
            measures = {name: own["spectrum"]["means"][name] for name in MEASURES}
            found.append(Gain(f"{study.name} {each['seed']}", measures, gain / len(study.outside)))
    return found


def ranked(gains: list[Gain]) -> list[Gain]:
    """The same with ranks from 0 to 1 in place of values, so that studies compare."""

    def ranks(values: list[float]) -> list[float]:
        return [(rank - 0.5) / len(values) for rank in rankdata(values)]

    measures = {name: ranks([each.measures[name] for each in gains]) for name in MEASURES}
    return [
        Gain(each.seed, {name: values[at] for name, values in measures.items()}, gain)
        for at, (each, gain) in enumerate(zip(gains, ranks([each.gain for each in gains]), strict=True))
    ]


def hundredths(found: Correlation) -> str:
    """A correlation with its interval."""
    value, low, high = (signed(each, 2) for each in found)
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if found.is_shown else text


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; the first column is text."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
