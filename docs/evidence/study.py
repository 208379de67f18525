"""A study: which checkpoints are made, which commands are run on them, and how they score.

Every step leaves a file in .evidence/, and a step whose file is there is not run again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from docs.evidence.data import CACHE

RESULTS = Path(__file__).parent / "results"

Scores = dict[str, str]
"""For each task a string of 0 and 1: whether each example was answered right."""


class Recipe(NamedTuple):
    """How a fine-tune is trained."""

    rate: float
    epochs: int


@dataclass(frozen=True)
class Study:
    """What a study is made of. Its module has `make_base`, `fine_tune` and `Scorer`."""

    name: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    healthy: tuple[str, ...]
    overtrained: tuple[str, ...]
    swept: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    same_examples: bool = True

    @property
    def recipes(self) -> tuple[str, ...]:
        """All fine-tunes."""
        return self.healthy + self.overtrained

    @property
    def module(self) -> Any:
        """What trains and scores."""
        return import_module(f"docs.evidence.{self.name}")


STUDIES = {
    "text": Study(
        "text",
        inside=("movies",),
        outside=("products", "editorials", "tweets"),
        healthy=("gentle", "usual", "long", "fast"),
        overtrained=("overtrained",),
        swept=("usual", "overtrained"),
    ),
    "vision": Study(
        "vision",
        inside=("same hands",),
        outside=("other hands", "moved", "noisy"),
        healthy=("gentle", "usual", "long", "fast"),
        overtrained=("overtrained",),
        swept=("usual", "overtrained"),
        same_examples=False,
    ),
}


@dataclass(frozen=True)
class Call:
    """One run of monosoup. It makes one checkpoint, or one for each value of a sweep."""

    words: str
    sweep: str = ""
    values: tuple[float, ...] = ()

    def command(self, inputs: list[Path], out: Path) -> list[str]:
        """Its command line."""
        command, *options = shlex.split(self.words)
        if self.sweep:
            options += [f"--{self.sweep}", ",".join(f"{value:g}" for value in self.values)]
        return [command, *map(str, inputs), "-o", str(out), *options, "--quiet"]

    def folders(self, out: Path) -> dict[str, Path]:
        """What it makes: the command, as the page names it, and the folder of the checkpoint."""
        if not self.sweep:
            return {self.words: out}
        names = {value: f"{self.sweep}-{value:g}" if len(self.values) > 1 else "" for value in self.values}
        return {f"{self.words} --{self.sweep} {value:g}": out / name for value, name in names.items()}


CORE = (
    Call("edit"),
    Call("edit --split energy-entropy"),
    Call("edit --split noise"),
    Call("edit --split noise --weighting high"),
)
"""Run on every fine-tune, with one value of each sweep."""

WEIGHTINGS = ("spectral", "alignment", "uniform", "high", "low")

SPLITS = ("entropy", "energy-entropy", "noise")


def calls(swept: bool) -> list[Call]:
    """The commands for one fine-tune: all of them, or the few that every fine-tune gets."""
    if not swept:
        return [
            *CORE,
            Call("edit", "energy", (0.8,)),
            Call("edit", "wise", (0.5,)),
            Call("wise", "alpha", (0.5,)),
        ]
    return [
        *CORE,
        Call("edit", "energy", (0.5, 0.7, 0.8, 0.9, 0.95)),
        Call("edit --weighting high", "energy", (0.5, 0.8, 0.95)),
        *(Call(f"edit --weighting {weighting}") for weighting in WEIGHTINGS),
        Call("edit", "wise", (0.25, 0.5, 0.75)),
        Call("wise", "alpha", (0.25, 0.5, 0.75)),
        Call("lines --alpha 0.5 --beta 0.5"),
    ]


TOGETHER = (Call("soup"), Call("stock"), Call("sfgs --threshold 0.5"), Call("edit"))
"""The commands for all fine-tunes of a seed together."""


def alike(split: str) -> str:
    """How the page names the interpolation that comes nearest to an edit."""
    return "wise at the α of edit" + ("" if split == "entropy" else f" --split {split}")


def run(words: list[str]) -> str:
    """Run monosoup as a user does, and return what it prints as data."""
    done = subprocess.run(
        [sys.executable, "-m", "monosoup_cli", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


class Seed:
    """One seed of a study: its checkpoints and scores in the cache."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.seed = study, seed
        self.folder = CACHE / study.name / f"seed-{seed}"
        self._scorer: Any = None

    def run(self) -> None:
        """All steps that were not done yet, and then the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        module, base = self.study.module, self.folder / "base.safetensors"
        self._made(base, lambda path: module.make_base(self.seed, path))
        for recipe in self.study.recipes:
            path = self.folder / f"{recipe}.safetensors"
            self._made(path, lambda path, recipe=recipe: module.fine_tune(self.seed, recipe, base, path))
        steps = {"base": lambda: self._score(base)}
        order = sorted(self.study.recipes, key=lambda recipe: recipe not in self.study.swept)
        steps |= {recipe: partial(self.checkpoint, recipe) for recipe in order}
        steps |= {"together": self.together, "pairs": self.pairs}
        for name, find in steps.items():
            self._step(name, find)
            self.write()

    def write(self) -> None:
        """The results of the steps that were done."""
        done = {path.stem: json.loads(path.read_text()) for path in self.folder.glob("*.json")}
        found = {
            "study": self.study.name,
            "seed": self.seed,
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "scikit-learn")},
            "base": done["base"],
            "checkpoints": {recipe: done[recipe] for recipe in self.study.recipes if recipe in done},
            "together": done.get("together", {}),
            "pairs": done.get("pairs", []),
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.study.name}-{self.seed}.json").write_text(json.dumps(found, indent=1) + "\n")

    def checkpoint(self, recipe: str) -> dict[str, Any]:
        """A fine-tune, what its spectra are, and the scores of all that is made of it."""
        inputs, swept = self._inputs(recipe), recipe in self.study.swept
        splits = SPLITS if swept else SPLITS[:1]
        inspected = {split: json.loads(run(inspection(inputs, split))) for split in splits}
        alphas = {split: report["verdict"]["interpolation"]["alpha"] for split, report in inspected.items()}
        measured = spectrum(inspected["entropy"])
        scores = {"fine-tuned": self._score(self.folder / f"{recipe}.safetensors")}
        for call in calls(swept):
            scores |= self._scored(call, inputs)
        for split, alpha in alphas.items():
            (found,) = self._scored(Call(f"wise --alpha {alpha:.4f}"), inputs).values()
            scores[alike(split)] = found
        return {"spectrum": measured, "alphas": alphas, "scores": scores}

    def together(self) -> dict[str, Scores]:
        """What is made of all fine-tunes."""
        scores: dict[str, Scores] = {}
        for call in TOGETHER:
            scores |= self._scored(call, self._inputs(*self.study.recipes))
        return scores

    def pairs(self) -> list[dict[str, Any]]:
        """Model Stock of every two fine-tunes, with the cosines of their updates."""
        found = []
        for pair in combinations(self.study.recipes, 2):
            out = self.folder / "out"
            (scores,) = self._scored(Call("stock"), self._inputs(*pair), keep=True).values()
            report = json.loads((out / "monosoup_report.json").read_text())
            cosines = [layer["cosine"] for layer in report["layers"] if layer["action"] == "edited"]
            found.append({"pair": pair, "cosines": [round(each, 4) for each in cosines], "scores": scores})
            shutil.rmtree(out)
        return found

    def _inputs(self, *recipes: str) -> list[Path]:
        """The base, and the fine-tunes: adapters where there are some."""
        adapters = [self.folder / recipe for recipe in recipes]
        files = [self.folder / f"{recipe}.safetensors" for recipe in ("base", *recipes)]
        return [files[0], *adapters] if adapters[0].is_dir() else files

    def _scored(self, call: Call, inputs: list[Path], *, keep: bool = False) -> dict[str, Scores]:
        """Run a command and score what it makes."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if call.words == "soup":  # averages whole checkpoints; of adapters it is told the base
            inputs = inputs[1:]
            call = Call(f"soup --base {self.folder / 'base.safetensors'}") if inputs[0].is_dir() else call
        run(call.command(inputs, out))
        scores = {
            name: self._score(next(path.glob("*.safetensors"))) for name, path in call.folders(out).items()
        }
        if not keep:
            shutil.rmtree(out)
        return scores

    def _score(self, path: Path) -> Scores:
        from safetensors.torch import load_file

        self._scorer = self._scorer or self.study.module.Scorer(self.seed)
        right = self._scorer(load_file(path))
        return {task: "".join(str(int(each)) for each in answers) for task, answers in right.items()}

    def _made(self, path: Path, make: Callable[[Path], None]) -> None:
        """Make a file, unless it is there."""
        if not path.exists():
            say(f"{self.study.name}, seed {self.seed}: training {path.stem}")
            part = path.with_suffix(".part")
            make(part)
            part.rename(path)

    def _step(self, name: str, find: Callable[[], Any]) -> None:
        """Write what a step finds, unless it was done."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            say(f"{self.study.name}, seed {self.seed}: scoring {name}")
            part = path.with_suffix(".part")
            part.write_text(json.dumps(find()))
            part.rename(path)


def inspection(inputs: list[Path], split: str) -> list[str]:
    """The command line that shows a fine-tune's spectra."""
    return ["inspect-spectrum", *map(str, inputs), "--split", split, "--format", "json", "--quiet"]


