"""Pictures as the paper draws them, as SVG that is the same for the same results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams |= {"svg.hashsalt": "monosoup", "svg.fonttype": "none", "font.size": 9}

from matplotlib import pyplot  # noqa: E402

from docs.evidence.commands import ENERGIES, FRACTIONS, WEIGHTINGS  # noqa: E402
from docs.evidence.intervals import accuracy  # noqa: E402
from docs.evidence.study import STUDIES, Study  # noqa: E402

Results = list[dict[str, Any]]

IN, OUT = "#1f5fa8", "#b5422c"
SIDES = {"accuracy in distribution (%)": "#2f7fd6", "out of distribution (%)": "#d9583d"}
GREY = "#7a828c"
"""Colours with enough contrast to a white page and to a black one."""

STEPS = ("base", "fine-tuned", "edited")


def draw(study: Study, seeds: Results, folder: Path) -> list[Path]:
    """All pictures of a study for which it has results."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"*-{study.name}.svg"):
        old.unlink()
    drawn = []
    for kind, picture in PICTURES.items():
        needs_sweeps = kind in ("wise", "energy", "truncation", "depth")
        figure = picture(study, seeds) if shown(study, seeds) or not needs_sweeps else None
        if figure is not None:
            path = folder / f"{kind}-{study.name}.svg"
            figure.tight_layout()
            save(figure, path)
            drawn.append(path)
    return drawn


def save(figure: Any, path: Path, **options: bool) -> None:
    """Write a figure as SVG without a date and without spaces at the ends of lines."""
    figure.savefig(path, metadata={"Date": None}, **options)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    pyplot.close(figure)


def both(study: Study, scores: dict[str, str]) -> tuple[float, float]:
    """Accuracy in and out of distribution."""
    inside, outside = (
        statistics.fmean(accuracy(scores[task]) for task in side) for side in (study.inside, study.outside)
    )
    return inside, outside


def mean_of(study: Study, seeds: Results, recipe: str, label: str) -> tuple[float, float] | None:
    """The mean of both over the seeds that have this method."""
    found = [
        both(study, each["checkpoints"][recipe]["scores"][label])
        for each in seeds
        if label in each["checkpoints"].get(recipe, {"scores": {}})["scores"]
    ]
    return tuple(statistics.fmean(side) for side in zip(*found, strict=True)) if found else None


def shown(study: Study, seeds: Results) -> list[str]:
    """The fine-tunes on which all methods were run."""
    return [each for each in study.swept if mean_of(study, seeds, each, "edit --weighting low")]


def way(study: Study, seeds: Results, recipes: tuple[str, ...]) -> list[tuple[float, ...]]:
    """Mean accuracy in distribution, then out of it, of the bases, their fine-tunes and the edits."""
    points = [
        (
            both(study, each["base"]),
            *(both(study, each["checkpoints"][recipe]["scores"][label]) for label in ("fine-tuned", "edit")),
        )
        for each in seeds
        for recipe in recipes
        if recipe in each["checkpoints"]
    ]
    steps = [tuple(map(statistics.fmean, zip(*step, strict=True))) for step in zip(*points, strict=True)]
    return list(zip(*steps, strict=True))


def glance(found: dict[str, Results], folder: Path) -> None:
    """What fine-tuning and the edit did to accuracy: a column for each study, its own scale in each panel."""
    figure, panels = pyplot.subplots(2, len(found), figsize=(2.6 * len(found), 4.2), squeeze=False)
    for column, (name, seeds) in enumerate(found.items()):
        study = STUDIES[name]
        groups = {"healthy": study.healthy, "over-trained": study.overtrained}
        for axes, (group, recipes) in zip(panels[:, column], groups.items(), strict=True):
            sides = zip(way(study, seeds, recipes), SIDES.items(), (6, -6), strict=True)
            for values, (side, colour), offset in sides:
                axes.plot(STEPS, values, "o-", ms=4, color=colour, label=side)
                for point in enumerate(values):
                    text = {"ha": "center", "va": "bottom" if offset > 0 else "top", "color": colour}
                    axes.annotate(f"{point[1]:.1f}", point, (0, offset), textcoords="offset points", **text)
            axes.set_title(f"{name.replace('lora', 'LoRA')}, {group}", color=GREY)
            axes.margins(x=0.2, y=0.3)
            axes.tick_params(colors=GREY, left=False, labelleft=False, bottom=False)
            axes.spines[:].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, labelcolor=GREY
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save(figure, folder / "glance.svg", transparent=True)


