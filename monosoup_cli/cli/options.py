"""The options that commands share, said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from monosoup_cli.pipeline.options import Dtype, Strictness

if TYPE_CHECKING:
    from monosoup_cli.cli.console import Console
    from monosoup_cli.pipeline.job import Job

__all__ = ["BaseArg", "FinetunedArg", "FinetunedOneArg", "OutputOpt", "ScoresOpt", "Shared", "writing"]

BaseArg = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="The checkpoint that was fine-tuned: a .safetensors file or a folder."
    ),
]
FinetunedArg = Annotated[
    list[str],
    typer.Argument(metavar="FINETUNED", help="Fine-tuned checkpoints: .safetensors files or folders."),
]
FinetunedOneArg = Annotated[
    str,
    typer.Argument(metavar="FINETUNED", help="The fine-tuned checkpoint: a .safetensors file or a folder."),
]
OutputOpt = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="OUT",
        help="A path that ends in .safetensors: that one file. Otherwise a folder, laid out as the (first)"
        " fine-tuned checkpoint, with its side files and a model card.",
    ),
]  # fmt: skip
ScoresOpt = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="JSON, path → score, higher is better: the order of the candidates."),
]


@dataclass(frozen=True)
class Shared:
    """What was said with the options that every writing command shares.

    `options` are the keywords of the Python function; the others say how to talk.
    """

    options: dict[str, Any]
    dry_run: bool
    format: Literal["table", "json"]
    console: Console

    def run(self, job: Job) -> None:
        """Show the plan of a dry run, or run the job and show what it did."""
        from monosoup_cli.cli.running import show_and_run

        show_and_run(job, self.console, is_dry=self.dry_run, as_json=self.format == "json")


def _shared(
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Edit only tensors with such names; repeatable. The rest is kept as fine-tuned.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keep tensors with such names as fine-tuned; repeatable."),
    ] = None,
    on_mismatch: Annotated[
        Strictness, typer.Option(help="Tensors whose shapes differ: stop, or keep them as fine-tuned.")
    ] = "error",
    on_nonfinite: Annotated[
        Strictness, typer.Option(help="Tensors with NaN or Inf: stop, or keep them as fine-tuned.")
    ] = "error",
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the written floating tensors.")] = "keep",
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Write shards of at most SIZE, as 5GB. Default: the fine-tuned checkpoint's own.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:N",
            help="Where to compute; auto takes every CUDA device, else the CPU.",
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Tensors computed at once; never changes the bytes. Default: what pays and fits.",
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Where the JSON report goes; - is stdout. Default: OUT/monosoup_report.json, or"
            " X.report.json beside X.safetensors.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing OUT, once the new one is complete.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run of the same command.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything that headers tell, print the plan, write nothing. (sfgs reads the data.)",
        ),
    ] = False,
    format: Annotated[
        Literal["table", "json"],
        typer.Option("--format", help="json: the report (of a dry run, the plan) on stdout."),
    ] = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """The signature alone: every writing command has these options after its own."""


def writing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it gets what was said as `Shared`, its first argument."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    common = list(inspect.signature(_shared, eval_str=True).parameters.values())
    talk = ("dry_run", "format", "quiet", "no_progress")

    @wraps(command)
    def complete(**given: Any) -> None:
        from monosoup_cli.cli.console import Console

        options = {each.name: given.pop(each.name) for each in common}
        said = {name: options.pop(name) for name in talk}
        options |= {name: options[name] or () for name in ("include", "exclude")}
        console = Console(quiet=said["quiet"], live=not said["no_progress"])
        command(Shared(options, said["dry_run"], said["format"], console), **given)

    complete.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    complete.__annotations__ = {each.name: each.annotation for each in (*own, *common)}
    return complete
