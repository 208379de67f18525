"""The options that commands share, said once. Defaults stand in the commands' signatures."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Dtype(str, Enum):
    keep = "keep"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Strictness(str, Enum):
    error = "error"
    keep = "keep"


class Format(str, Enum):
    table = "table"
    json = "json"


BaseArg = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="The checkpoint that was fine-tuned: a .safetensors file or a folder."
    ),
]
FinetunedArg = Annotated[
    list[str],
    typer.Argument(metavar="FINETUNED", help="The fine-tuned checkpoint; of several, their mean is taken."),
]
OutputOpt = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="OUT",
        help="A path that ends in .safetensors: that one file. Otherwise a folder, laid out as the fine-tuned"
        " checkpoint, with its side files and a model card.",
    ),
]  # fmt: skip
ReportOpt = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Where the JSON report goes; - is stdout. Default: OUT/monosoup_report.json, or X.report.json"
        " beside X.safetensors.",
    ),
]
DeviceOpt = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N", help="Where to compute; auto takes every CUDA device, else the CPU."
    ),
]
IncludeOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="Edit only tensors with such names; repeatable. The rest is kept as fine-tuned."
    ),
]
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Keep tensors with such names as fine-tuned; repeatable."),
]
OnMismatchOpt = Annotated[
    Strictness, typer.Option(help="Tensors whose shapes differ: stop, or keep them as fine-tuned.")
]
OnNonfiniteOpt = Annotated[
    Strictness, typer.Option(help="Tensors with NaN or Inf: stop, or keep them as fine-tuned.")
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Tensors computed at once; never changes the bytes. Default: what pays and fits.",
    ),
]
DtypeOpt = Annotated[Dtype, typer.Option(help="The dtype of the written floating tensors.")]
MaxShardSizeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Write shards of at most SIZE, as 5GB. Default: the fine-tuned checkpoint's own."
    ),
]
OverwriteOpt = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing OUT, once the new one is complete.")
]
ResumeOpt = Annotated[
    bool, typer.Option("--resume", help="Go on from an interrupted run of the same command.")
]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Check everything that headers tell, print the plan, write nothing.")
]
FormatOpt = Annotated[
    Format, typer.Option("--format", help="json: the report (of a dry run, the plan) on stdout.")
]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
NoProgressOpt = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]
