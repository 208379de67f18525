"""The Python functions behind the commands, with the same words."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from monosoup_cli.checkpoints.model_card import model_card
from monosoup_cli.errors import UsageError
from monosoup_cli.pipeline.job import Job, RunOptions, prepare
from monosoup_cli.pipeline.run import Apply, Method, Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.methods.monosoup import MonoSoup, Weighting
    from monosoup_cli.pipeline.blocks import Layer

__all__ = ["edit", "prepare_edit"]

StrPath: TypeAlias = "str | os.PathLike[str]"

PAPER = """
@misc{abdollahpoorrostam2026monosoup,
  title = {Model soups need only one ingredient},
  author = {Abdollahpoorrostam, Alireza and Dimitriadis, Nikolaos and Hazimeh, Adam and Frossard, Pascal},
  year = {2026},
  eprint = {2602.09689},
  archivePrefix = {arXiv}
}
"""

AVERAGED = ("k_ratio", "rho", "cos_alpha", "lambda_high", "lambda_low", "equivalent_alpha",
            "anisotropy", "relative_update")  # fmt: skip
"""What the summary gives the mean and the range of."""


EDIT_DEFAULTS: Mapping[str, Any] = {
    "energy": None, "rank": None, "rank_fraction": None, "weighting": "monosoup", "wise": None,
    "min_update": 0.0, "stacked": [],
}  # fmt: skip


class RunKeywords(TypedDict, total=False):
    """`RunOptions` as keyword arguments."""

    include: Sequence[str]
    exclude: Sequence[str]
    on_mismatch: Literal["error", "keep"]
    on_nonfinite: Literal["error", "keep"]
    device: str
    workers: int | None
    dtype: Literal["keep", "float32", "bfloat16", "float16"]
    max_shard_size: str | int | None
    report: str | os.PathLike[str] | None
    overwrite: bool
    resume: bool


def edit(
    base: StrPath,
    finetuned: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    energy: float | None = None,
    rank: int | None = None,
    rank_fraction: float | None = None,
    weighting: Weighting = "monosoup",
    wise: float | None = None,
    min_update: float = 0.0,
    stacked: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Unpack[RunKeywords],
) -> dict[str, Any]:
    """MonoSoup: edit a fine-tuned checkpoint, or the mean of several, and write the result.

    The command `monosoup edit`, whose options have the same names and meaning (docs/cli.md).
    `base`, `finetuned`: `.safetensors` files or folders. `output`: a folder, or a path that ends
    in `.safetensors`; it appears when it is complete. `progress` is called from worker threads.

    Returns the report (docs/report.schema.json) as a dict; the same is written as JSON.
    Raises `monosoup_cli.errors.MonosoupError`.
    """
    with prepare_edit(
        base, finetuned, output, energy=energy, rank=rank, rank_fraction=rank_fraction,
        weighting=weighting, wise=wise, min_update=min_update, stacked=stacked, **options,
    ) as job:  # fmt: skip
        return job.run(progress)


def prepare_edit(
    base: StrPath,
    finetuned: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    energy: float | None = None,
    rank: int | None = None,
    rank_fraction: float | None = None,
    weighting: Weighting = "monosoup",
    wise: float | None = None,
    min_update: float = 0.0,
    stacked: Sequence[str] = (),
    **options: Unpack[RunKeywords],
) -> Job:
    """`edit` up to its first byte: the `Job` holds the plan, and its `run` does the rest."""
    from monosoup_cli.methods.monosoup import LayerSpectrum, MonoSoup

    if wise is not None and not 0.0 <= wise <= 1.0:
        raise UsageError("wise is out of range", expected="0 <= value <= 1", found=wise)
    if not 0.0 <= min_update < math.inf:
        raise UsageError("min_update is out of range", expected="at least 0", found=min_update)
    monosoup = MonoSoup(energy, rank, rank_fraction, weighting)
    stacked = [stacked] if isinstance(stacked, str) else list(stacked)
    sources = [finetuned] if isinstance(finetuned, (str, os.PathLike)) else list(finetuned)
    if not sources:
        raise UsageError("no fine-tuned checkpoint is given")
    names = [os.fspath(source) for source in sources]
    arguments = {
        "base": os.fspath(base), "finetuned": names, "output": os.fspath(output), **asdict(monosoup),
        "wise": wise, "min_update": min_update, "stacked": stacked,
    }  # fmt: skip
    run_options = RunOptions(**options)
    return prepare(
        "edit", arguments, os.fspath(base), names, os.fspath(output), run_options,
        stacked=stacked,
        wise=None if wise == 1.0 else wise,
        method=_monosoup_method(monosoup, min_update),
        measured=[*(field.name for field in fields(LayerSpectrum)), "relative_update"],
        averaged=AVERAGED,
        card=lambda: _card(arguments, run_options),
    )  # fmt: skip


def _monosoup_method(monosoup: MonoSoup, min_update: float) -> Method:
    from monosoup_cli.methods.monosoup import edit_update

    def method(layer: Layer) -> tuple[Mapping[str, Any], Apply] | None:
        edited = edit_update(layer.updates, layer.side, monosoup)
        if edited is None:
            return None
        spectrum, apply = edited
        relative = spectrum.update_norm / layer.base_norm if layer.base_norm else math.inf
        if relative < min_update:
            return None
        return {**asdict(spectrum), "relative_update": relative if relative < math.inf else None}, apply

    return method


def _card(arguments: Mapping[str, Any], options: RunOptions) -> bytes:
    base, finetuned = arguments["base"], arguments["finetuned"]
    words = ["monosoup", "edit", *(PurePath(source).name for source in (base, *finetuned))]
    given = {**arguments, **asdict(options)}
    default = {**EDIT_DEFAULTS, **asdict(RunOptions())}
    for name in ("energy", "rank", "rank_fraction", "weighting", "wise", "min_update", "stacked",
                 "include", "exclude", "on_mismatch", "on_nonfinite", "dtype"):  # fmt: skip
        if given[name] != default[name]:
            values = given[name] if isinstance(given[name], list) else [given[name]]
            words += [word for value in values for word in (f"--{name.replace('_', '-')}", str(value))]
    words += ["-o", PurePath(arguments["output"]).name]
    method = (
        "The fine-tuned weights, edited by MonoSoup: the update of every weight matrix is split by"
        " its spectrum, the two parts are weighed by coefficients read off that spectrum, and added"
        " back to the base."
    )
    return model_card(PurePath(arguments["output"]).name, method, shlex.join(words), base, finetuned, PAPER)
