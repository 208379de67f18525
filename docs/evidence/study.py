"""A study: which checkpoints are made, which commands are run on them, and how they score.

Every step leaves a file in .evidence/, and a step whose file is there is not run again.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module, metadata
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from docs.evidence.commands import AT_MEAN, COMPARED, SPLITS, Call, alike, calls, inspection, together
from docs.evidence.data import CACHE

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = Path(__file__).parent / "results"

Scores = dict[str, str]
"""For each task a string of 0 and 1: whether each example was answered right."""


class Recipe(NamedTuple):
    """How a fine-tune is trained."""

    rate: float
    epochs: int


@dataclass(frozen=True)
class Study:
    """What a study is made of. Its module has `make_base`, `fine_tune` and `Scorer`.

    On fine-tunes that are `swept` all methods are run; on `mapped` tasks features are compared.
    """

    name: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    healthy: tuple[str, ...]
    overtrained: tuple[str, ...]
    swept: tuple[str, ...]
    mapped: tuple[str, ...] = ()
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
        mapped=("movies", "tweets"),
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
    "lora": Study(
        "lora",
        inside=("movies",),
        outside=("products", "editorials", "tweets"),
        healthy=("gentle", "usual"),
        overtrained=("overtrained",),
        swept=("overtrained",),
    ),
}


def run(words: list[str]) -> str:
    """Run monosoup as a user does, and return what it prints as data."""
    done = subprocess.run(
        [sys.executable, "-m", "monosoup_cli", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


FEATURES = "features-"
"""How the files of the last steps begin."""


class Seed:
    """One seed of a study: its checkpoints and scores in the cache."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.seed = study, seed
        self.folder = CACHE / study.name / f"seed-{seed}"

    @cached_property
    def scorer(self) -> Any:
        """The tasks of this seed."""
        return self.study.module.Scorer(self.seed)

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
        if self.study.mapped:
            steps |= {f"features-{recipe}": partial(self.features, recipe) for recipe in self.study.swept}
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
            "features": {
                recipe: done[name] for recipe in self.study.swept if (name := f"features-{recipe}") in done
            },
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.study.name}-{self.seed}.json").write_text(json.dumps(packed(found)) + "\n")

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
        interpolations = {alike(split): alpha for split, alpha in alphas.items()}
        for name, alpha in (interpolations | {AT_MEAN: measured["means"]["lambda_high"]}).items():
            (scores[name],) = self._scored(Call(f"wise --alpha {alpha:.4f}"), inputs).values()
        return {"spectrum": measured, "alphas": alphas, "scores": scores}

    def together(self) -> dict[str, Scores]:
        """What is made of all fine-tunes."""
        score = [sys.executable, "-m", "docs.evidence.score", self.study.name, str(self.seed)]
        scores: dict[str, Scores] = {}
        for call in together(f"{shlex.join(score)} {{}}"):
            scores |= self._scored(call, self._inputs(*self.study.recipes))
        return scores

    def features(self, recipe: str) -> dict[str, dict[str, list[float]]]:
        """Linear CKA with the base, block by block, for every mapped task: of the fine-tune and its edits."""
        place, out = self.folder / "features", self._empty()
        models = {
            "base": self.folder / "base.safetensors",
            "fine-tuned": self.folder / f"{recipe}.safetensors",
        }
        out.mkdir(exist_ok=True)
        for call in COMPARED:
            edited = out / call.words.replace(" ", "-")
            run(call.command(self._inputs(recipe), edited))
            models[call.words] = weights_in(edited)
        found = {}
        for task in self.study.mapped:
            files = []
            for name, path in models.items():
                file = place / task / f"{name}.safetensors"
                file.parent.mkdir(parents=True, exist_ok=True)
                self.scorer.load(loaded(path))
                save(self.scorer.features(task), file)
                files.append(str(file))
            (heat,) = json.loads(run(["cka", *files, "--matching", "--format", "json", "--quiet"]))["maps"]
            found[task] = {
                name: [rounded(each) for each in row] for name, row in zip(models, heat["cka"], strict=True)
            }
        shutil.rmtree(place)
        shutil.rmtree(out)
        return found

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
        out = self._empty()
        if call.words.startswith("soup"):  # averages whole checkpoints; of adapters it is told the base
            base, *inputs = inputs
            if inputs[0].is_dir():
                call = replace(call, unnamed=("--base", str(base), *call.unnamed))
        run(call.command(inputs, out))
        scores = {name: self._score(weights_in(path)) for name, path in call.folders(out).items()}
        if not keep:
            shutil.rmtree(out)
        return scores

    def _empty(self) -> Path:
        """Where a command writes, without what a killed step has left there."""
        for name in ("out", "out.partial"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / "out"

    def _score(self, path: Path) -> Scores:
        self.scorer.load(loaded(path))
        right = {task: self.scorer.right(data) for task, data in self.scorer.tasks.items()}
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


def run_seed(study: str, seed: int) -> None:
    """All steps of a seed that are not in the cache yet."""
    Seed(STUDIES[study], seed).run()


def weights_in(path: Path) -> Path:
    """The file of weights, in a folder or itself."""
    return next(path.glob("*.safetensors")) if path.is_dir() else path


def loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    from safetensors.torch import load_file

    return load_file(path)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors into a file."""
    from safetensors.torch import save_file

    save_file(tensors, path)


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
        if path.exists() and (found := unpacked(json.loads(path.read_text())))["checkpoints"]:
            yield found


def packed(found: Any) -> Any:
    """The same with strings of 0 and 1 as their length and hexadecimal digits: a quarter as long."""
    return everywhere(found, ANSWERS, lambda match: f"{len(match[0])}:{int(match[0], 2):x}")


def unpacked(found: Any) -> Any:
    """The strings of 0 and 1 again."""
    return everywhere(found, PACKED, lambda match: f"{int(match[2], 16):0{match[1]}b}")


ANSWERS, PACKED = re.compile("[01]{9,}"), re.compile("([0-9]+):([0-9a-f]+)")


def everywhere(found: Any, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str]) -> Any:
    """The same with every string changed that the pattern matches."""
    match found:
        case dict():
            return {name: everywhere(each, pattern, change) for name, each in found.items()}
        case list() | tuple():
            return [everywhere(each, pattern, change) for each in found]
        case str() if matched := pattern.fullmatch(found):
            return change(matched)
    return found
