"""`extract`: the update of a model as a LoRA adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from monosoup_cli.api.command import Request, command
from monosoup_cli.errors import UsageError
from monosoup_cli.keywords import RunKeywords
from monosoup_cli.methods.extraction import Extraction, RankOfEnergy, RanksOfSize
from monosoup_cli.methods.model_soup import normalise
from monosoup_cli.options import OUTPUT, Base, Finetuned, Option, StrPath, as_paths, check_choice, parse_size
from monosoup_cli.tensors.method import Order

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from monosoup_cli.outputs.extracted_adapter import ExtractedAdapterKind

__all__ = ["extract"]

Form = Literal["peft", "diffusers", "kohya"]


@command
def extract(
    base: Base,
    finetuned: Finetuned,
    output: Annotated[
        StrPath,
        replace(OUTPUT, help="The folder of the adapter, or with --form its file.", metavar="ADAPTER"),
    ],
    *,
    rank: Annotated[int | None, Option("The rank of all factors.", metavar="R", shell=int, minimum=1)] = None,
    energy: Annotated[
        float | None,
        Option(
            "Give each layer the smallest rank that holds the share E of its update's energy, the sum of the"
            " squared singular values (0 < E <= 1).",
            metavar="E",
            shell=float,
        ),
    ] = None,
    max_size: Annotated[
        str | int | None,
        Option(
            "Make an adapter of at most this size, for example 200MB: each layer gets the rank with which the"
            " error of all is least.",
            metavar="SIZE",
            shell=str,
        ),
    ] = None,
    weights: Annotated[
        Sequence[float] | None,
        Option(
            "A weight for each of several FINETUNED; scaled to sum to 1. Default: their mean.",
            metavar="W1,W2,…",
            shell=str,
            is_list=True,
        ),
    ] = None,
    scale: Annotated[float, Option("What the update is multiplied by.", metavar="S")] = 1.0,
    form: Annotated[
        Form,
        Option(
            "A folder for peft; or of a part of a diffusion pipeline, a single file with the names of"
            " diffusers or of kohya's trainers."
        ),
    ] = "peft",
    **options: Unpack[RunKeywords],
) -> Request:
    """Write the update of a fine-tune as a LoRA adapter.

    The update is FINETUNED - BASE, and is not edited. Of every weight matrix, the adapter has the largest
    singular values of the update. Of several checkpoints or adapters, it has their mean.

    Example: monosoup extract base.safetensors ft.safetensors -o adapter --rank 32
    """
    sources = as_paths(finetuned)
    ways = {"--rank": rank, "--energy": energy, "--max-size": max_size}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UsageError(
            "extract needs one of --rank, --energy and --max-size",
            found=" and ".join(given) or "none of them",
            hint=None if given else "--rank 32 is a start; the report has the error of every layer",
        )
    if options.get("max_shard_size") is not None:
        raise UsageError("--max-shard-size is for whole checkpoints, not for an adapter")
    if options.get("on_nonfinite") == "keep":
        raise UsageError("an adapter cannot leave tensors as fine-tuned: --on-nonfinite keep")
    if rank is not None and rank < 1:
        raise UsageError("--rank is out of range", expected="at least 1", found=rank)
    if energy is not None and not 0.0 < energy <= 1.0:
        raise UsageError("--energy is out of range", expected="0 < value <= 1", found=energy)
    if not math.isfinite(scale):
        raise UsageError("--scale must be finite", found=scale)
    if weights is not None and len(weights) != len(sources):
        raise UsageError(
            "--weights needs one weight for each checkpoint",
            expected=f"{len(sources)} of them",
            found=len(weights),
        )
    order = Order(
        Extraction(scale),
        sources,
        os.fspath(output),
        os.fspath(base),
        weights=None if weights is None else normalise(weights),
        arguments={"weights": None if weights is None else list(weights)},
    )
    check_choice("form", form, Form)
    max_bytes = None if max_size is None else parse_size(max_size, "max_size")
    return Request(order, _kind(rank, energy, max_bytes, str(options.get("dtype", "keep")), form))


def _kind(
    rank: int | None, energy: float | None, max_bytes: int | None, dtype: str, form: Form
) -> ExtractedAdapterKind:
    from monosoup_cli.formats.dtypes import BITS
    from monosoup_cli.outputs.extracted_adapter import ExtractedAdapterKind
    from monosoup_cli.outputs.form import AdapterDescription
    from monosoup_cli.tensors.plan import output_dtype

    opening = "A LoRA adapter that approximates the update of a model."
    description = AdapterDescription(opening=opening)
    names = None if form == "peft" else form
    if rank is not None:
        return ExtractedAdapterKind(rank, description, names, holds_excluded=False)
    if energy is not None:
        return ExtractedAdapterKind(RankOfEnergy(energy), description, names, holds_excluded=False)
    assert max_bytes is not None
    item_bytes = BITS[output_dtype("F32", dtype)] // 8
    return ExtractedAdapterKind(RanksOfSize(max_bytes, item_bytes), description, names, holds_excluded=False)
