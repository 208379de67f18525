"""The options that commands share, said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from monosoup_cli.pipeline.options import Dtype, Mismatch, Strictness
from monosoup_cli.report.view import Grouping, View

if TYPE_CHECKING:
    from monosoup_cli.cli.console import Console
    from monosoup_cli.pipeline.job import Job

__all__ = [
    "BaseArg",
    "DeviceOpt",
    "FinetunedArg",
    "FinetunedOneArg",
    "Looking",
    "MismatchOpt",
    "NonfiniteOpt",
    "OutputOpt",
    "RankFractionOpt",
    "RankOpt",
    "RenameOpt",
    "ScoresOpt",
    "Shared",
    "StackedOpt",
    "WeightingOpt",
    "WorkersOpt",
    "looking",
    "writing",
]

BaseArg = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="The checkpoint that was fine-tuned: a file of weights, a folder, or an id on the Hub.",
    ),
]
FinetunedArg = Annotated[
    list[str],
    typer.Argument(
        metavar="FINETUNED",
        help="Fine-tuned checkpoints: files, folders or ids on the Hub, LoRA adapters among them.",
    ),
]
FinetunedOneArg = Annotated[
    str,
    typer.Argument(
        metavar="FINETUNED",
        help="The fine-tuned checkpoint: a file, folder or id on the Hub, or a LoRA adapter.",
    ),
]
OutputOpt = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="A path that ends in .safetensors: that one file. Otherwise a folder, laid out as the (first)"
        " fine-tuned checkpoint, with its side files and a model card.",
    ),
]
ScoresOpt = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="JSON, path → score, higher is better: the order of the candidates."),
]


DeviceOpt = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N", help="Where to compute; auto takes every CUDA device, else the CPU."
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Tensors computed at once; never changes the bytes. Default: what pays and fits.",
    ),
]
MismatchOpt = Annotated[
    Mismatch,
    typer.Option(
        help="Tensors whose shapes differ: stop, keep them as fine-tuned, or, where only the numbers of"
        " rows differ, edit the rows that all inputs have."
    ),
]
RenameOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OLD=NEW",
        help="Where names differ: what is called OLD in BASE (and in further FINETUNED) is NEW in the"
        " (first) FINETUNED, as transformer.h=model.layers or bert=; repeatable.",
    ),
]
NonfiniteOpt = Annotated[
    Strictness, typer.Option(help="Tensors with NaN or Inf: stop, or keep them as fine-tuned.")
]
RankOpt = Annotated[int | None, typer.Option(metavar="N", min=1, help="Split after N singular values.")]
RankFractionOpt = Annotated[
    float | None,
    typer.Option(metavar="F", help="Split after this share of the singular values (0 < F <= 1)."),
]
WeightingOpt = Annotated[
    Literal["monosoup", "spectral", "alignment", "uniform", "high", "low"],
    typer.Option(help="How the two parts are weighed; the others are the paper's ablations."),
]
StackedOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Tensors that stack one matrix per index of dim 0; 3-d tensors named *experts* are known.",
    ),
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
    rename: RenameOpt = None,
    on_mismatch: MismatchOpt = "error",
    on_nonfinite: NonfiniteOpt = "error",
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the written floating tensors.")] = "keep",
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Write shards of at most SIZE, as 5GB. Default: the fine-tuned checkpoint's own.",
        ),
    ] = None,
    device: DeviceOpt = "auto",
    workers: WorkersOpt = None,
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
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Upload the finished folder to this repository on the Hub, which is made, private, if there"
            " is none. --overwrite replaces what it holds.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
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

    def gather(said: dict[str, Any]) -> Shared:
        options = {**said, **{name: said[name] or () for name in ("include", "exclude", "rename")}}
        talk = {name: options.pop(name) for name in ("dry_run", "format", "quiet", "no_progress")}
        console = _console(quiet=talk["quiet"], no_progress=talk["no_progress"])
        return Shared(options, talk["dry_run"], talk["format"], console)

    return _with_options(command, _shared, gather)


@dataclass(frozen=True)
class Looking:
    """What was said with the options that the commands share that show layers."""

    view: View
    format: Literal["table", "json", "csv"]
    html: Path | None
    plot: Path | None
    console: Console

    def show(self, make: Callable[[], dict[str, Any]]) -> None:
        """Make the report, once it is known that it can be shown as asked for; and show it."""
        from monosoup_cli.cli.showing import show

        show(make, self)


def _looking(
    layer: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only layers with such names; repeatable.")
    ] = None,
    group: Annotated[
        Grouping | None, typer.Option(help="A row for each kind of layer or for each block, with means.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="MEASURE", help="Largest first: by k_ratio, rho, lambda_low, …; or by name."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Show N rows at most.")] = None,
    format: Annotated[
        Literal["table", "json", "csv"],
        typer.Option("--format", help="json: the whole report, all layers. csv: the rows of the table."),
    ] = "table",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page that shows the report, for any browser."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write pictures, as .png, .svg or .pdf (needs matplotlib)."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and data only.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """The signature alone: every command that shows layers has these options after its own."""


def looking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options to look at layers; it gets what was said as `Looking`, its first
    argument."""

    def gather(said: dict[str, Any]) -> Looking:
        view = View(said["layer"] or (), said["group"], said["sort"], said["reverse"], said["top"])
        console = _console(quiet=said["quiet"], no_progress=said["no_progress"])
        return Looking(view, said["format"], said["html"], said["plot"], console)

    return _with_options(command, _looking, gather)


def _console(*, quiet: bool, no_progress: bool) -> Console:
    from monosoup_cli.cli.console import Console

    return Console(quiet=quiet, live=not no_progress)


def _with_options(
    command: Callable[..., None], options: Callable[..., None], gather: Callable[[dict[str, Any]], Any]
) -> Callable[..., None]:
    """The command with the options of another signature after its own, gathered into its first argument."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    common = list(inspect.signature(options, eval_str=True).parameters.values())

    @wraps(command)
    def complete(**given: Any) -> None:
        command(gather({each.name: given.pop(each.name) for each in common}), **given)

    complete.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    complete.__annotations__ = {each.name: each.annotation for each in (*own, *common)}
    return complete