MEASURES = ("relative_update", "cos_alpha", "lambda_high", "anisotropy")


def spectrum(report: dict[str, Any]) -> dict[str, Any]:
    """What `inspect-spectrum` knows of a checkpoint without data: means over its layers, and their λ."""
    layers = [layer for layer in report["layers"] if layer["action"] == "edited"]
    means = {name: statistics.mean(layer[name] for layer in layers) for name in MEASURES}
    means["equivalent_alpha"] = report["verdict"]["interpolation"]["alpha"]
    means["k_ratio"] = statistics.mean(layer["k"] / layer["rank"] for layer in layers)
    means["noise_ratio"] = statistics.mean((layer["k_noise"] or 0) / layer["rank"] for layer in layers)
    means["half_way"] = statistics.mean(half_way(layer["spectrum"]) for layer in layers)
    shown = ("name", "lambda_high", "lambda_low")
    return {
        "means": {name: round(value, 5) for name, value in means.items()},
        "layers": [{name: rounded(layer[name]) for name in shown} for layer in layers],
    }


def half_way(quantiles: list[float]) -> float:
    """The median singular value, relative to the largest: small where the spectrum decays fast."""
    return quantiles[len(quantiles) // 2]


def rounded(value: Any) -> Any:
    """Fewer digits of a number."""
    return round(value, 4) if isinstance(value, float) else value


def say(line: str) -> None:
    """What goes on."""
    print(line, file=sys.stderr, flush=True)


def results(study: Study) -> Iterator[dict[str, Any]]:
    """The results of all seeds of which a fine-tune was scored."""
    for seed in study.seeds:
        path = RESULTS / f"{study.name}-{seed}.json"
        if path.exists() and (found := json.loads(path.read_text()))["checkpoints"]:
            yield found
