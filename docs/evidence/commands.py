"""The commands that are run on fine-tunes, and how the page names them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """One run of monosoup. It makes one checkpoint, or one for each value of a sweep.

    Args:
        unnamed: options that the page does not name.
    """

    words: str
    sweep: str = ""
    values: tuple[float, ...] = ()
    unnamed: tuple[str, ...] = ()

    def command(self, inputs: list[Path], out: Path) -> list[str]:
        """Its command line."""
        command, *options = shlex.split(self.words)
        if self.sweep:
            options += [f"--{self.sweep}", ",".join(f"{value:g}" for value in self.values)]
        return [command, *map(str, inputs), "-o", str(out), *options, *self.unnamed, "--quiet"]

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

ENERGIES = (0.5, 0.7, 0.8, 0.9, 0.95)

FRACTIONS = (0.05, 0.25, 0.5, 0.75)
"""Of the singular values, kept alone."""

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
        Call("edit", "energy", ENERGIES),
        Call("edit --weighting high", "energy", (0.5, 0.8, 0.95)),
        *(Call(f"edit --weighting high --rank-fraction {share:g}") for share in FRACTIONS),
        *(Call(f"edit --weighting {weighting}") for weighting in WEIGHTINGS),
        Call("edit", "wise", (0.25, 0.5, 0.75)),
        Call("wise", "alpha", (0.25, 0.5, 0.75)),
        *(Call(f"lines --alpha {alpha:g} --beta {1 - alpha:g}") for alpha in (0, 0.25, 0.5, 0.75)),
    ]


def together(score: str) -> list[Call]:
    """The commands for all fine-tunes of a seed together; `score` is the command that a greedy soup takes."""
    return [
        Call("soup"),
        Call("soup --greedy", unnamed=("--score-command", score)),
        Call("stock"),
        Call("sfgs --threshold 0.5"),
        Call("edit"),
        Call("edit", "wise", (0.5,)),
    ]


COMPARED = (Call("edit"), Call("edit --weighting high"), Call("edit --weighting low"))
"""What is compared with the base by features, beside the fine-tune."""


def alike(split: str) -> str:
    """How the page names the interpolation that comes nearest to an edit."""
    return "wise at the equivalent α" + ("" if split == "entropy" else f" of --split {split}")


AT_MEAN = "wise at the mean λ_high"


def inspection(inputs: list[Path], split: str) -> list[str]:
    """The command line that shows a fine-tune's spectra."""
    return ["inspect-spectrum", *map(str, inputs), "--split", split, "--format", "json", "--quiet"]
