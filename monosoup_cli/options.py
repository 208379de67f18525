"""Options, declared once for the shell, Python, the report, the model card and resumed runs.

A command is a Python function with an explicit signature. Each parameter is annotated with its type and an
`Option`, which has the facts that the type and the default do not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from monosoup_cli.declaration import Call, DeclaredOption, Option, declared_in, from_keywords
from monosoup_cli.errors import UsageError
from monosoup_cli.values import (
    StrPath,
    as_list,
    as_paths,
    check_choice,
    check_one_each,
    parse_size,
    path_list,
)

__all__ = [
    "BASE",
    "CHECKPOINT",
    "FINETUNED",
    "NO_BASE",
    "OUTPUT",
    "PROGRAMS",
    "Base",
    "Call",
    "ComputeOptions",
    "DeclaredOption",
    "Finetuned",
    "LayerOptions",
    "Option",
    "Output",
    "OutputOptions",
    "ReadParts",
    "RunOptions",
    "Scores",
    "SelectionOptions",
    "SplitFused",
    "Stacked",
    "StateDict",
    "StorageOptions",
    "StrPath",
    "Strictness",
    "as_list",
    "as_paths",
    "check_choice",
    "check_one_each",
    "declared_in",
    "from_keywords",
    "helps_of_adding",
    "parse_size",
    "path_list",
]

Setting: TypeAlias = bool | float | str | Sequence[float] | None
"""What a setting of a layer may be."""
Dtype = Literal["keep", "float32", "bfloat16", "float16"]
Strictness = Literal["error", "keep"]
Mismatch = Literal["error", "keep", "overlap"]


NO_BASE = "-"
"""What the user types in the place of the base where there is none."""
BASE = Option(
    "The checkpoint that was fine-tuned: a file of weights, a folder, or an id on the Hub.",
    metavar="BASE",
    shell=str,
    is_argument=True,
    in_card=False,
)
Base = Annotated[StrPath, BASE]
FINETUNED = Option(
    "Fine-tuned checkpoints: files, folders, ids on the Hub, or LoRA adapters.",
    metavar="FINETUNED",
    shell=list[str],
    is_argument=True,
    in_card=False,
)
Finetuned = Annotated[StrPath | Sequence[StrPath], FINETUNED]
PROGRAMS = ("score", "score_command", "final_score")
"""The options that run programs. Reports may leave out their values, which may have secrets."""
LAID_OUT = (
    "If OUT ends in .safetensors, it is a single file. Otherwise it is a folder, laid out like {}, with its"
    " side files and a model card."
)
OUTPUT = Option(
    LAID_OUT.format("the (first) fine-tuned checkpoint"),
    metavar="OUT",
    shell=str,
    flags=("--output", "-o"),
    changes_bytes=False,
    in_card=False,
)
Output = Annotated[StrPath, OUTPUT]


def helps_of_adding(adds: str, place: str) -> dict[str, str]:
    """The help of shared options, for a command that adds updates to an input.

    Args:
        adds: What it does only to the tensors that are selected, up to their noun.
        place: The input, which the others stay as.
    """
    return {
        "output": LAID_OUT.format(place),
        "include": f"{adds} tensors whose names match; keep the rest as in {place}. Repeatable.",
        "exclude": f"Keep tensors whose names match as in {place}. Repeatable.",
        "on_mismatch": f"What to do with tensors whose shapes differ: stop, keep them as in {place}, or,"
        " where only the number of rows differs, add to the rows that all inputs have.",
        "on_nonfinite": f"What to do with tensors that have NaN or Inf: stop, or keep them as in {place}.",
    }


Stacked = Annotated[
    str | Sequence[str],
    Option(
        "Treat tensors whose names match as stacks, one matrix per index of dimension 0. Stacked experts are"
        " recognised anyway: 3-D tensors named *experts*, or of as many rows as config.json has experts.",
        metavar="GLOB",
        shell=list[str],
    ),
]
SplitFused = Annotated[
    bool,
    Option(
        "Edit gate, up, q, k and v each for itself where they are stored in one tensor, so that the result"
        " does not depend on how they are stored."
    ),
]
StateDict = Annotated[
    str | None,
    Option(
        "Which state dict to read of files that have several, by its key; dots lead further in. Examples:"
        " model_ema; generator.ema.",
        metavar="KEY",
        shell=str,
    ),
]
ReadParts = Annotated[
    str | Sequence[str],
    Option("Which part of a pipeline to read. Repeatable.", metavar="PART", shell=list[str]),
]
CHECKPOINT = Option(
    "A file of weights, a folder, an id on the Hub, or a LoRA adapter.", shell=str, is_argument=True
)
Scores = Annotated[
    StrPath | Mapping[str, float] | None,
    Option(
        "A JSON file that maps paths to scores; higher is better. It sets the order of the candidates.",
        metavar="FILE",
        shell=str,
        is_private=True,
    ),
]


@dataclass(frozen=True)
class SelectionOptions:
    """The shared options about what is edited, and what happens to tensors that do not fit."""

    include: Annotated[
        str | Sequence[str],
        Option(
            "Edit only tensors whose names match; keep the rest as fine-tuned (of several: averaged)."
            " Repeatable.",
            metavar="GLOB",
            shell=list[str],
        ),
    ] = ()
    exclude: Annotated[
        str | Sequence[str],
        Option(
            "Keep tensors whose names match as fine-tuned (of several: averaged). Repeatable.",
            metavar="GLOB",
            shell=list[str],
        ),
    ] = ()
    rename: Annotated[
        str | Sequence[str],
        Option(
            "Replace OLD with NEW in the names of BASE and of further FINETUNED, so that they match the"
            " (first) FINETUNED. Repeatable. Examples: transformer.h=model.layers; bert= removes bert.",
            metavar="OLD=NEW",
            shell=list[str],
        ),
    ] = ()
    state_dict: StateDict = None
    parts: Annotated[
        str | Sequence[str],
        Option(
            "Which part of a pipeline to edit: of a diffusers folder, and of what a single LoRA file changes."
            " Default: the unet or transformer, or all of a LoRA file. Repeatable for single files. Examples:"
            " unet; text_encoder_2.",
            metavar="PART",
            shell=list[str],
        ),
    ] = ()
    on_mismatch: Annotated[
        Mismatch,
        Option(
            "What to do with tensors whose shapes differ: stop, keep them as fine-tuned, or, where only the"
            " number of rows differs, use the rows that all inputs have."
        ),
    ] = "error"
    on_nonfinite: Annotated[
        Strictness, Option("What to do with tensors that have NaN or Inf: stop, or keep them as fine-tuned.")
    ] = "error"
    partial: Annotated[
        bool,
        Option(
            "Go on with what BASE has, even if it lacks most of FINETUNED, which is refused otherwise.",
            changes_bytes=False,
        ),
    ] = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "rename", "parts"):
            object.__setattr__(self, name, as_list(getattr(self, name)))
        check_choice("on_mismatch", self.on_mismatch, Mismatch)
        check_choice("on_nonfinite", self.on_nonfinite, Strictness)


@dataclass(frozen=True)
class LayerOptions:
    """What commands have besides that have settings of layers."""

    layers: Annotated[
        Mapping[str, Mapping[str, Setting]] | None,
        Option(
            "Settings of the tensors whose names match a glob, in place of those of the whole call."
            " The first glob that matches a name counts.",
            in_shell=False,
        ),
    ] = None


@dataclass(frozen=True)
class StorageOptions:
    """The shared options about how tensors are stored."""

    dtype: Annotated[Dtype, Option("The dtype of floating-point tensors in the output.")] = "keep"
    max_shard_size: Annotated[
        str | int | None,
        Option(
            "Write shards of at most SIZE, for example 5GB. Default: those of the checkpoint that OUT is laid"
            " out like.",
            metavar="SIZE",
            shell=str,
        ),
    ] = None

    side_files: Annotated[
        str | Sequence[str],
        Option(
            "Which other files of the folder go along. Default: what the model needs, without state of"
            " training and other copies of the weights. A glob carries what matches as well: without a slash"
            " it is matched with names of files and folders, but not with those in folders that stay behind;"
            " with one, with the whole path. With all, every file goes along except hidden ones; with none,"
            " only what such globs match. Repeatable.",
            metavar="all|none|GLOB",
            shell=list[str],
        ),
    ] = ()
    carry_base: Annotated[
        str | Sequence[str],
        Option(
            "Write tensors that only BASE has, too, as they are there, if their names match. Repeatable.",
            metavar="GLOB",
            shell=list[str],
        ),
    ] = ()

    def __post_init__(self) -> None:
        for name in ("side_files", "carry_base"):
            object.__setattr__(self, name, as_list(getattr(self, name)))
        check_choice("dtype", self.dtype, Dtype)

    @property
    def shard_bytes(self) -> int | None:
        """The largest shard in bytes; None for the fine-tuned checkpoint's own shards."""
        return None if self.max_shard_size is None else parse_size(self.max_shard_size)