def axes_for(study: Study, seeds: Results) -> tuple[Any, dict[str, Any]]:
    """A figure with axes for every fine-tune on which all methods were run."""
    recipes = shown(study, seeds)
    figure, axes = pyplot.subplots(1, max(len(recipes), 1), figsize=(7.5, 3), squeeze=False)
    return figure, dict(zip(recipes, axes[0], strict=False))


def arrows(study: Study, seeds: Results) -> Any:
    """From each fine-tuned checkpoint to its edit."""
    figure, axes = pyplot.subplots(figsize=(5, 3.6))
    for each in seeds:
        for recipe, own in each["checkpoints"].items():
            start, end = (both(study, own["scores"][label]) for label in ("fine-tuned", "edit"))
            colour = OUT if recipe in study.overtrained else IN
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour})
            axes.plot(*zip(start, end, strict=True), ",", color=colour)
    axes.plot([], [], color=IN, label="healthy")
    axes.plot([], [], color=OUT, label="over-trained")
    axes.set(xlabel="in distribution (%)", ylabel="out of distribution (%)")
    axes.legend(frameon=False)
    return figure


def wise(study: Study, seeds: Results) -> Any:
    """Interpolation curves from the base to both ends."""
    figure, panels = axes_for(study, seeds)
    base = [
        statistics.fmean(side) for side in zip(*(both(study, each["base"]) for each in seeds), strict=True)
    ]
    for recipe, axes in panels.items():
        for label, end, colour in (("wise --alpha", "fine-tuned", OUT), ("edit --wise", "edit", IN)):
            steps = [mean_of(study, seeds, recipe, f"{label} {value}") for value in ("0.25", "0.5", "0.75")]
            points = [base, *(each for each in steps if each), mean_of(study, seeds, recipe, end)]
            axes.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, label=label.split()[0])
        axes.set(title=recipe, xlabel="in distribution (%)", ylabel="out of distribution (%)")
        axes.legend(frameon=False)
    return figure


def curve(
    axes: Any, study: Study, seeds: Results, recipe: str, label: str, values: tuple[float, ...] = ENERGIES
) -> None:
    """Accuracy over the last option's values; dotted: fine-tuned."""
    found = {value: mean_of(study, seeds, recipe, f"{label} {value:g}") for value in values}
    points = {value: each for value, each in found.items() if each}
    finetuned = mean_of(study, seeds, recipe, "fine-tuned")
    for at, (side, colour) in enumerate({"in": IN, "out": OUT}.items()):
        axes.plot(list(points), [each[at] for each in points.values()], "o-", ms=3, color=colour, label=side)
        axes.axhline(finetuned[at], color=colour, lw=0.8, ls=":")
    axes.set(title=recipe, xlabel="energy R", ylabel="accuracy (%)")
    axes.legend(frameon=False)


def truncation(study: Study, seeds: Results) -> Any:
    """The strong part alone, over its share of the energy and of the singular values."""
    recipes = shown(study, seeds)
    figure, axes = pyplot.subplots(2, max(len(recipes), 1), figsize=(7.5, 5.5), squeeze=False)
    for recipe, above, below in zip(recipes, *axes, strict=False):
        curve(above, study, seeds, recipe, "edit --weighting high --energy")
        curve(below, study, seeds, recipe, "edit --weighting high --rank-fraction", FRACTIONS)
        below.set(xlabel="share of the singular values")
        below.set_visible(
            mean_of(study, seeds, recipe, f"edit --weighting high --rank-fraction {FRACTIONS[0]:g}")
            is not None
        )
    return figure


def energy(study: Study, seeds: Results) -> Any:
    """The split's energy; below, the parts of the weighting."""
    recipes = shown(study, seeds)
    figure, axes = pyplot.subplots(2, max(len(recipes), 1), figsize=(7.5, 5.5), squeeze=False)
    for recipe, above, below in zip(recipes, *axes, strict=False):
        curve(above, study, seeds, recipe, "edit --energy")
        labels = {"fine-tuned": "fine-tuned", "edit": "both"}
        labels |= {f"edit --weighting {weighting}": weighting for weighting in WEIGHTINGS}
        points = {name: mean_of(study, seeds, recipe, label) for label, name in labels.items()}
        for (name, point), marker in zip(points.items(), "os^vD*P", strict=True):
            if point:
                below.plot(*point, marker, ms=5, alpha=0.7, label=name)
        below.set(xlabel="in distribution (%)", ylabel="out of distribution (%)")
        below.legend(frameon=False, fontsize=7)
    return figure