@dataclass(frozen=True)
class ComputeOptions:
    """The shared options about the machine."""

    device: Annotated[
        str,
        Option(
            "Where to compute. auto uses every CUDA device where that is faster, or else the CPU.",
            metavar="auto|cpu|cuda|cuda:N",
            changes_bytes=False,  # the model of the device does, and belongs to the environment
            in_card=False,
        ),
    ] = "auto"
    workers: Annotated[
        int | None,
        Option(
            "How many tensors to compute at once. The bytes do not depend on it. Default: as many as the"
            " hardware can use and memory allows.",
            metavar="N",
            shell=int,
            minimum=1,
            changes_bytes=False,
            in_card=False,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError("--workers is out of range", expected="at least 1", found=self.workers)


@dataclass(frozen=True)
class OutputOptions:
    """The shared options about where the output goes, and which machines make it."""

    report: Annotated[
        StrPath | None,
        Option(
            "Where the JSON report goes; - is stdout. Default: OUT/monosoup_report.json, or X.report.json"
            " next to X.safetensors.",
            metavar="PATH",
            shell=str,
            changes_bytes=False,
            in_card=False,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        Option("Replace an existing OUT, once the new one is complete.", changes_bytes=False, in_card=False),
    ] = False
    resume: Annotated[
        bool, Option("Continue an interrupted run of the same command.", changes_bytes=False, in_card=False)
    ] = False
    push: Annotated[
        str | None,
        Option(
            "Upload the finished folder to this repository on the Hub. A repository that does not exist is"
            " created as private. --overwrite replaces the files of an existing one.",
            metavar="ORG/NAME",
            shell=str,
            changes_bytes=False,
            in_card=False,
        ),
    ] = None
    public: Annotated[bool, Option("Make a new repository public.", changes_bytes=False, in_card=False)] = (
        False
    )
    part: Annotated[
        str | None,
        Option(
            "Make only part I of N, into OUT.parts: with the same command for every I, on as many machines as"
            " you like. `monosoup finish OUT` then makes OUT of the parts. Not with a score command.",
            metavar="I/N",
            shell=str,
            changes_bytes=False,
            in_card=False,
        ),
    ] = None
    engine: Annotated[
        str,
        Option(
            "What makes the tensors: the threads of this machine, or the nodes of a running Ray cluster (at"
            " RAY_ADDRESS, or at this address), which all see the files.",
            metavar="threads|ray|ray://HOST:PORT",
            changes_bytes=False,
            in_card=False,
        ),
    ] = "threads"
    insecure_cluster: Annotated[
        bool, Option("Use a Ray cluster that asks for no token.", changes_bytes=False, in_card=False)
    ] = False
    strict: Annotated[
        bool,
        Option(
            "Stop, before anything is written, if it looks as if BASE and FINETUNED do not belong together."
            " Otherwise a note says so, and the report has a doubt. Dry runs, parts and Ray do not look.",
            changes_bytes=False,
            in_card=False,
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.engine not in ("threads", "ray") and not self.engine.startswith("ray://"):
            raise UsageError(
                "unknown --engine", expected="threads, ray or ray://HOST:PORT", found=self.engine
            )
        if self.strict and (self.part is not None or self.engine != "threads"):
            raise UsageError("--strict looks at whole checkpoints: not with --part or --engine")
        if self.public and self.push is None:
            raise UsageError("--public needs --push")


GROUPS = (SelectionOptions, StorageOptions, ComputeOptions, OutputOptions)


@dataclass(frozen=True)
class RunOptions:
    """The options that all writing commands share."""

    selecting: SelectionOptions
    storing: StorageOptions
    computing: ComputeOptions
    writing: OutputOptions

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> RunOptions:
        """From a command's keyword arguments; others are ignored."""
        return cls(*(from_keywords(group, keywords) for group in GROUPS))  # type: ignore[arg-type]

    @staticmethod
    def declared() -> dict[str, DeclaredOption]:
        """Every shared option, by name."""
        return {name: one for group in GROUPS for name, one in declared_in(group).items()}

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of every shared option."""
        for group, values in zip(
            GROUPS, (self.selecting, self.storing, self.computing, self.writing), strict=True
        ):
            for name in declared_in(group):
                yield name, getattr(values, name)