def pairs(study: Study, seeds: Results) -> Any:
    """Gains of Model Stock over the better of two, and the cosines of the worst and the best pair."""
    found = []
    for each in seeds:
        for pair in each["pairs"]:
            members = [
                both(study, each["checkpoints"][name]["scores"]["fine-tuned"]) for name in pair["pair"]
            ]
            better = [max(side) for side in zip(*members, strict=True)]
            gains = [new - old for new, old in zip(both(study, pair["scores"]), better, strict=True)]
            found.append((gains, pair["cosines"]))
    if not found:
        return None
    figure, (scatter, histogram) = pyplot.subplots(1, 2, figsize=(7.5, 3))
    cosines = [statistics.fmean(each) for _, each in found]
    points = scatter.scatter(*zip(*(gains for gains, _ in found), strict=True), c=cosines, s=14)
    figure.colorbar(points, label="mean cosine")
    scatter.axhline(0, color="grey", lw=0.6)
    scatter.axvline(0, color="grey", lw=0.6)
    scatter.set(xlabel="gain in distribution", ylabel="gain out of distribution")
    ordered = sorted(found, key=lambda each: sum(each[0]))
    for (_, values), name, colour in ((ordered[0], "worst pair", OUT), (ordered[-1], "best pair", IN)):
        histogram.hist(values, bins=12, range=(min(0, *values), 1), alpha=0.6, color=colour, label=name)
    histogram.set(xlabel="cosine of a layer", ylabel="layers")
    histogram.legend(frameon=False)
    return figure


def depth(study: Study, seeds: Results) -> Any:
    """λ_high and λ_low of every layer, in the order of the model; the mean over seeds."""
    figure, panels = axes_for(study, seeds)
    for recipe, axes in panels.items():
        own = [
            each["checkpoints"][recipe]["spectrum"]["layers"]
            for each in seeds
            if recipe in each["checkpoints"]
        ]
        for measure, colour in (("lambda_high", IN), ("lambda_low", OUT)):
            values = [
                statistics.fmean(layer[measure] for layer in layers) for layers in zip(*own, strict=True)
            ]
            axes.plot(values, "o-", ms=3, color=colour, label=measure)
        axes.set(title=recipe, xlabel="layer", ylabel="coefficient", ylim=(0, 1))
        axes.legend(frameon=False)
    return figure


def features(study: Study, seeds: Results) -> Any:
    """CKA of every block with the base's block, the mean over seeds: fine-tunes below, tasks side by side."""
    found = [each["features"] for each in seeds if each["features"]]
    if not found:
        return None
    recipes = [recipe for recipe in study.swept if recipe in found[0]]
    figure, axes = pyplot.subplots(
        len(recipes), len(study.mapped), figsize=(7.5, 1.9 * len(recipes)), squeeze=False
    )
    for recipe, row in zip(recipes, axes, strict=True):
        for task, panel in zip(study.mapped, row, strict=True):
            own = [each[recipe][task] for each in found if recipe in each]
            models = list(own[0])
            means = [
                [statistics.fmean(block) for block in zip(*(each[model] for each in own), strict=True)]
                for model in models
            ]
            lowest = min(min(line) for line in means)
            panel.imshow(means, cmap="viridis", vmin=lowest, vmax=1, aspect="auto")
            for at, line in enumerate(means):
                for block, value in enumerate(line):
                    colour = "white" if value < (1 + lowest) / 2 else "black"
                    panel.text(block, at, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
            panel.set(title=f"{recipe}, {task}", xlabel="block")
            panel.set_yticks(
                range(len(models)), models if panel is row[0] else [""] * len(models), fontsize=7
            )
    return figure


PICTURES = {
    "arrows": arrows,
    "wise": wise,
    "energy": energy,
    "truncation": truncation,
    "pairs": pairs,
    "depth": depth,
    "features": features,
}
"""In the order of the page."""
