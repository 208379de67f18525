"""A command, ready to run: inputs opened, plan made, everything refused that headers can tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, TypeAlias

from monosoup_cli import __version__
from monosoup_cli.adapters.adapter import ADAPTER_CONFIG
from monosoup_cli.adapters.merged import MergedCheckpoint
from monosoup_cli.devices.device import find_devices
from monosoup_cli.errors import OutputError, UsageError, mismatch_in, without_tokens
from monosoup_cli.formats.files import Advance, Download
from monosoup_cli.outputs.layout import OutputLayout, plan_layout
from monosoup_cli.outputs.model_card import CARD_NAME, has_card
from monosoup_cli.outputs.output_path import (
    allow_open_files,
    check_output_path,
    check_report_path,
    check_space,
)
from monosoup_cli.outputs.push import check_push, push, upload_command
from monosoup_cli.outputs.side_files import side_files
from monosoup_cli.outputs.writer import PartialOutput, is_in_use, refuse_unfinished, unfinished_run
from monosoup_cli.pipeline.adapter_output import (
    AdapterOutput,
    again,
    check_matrices,
    extracted,
    factored,
    has_moved,
    headers_of,
)
from monosoup_cli.pipeline.devices import plan_workers
from monosoup_cli.pipeline.engine import Progress, Threads
from monosoup_cli.pipeline.inputs import Inputs, open_inputs
from monosoup_cli.pipeline.kinship import doubts_of_names, doubts_of_values
from monosoup_cli.pipeline.options import RunOptions
from monosoup_cli.pipeline.plan import Plan, PlannedTensor, Selection, View, make_plan, stored_dtype
from monosoup_cli.pipeline.provenance import environment, names_only_in_base, report_head, with_roles
from monosoup_cli.pipeline.run import Method, Run, run
from monosoup_cli.report.files import REPORT_NAME
from monosoup_cli.report.records import summarise
from monosoup_cli.report.words import plural
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.folders import STATE_DICTS, WEIGHTS
from monosoup_cli.sources.hub import fetch
from monosoup_cli.tensors.matrix import MatrixLayer, matrix_layer
from monosoup_cli.tensors.method import Variant
from monosoup_cli.tensors.worker import Worker

__all__ = ["Choice", "Job", "Recipe", "prepare"]

STDOUT = "-"
"""As a report; as a base, none."""

OPERATIONAL = {"output", "report", "workers", "device", "overwrite", "resume", "push", "public"}
"""Arguments that do not change the bytes of a finished tensor: a resumed run may differ in them.
(The model of the device does, and stands in the environment.)"""


@dataclass(frozen=True)
class Choice:
    """Which fine-tuned checkpoints are averaged, in this order, and what the report says of it."""

    members: Sequence[int]
    selection: Mapping[str, Any]


Choose: TypeAlias = "Callable[[Job, PartialOutput | None, Progress], Choice]"
"""Makes the choice before the work; with a `PartialOutput` to note in what need not be done again."""


@dataclass(frozen=True)
class AsAdapter:
    """What the user said of an adapter to be written. `rank`: of the factors that a whole fine-tuned
    checkpoint's updates get; or `rank_of` finds that of each layer, 0 where it has not moved. Neither is
    for an adapter, which has ranks of its own."""

    rank: int | None = None
    rank_of: Callable[[MatrixLayer], int] | None = None

    @property
    def is_given(self) -> bool:
        return self.rank is not None or self.rank_of is not None


@dataclass(frozen=True)
class Recipe:
    """What sets a command apart from the others.

    `method` edits a layer, seen as `view` says, and `verb` says what that is. `measured` names
    what it measures; of that the summary averages `averaged` and sums `summed`. `card` makes the
    model card of a variant. `details`: what the report has at its top for this command alone;
    `foretold`: the measures that are known of a tensor beforehand, by its name.
    `needs_base`: layers are edited against the base; without it, a base serves `choose` alone.
    `drafts`: how many more checkpoints of the output's size `choose` writes beside it at a time.
    `of_names`: makes the fields that depend on the names of the (first) fine-tuned checkpoint.
    `as_adapter`: the output is a LoRA adapter. `base_is_option`: on the command line, `--base` names it.
    """

    command: str
    verb: str
    arguments: Mapping[str, Any]
    method: Method
    card: Callable[[Job, Variant, Choice], bytes]
    view: View = "flat"
    measured: Sequence[str] = ()
    averaged: Sequence[str] = ()
    summed: Sequence[str] = ()
    stacked: Sequence[str] = ()
    variants: Sequence[Variant] = (Variant(),)
    needs_base: bool = True
    weights: Sequence[float] | None = None
    choose: Choose | None = None
    drafts: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    foretold: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    of_names: Callable[[Sequence[str]], Mapping[str, Any]] | None = None
    as_adapter: AsAdapter | None = None
    base_is_option: bool = False

    @property
    def is_sweep(self) -> bool:
        """Whether OUT holds several checkpoints, each in a folder of its own."""
        return bool(self.variants[0].folder)


@dataclass
class Job:
    """One command on opened inputs; a context manager, because it holds their files.

    Making one reads headers and checks what they tell, and writes nothing; `run` does the work.
    `unsettled`: the plan of all tensors, where the layout still depends on what `settle` will find.
    """

    recipe: Recipe
    opened: Inputs
    output: Path
    options: RunOptions
    selection: Selection
    plan: Plan
    layout: OutputLayout
    adapter: AdapterOutput | None = None
    unsettled: Plan | None = None
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base, self.finetuned = self.opened.base, self.opened.finetuned
        self.devices = find_devices(self.options.device)
        self.workers, self.memory_bytes = plan_workers(
            self.plan,
            self.devices,
            self.options.workers,
            count=len(self.finetuned),
            variants=len(self.recipe.variants),
            kept_in_order=self.opened.kept_in_order,
        )
        self.side_files: list[str] = []
        first = self.finetuned[0]
        self.model = first.model
        if self.adapter is not None and isinstance(first, MergedCheckpoint):
            self.model = first.adapter.own
        is_bare = self.adapter is not None and self.adapter.source is None
        if not is_bare and self.model.folder is not None and not self.layout.is_single_file:
            taken = self.layout.names
            found = side_files(self.model.folder, self.model.inner)
            self.side_files = [name for name in found if name not in taken]
        self.downloads = self._select()
        self.notices += self.opened.notices
        if self.base is not None and self.recipe.needs_base:
            self.notices += doubts_of_names(self.plan)
        code = [name for name in self.side_files if name.endswith(".py")]
        if code:
            self.notices.append(f"custom code is copied along, not run: {', '.join(code)}")
        new = [tensor.name for tensor in self.plan.tensors if tensor.reason == "not_in_base"]
        if new:
            hint = f"; {self.opened.hint} would find more in it" if self.opened.hint else ""
            self.notices.append(f"not in the base, and kept as fine-tuned: {_some(new)}{hint}")
        carried = [name for name in self.side_files if name.endswith(WEIGHTS)]
        if carried:
            self.notices.append(f"not edited, and carried over as fine-tuned: {', '.join(carried)}")
        if self.adapter is not None and self.adapter.left:
            self.notices.append(f"no adapter can hold, and is as in the base: {_some(self.adapter.left)}")
        if self.only_in_base:
            self.notices.append(f"only in the base, and not written: {_some(self.only_in_base)}")

    def _select(self) -> list[Download]:
        """What has to be downloaded before the work: of the base, no more than is compared with."""
        compared = [tensor.name for tensor in self.plan.tensors if tensor.has_base]
        downloads = []
        if self.base is not None:
            is_merged = self.opened.has_adapters and self.adapter is None
            is_little = self.recipe.needs_base and not is_merged
            downloads += self.base.select(compared if is_little else None)
        for checkpoint in self.finetuned:
            downloads += checkpoint.select(None)
            # scored by a program that wants the whole folder
            if self.recipe.drafts and checkpoint.folder is not None and checkpoint is not self.model:
                downloads += checkpoint.folder.select(sorted(side_files(checkpoint.folder, checkpoint.inner)))
        folder = self.model.folder
        if folder is not None:
            names = {*self.side_files, *([CARD_NAME] if has_card(folder) else [])}
            if self.recipe.drafts:
                names.update(side_files(folder, self.model.inner))
            downloads += folder.select(sorted(names))
        return downloads

    def fetch(self, advance: Advance | None = None) -> None:
        """Download what is needed and is not here; `advance` is told of bytes as they arrive."""
        fetch(self.downloads, advance)

    def settle(self, progress: Progress | None = None) -> None:
        """Find what the layout depends on and the data tells: which tensors have moved, and the ranks, where
        they follow from an energy, in a pass over all layers. Done once."""
        whole, wanted = self.unsettled, self.recipe.as_adapter
        if whole is None or wanted is None or self.base is None:
            return
        base, ranks = self.base, dict[str, int]()

        def make(tensor: PlannedTensor, worker: Worker) -> None:
            assert tensor.cut is not None
            assert rank_of is not None
            layer = matrix_layer(tensor.name, tensor.cut, 0, base, self.finetuned, worker)
            ranks[tensor.name] = rank_of(layer)

        rank_of = wanted.rank_of
        if rank_of is not None:
            Threads(self.devices, self.workers).each(
                factored(whole),
                make,
                reads=lambda tensor: [base, *self.finetuned],
                progress=progress or _ignore,
            )
        self.plan, self.adapter = extracted(
            base,
            self.finetuned,
            whole,
            lambda tensor: ranks.get(tensor.name, wanted.rank or 1),
            stored_dtype("F32", self.options.dtype),
            lambda name: has_moved(name, base, self.finetuned),
        )
        self.layout = self.adapter.layout
        self.unsettled = None

    def doubts(self) -> list[str]:
        """Why base and fine-tuned may not be parent and child, from a sample of their values."""
        if self.base is None:
            return []
        found = doubts_of_values(self.base, self.finetuned[0], self.plan)
        for checkpoint in (self.base, self.finetuned[0]):
            checkpoint.forget()
        return found

    @property
    def inputs(self) -> list[tuple[str, Checkpoint]]:
        """(role, checkpoint), in the order of the command line."""
        return with_roles(self.base, self.finetuned)

    @property
    def only_in_base(self) -> list[str]:
        """Names that the fine-tuned checkpoint has not; they are not written."""
        return names_only_in_base(self.base, self.finetuned)

    @property
    def report_path(self) -> Path | None:
        """Where the report goes; None for stdout."""
        if self.options.report == STDOUT:
            return None
        if self.options.report is not None:
            report = Path(self.options.report)
            is_inside = report.parent.resolve() == self.output.resolve()
            return self.output / report.name if is_inside else report
        if self.layout.is_single_file:
            return self.output.with_name(f"{self.output.name.removesuffix('.safetensors')}.report.json")
        return self.output / REPORT_NAME

    @property
    def can_choose_dry(self) -> bool:
        """Whether there is a choice to make that takes no writing."""
        return self.recipe.choose is not None and not self.recipe.drafts

    @property
    def is_unranked(self) -> bool:
        """Whether `settle` takes a pass over all layers."""
        wanted = self.recipe.as_adapter
        return self.unsettled is not None and wanted is not None and wanted.rank_of is not None

    @property
    def work(self) -> list[PlannedTensor]:
        """What `run` will tell `progress` of: every tensor once, or twice where it is compared first."""
        return [*self.plan.tensors] * (2 if self.can_choose_dry else 1)

    @property
    def nbytes(self) -> int:
        """Size of the output's checkpoint files."""
        return self.layout.nbytes * len(self.recipe.variants)

    @property
    def is_unfinished(self) -> bool:
        """Whether there is work of an interrupted run that `resume` can go on with."""
        return unfinished_run(self.output)

    def check_output(self) -> None:
        """Raise OutputError or ResourceError for an OUT that `run` would refuse."""
        checkpoints = [checkpoint for _, checkpoint in self.inputs]
        overwrite = self.options.overwrite
        try:
            check_output_path(self.output, checkpoints, overwrite=overwrite, resume=self.options.resume)
        except OutputError as error:
            is_in_the_way = "the output exists" in error.problem or "the output is complete" in error.problem
            if self.options.push is not None and is_in_the_way and (self.output / REPORT_NAME).is_file():
                error.hint = f"what is there is sent by `{self.upload_command}`"
            raise
        report = self.report_path
        if report is not None and report.parent == self.output:
            taken = {variant.folder for variant in self.recipe.variants}
            if not self.recipe.is_sweep:
                taken = self.layout.names | {*self.side_files, CARD_NAME}
            if report.name in taken:
                raise OutputError("the report would replace another file of the output", path=report)
        elif report is not None:
            if report.resolve().is_relative_to(self.output.resolve()):
                raise OutputError("the report would lie in a folder of the output", path=report)
            check_report_path(report, self.output, checkpoints, overwrite=overwrite or self.options.resume)
        if is_in_use(self.output):
            raise OutputError("another run is writing this output", path=self.output)
        refuse_unfinished(self.output, resume=self.options.resume, overwrite=overwrite)
        allow_open_files(len(self.layout.files) * len(self.recipe.variants))
        folder = self.model.folder
        beside = sum(folder.nbytes(name) for name in self.side_files) if folder is not None else 0
        nbytes = self.nbytes + self.recipe.drafts * self.layout.nbytes
        check_space(self.output, nbytes + len(self.recipe.variants) * beside)

    def choose(self, partial: PartialOutput | None, progress: Progress | None = None) -> Choice:
        """The fine-tuned checkpoints that are averaged: all, unless the command makes a choice."""
        if self.recipe.choose is None:
            return Choice(range(len(self.finetuned)), {})
        return self.recipe.choose(self, partial, progress or _ignore)

    def draft(self, members: Sequence[int], output: Path) -> None:
        """Write the mean of some of the checkpoints elsewhere, as `run` would write it to the output."""
        recipe = replace(self.recipe, choose=lambda *_: Choice(members, {}), drafts=0)
        options = replace(self.options, report=None, overwrite=True, resume=False, push=None, public=False)
        shards = None if output.suffix == ".safetensors" else options.shard_bytes
        layout = plan_layout(self.finetuned[0].model, self.plan.dtypes, output.name, shards)
        replace(self, recipe=recipe, output=output, options=options, layout=layout, notices=[]).run()

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Make the output; returns the report, of a sweep the one of the whole. On an error there is
        no OUT."""
        self.check_output()
        self.fetch()
        self.settle(progress)
        started = time.monotonic()
        machine = environment(self.devices)
        partial = PartialOutput(
            self.output,
            self.layout,
            self._identity(machine),
            folders=[variant.folder for variant in self.recipe.variants],
            parts=None if self.adapter is None else self.adapter.stored,
            resume=self.options.resume,
            overwrite=self.options.overwrite,
        )
        with partial:
            choice = self.choose(partial, progress)
            work = Run(
                self.plan,
                self.recipe.method,
                self.recipe.measured,
                self.base if self.recipe.needs_base else None,
                [self.finetuned[number] for number in choice.members],
                self.finetuned[0],
                self.recipe.weights,
                partial,
                self.recipe.variants,
                self.options.on_nonfinite,
                self.adapter,
            )
            run(work, self.devices, self.workers, progress or _ignore)
            for _role, checkpoint in self.inputs:
                checkpoint.check_unchanged()
            files = partial.seal()
            head: dict[str, Any] = {
                **report_head(
                    self.recipe.command,
                    self._resolved_arguments(),
                    machine,
                    self.inputs,
                    started,
                    partial.bytes_written,
                ),
                **self.recipe.details,
                **({"selection": choice.selection} if choice.selection else {}),
                "only_in_base": self.only_in_base,
            }
            reports = [
                self._report(head, number, variant, partial, files[variant.folder])
                for number, variant in enumerate(self.recipe.variants)
            ]
            whole = reports[0]
            if self.recipe.is_sweep:
                whole = {**head, "outputs": [{**r["output"], "summary": r["summary"]} for r in reports]}
            self._publish(partial, choice, whole, reports)
        return dict(json.loads(_as_text(whole)))

    def push(self) -> str:
        """Upload the finished output to where `push` says; returns the address."""
        assert self.options.push is not None
        return push(
            self.output,
            self.options.push,
            public=self.options.public,
            overwrite=self.options.overwrite,
            summary=f"monosoup {self.recipe.command}",
        )

    @property
    def upload_command(self) -> str:
        """What does the same from the shell."""
        return upload_command(
            self.output, str(self.options.push), public=self.options.public, overwrite=self.options.overwrite
        )

    def _report(
        self,
        head: Mapping[str, Any],
        number: int,
        variant: Variant,
        partial: PartialOutput,
        files: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        layers = [partial.finished[tensor.name][number] for tensor in self.plan.tensors]
        return {
            **head,
            "arguments": {**head["arguments"], **variant.arguments},
            "output": {"path": str(self.output / variant.folder), "files": files},
            "summary": summarise(layers, self.recipe.averaged, self.recipe.summed),
            "layers": layers,
        }

    def _resolved_arguments(self) -> dict[str, Any]:
        return {
            **self.recipe.arguments,
            **asdict(self.options),
            "device": ", ".join(str(device.torch) for device in self.devices),
            "workers": self.workers,
            "report": STDOUT if self.report_path is None else str(self.report_path),
        }

    def _publish(
        self,
        partial: PartialOutput,
        choice: Choice,
        whole: Mapping[str, Any],
        reports: Sequence[Mapping[str, Any]],
    ) -> None:
        inside: dict[str, Path | bytes] = {}
        beside: dict[Path, bytes] = {}
        for variant, report in zip(self.recipe.variants, reports, strict=True):
            if not self.layout.is_single_file:
                prefix = f"{variant.folder}/" if variant.folder else ""
                folder = self.model.folder
                if folder is not None:
                    inside |= {f"{prefix}{name}": folder.path(name) for name in self.side_files}
                if self.adapter is not None and self.adapter.config is not None:
                    inside[f"{prefix}{ADAPTER_CONFIG}"] = _as_text(self.adapter.config)
                inside[f"{prefix}{CARD_NAME}"] = self.recipe.card(self, variant, choice)
                if self.recipe.is_sweep:
                    inside[f"{prefix}{REPORT_NAME}"] = _as_text(report)
        path = self.report_path
        if path is not None and path.parent == self.output:
            inside[path.name] = _as_text(whole)
        elif path is not None:
            beside[path] = _as_text(whole)
        partial.publish(inside, beside)

    def _identity(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the output's bytes depend on."""
        options = self._resolved_arguments()
        # on the Hub a commit goes by many names; which it is stands with the files
        options["finetuned"] = [each.repository or each.source for each in self.finetuned]
        if self.base is not None:
            options["base"] = self.base.repository or self.base.source
        inputs = {}
        for number, (role, checkpoint) in enumerate(self.inputs):
            for shard in checkpoint.shards:
                inputs[f"{role} {number} {shard.name}"] = {
                    "bytes": shard.file.nbytes,
                    **shard.file.version,
                    "header": shard.header_sha256,
                }
        settings = {
            f"{role} {number}": checkpoint.settings
            for number, (role, checkpoint) in enumerate(self.inputs)
            if checkpoint.settings is not None
        }
        return {
            "version": __version__,
            **({"settings": settings} if settings else {}),
            "command": self.recipe.command,
            "arguments": {name: value for name, value in options.items() if name not in OPERATIONAL},
            "inputs": inputs,
            "environment": environment,
        }

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.__exit__()


def _ignore(tensor: object, is_done: bool) -> None:
    pass


def _as_text(report: Mapping[str, Any]) -> bytes:
    return without_tokens(json.dumps(report, indent=1, allow_nan=False)).encode() + b"\n"


def _some(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    return f"{plural(len(names), 'tensor')}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def prepare(recipe: Recipe, options: RunOptions) -> Job:
    """Open the inputs and plan the output; every refusal that needs no tensor's bytes is made here.

    The recipe's arguments name them: `base` (or none), `finetuned` and `output`.
    """
    arguments = recipe.arguments
    path = _output_path(recipe, options)
    with ExitStack() as opened:
        inputs = opened.enter_context(
            open_inputs(
                _base_of(recipe), arguments["finetuned"], options.rename, alone=recipe.as_adapter is not None
            )
        )
        base, first = inputs.base, inputs.finetuned[0]
        if recipe.base_is_option and base is not None and not inputs.has_adapters:
            raise UsageError("--base is for LoRA adapters, and none is given", found=base.source)
        selection = Selection(
            tuple(options.include),
            tuple(options.exclude),
            tuple(recipe.stacked),
            options.on_mismatch,
            options.dtype,
        )
        adapter, whole = None, None
        if isinstance(first, MergedCheckpoint) and recipe.as_adapter is not None:
            adapter = _again(first, inputs, recipe.as_adapter, path, options.dtype)
            stacks = [n for n, pair in adapter.pairs.items() if pair.layout.endswith("experts")]
            selection = replace(selection, stacked=(*selection.stacked, *map(escape, stacks)))
        with mismatch_in(first.source):
            if recipe.of_names is not None:
                recipe = replace(recipe, **recipe.of_names(list(first.tensors)))
            of_base = base.tensors if base is not None and recipe.needs_base else None
            headers = [checkpoint.tensors for checkpoint in inputs.finetuned]
            if adapter is not None and isinstance(first, MergedCheckpoint):
                of_base, headers[0] = headers_of(first, adapter)
            plan = make_plan(
                of_base,
                headers,
                selection,
                view=recipe.view,
                wise=any(variant.wise is not None for variant in recipe.variants),
                hint=inputs.hint,
                unchanged=inputs.unchanged,
            )
        if adapter is not None:
            check_matrices(plan, adapter, first.source)
        elif recipe.as_adapter is not None:
            if base is None:
                raise UsageError("--as-adapter of a whole checkpoint needs a base", path=first.source)
            if not recipe.as_adapter.is_given:
                raise UsageError(
                    "--as-adapter of a whole checkpoint needs --adapter-rank or --adapter-energy",
                    path=first.source,
                )
            if path.suffix == ".safetensors":
                raise UsageError("an adapter needs a folder", path=path)
            rank, whole = recipe.as_adapter.rank or 1, plan
            dtype = stored_dtype("F32", options.dtype)
            plan, adapter = extracted(
                base, inputs.finetuned, plan, lambda tensor: rank, dtype, lambda name: True
            )
        if adapter is None:
            layout = plan_layout(first.model, plan.dtypes, path.name, options.shard_bytes)
        else:
            layout = adapter.layout
        job = Job(recipe, inputs, path, options, selection, plan, layout, adapter)
        job.unsettled = whole
        job.check_output()
        if options.push is not None:
            if any(options.push.lower() == (each.repository or "").lower() for each in inputs.all):
                raise OutputError("cannot push to an input", path=options.push)
            check_push(options.push, overwrite=options.overwrite)
        opened.pop_all()
    return job


def _base_of(recipe: Recipe) -> str | None:
    """The base as it was typed; None where there is none."""
    base = recipe.arguments.get("base")
    return None if base == STDOUT and recipe.as_adapter is not None else base


def _again(
    merged: MergedCheckpoint, inputs: Inputs, wanted: AsAdapter, output: Path, dtype: str
) -> AdapterOutput:
    """The output that an adapter is written to as one again; raises where it cannot be."""
    if len(inputs.finetuned) > 1:
        raise UsageError(
            f"--as-adapter takes one adapter, found {len(inputs.finetuned)}: without it, their mean is merged"
        )
    if wanted.is_given:
        raise UsageError(
            "--adapter-rank and --adapter-energy are for whole checkpoints: an adapter keeps its ranks"
        )
    own = merged.adapter.own
    dtypes = {name: stored_dtype(tensor.dtype, dtype) for name, tensor in own.tensors.items()}
    layout = plan_layout(own, dtypes, output.name, None)
    if layout.is_single_file != (own.folder is None):
        kind = f"{output}.safetensors" if own.folder is None else f"a folder, as {output.with_suffix('')}"
        raise UsageError("an adapter is written as it was given", expected=kind, found=output)
    return again(merged, layout)


def _output_path(recipe: Recipe, options: RunOptions) -> Path:
    """Where the output goes; raises for what can be no output, whatever the inputs."""
    given = recipe.arguments["output"]
    path = Path(given)
    if not path.name:
        raise OutputError("cannot be the output", path=given or "''")
    if path.suffix in STATE_DICTS:
        raise UsageError("only .safetensors files and folders are written", path=path)
    if path.suffix == ".safetensors" and recipe.is_sweep:
        raise UsageError("several values make several checkpoints, and need a folder", path=path)
    if path.suffix == ".safetensors" and options.shard_bytes is not None:
        raise UsageError("max_shard_size needs a folder as output", found=path)
    if path.suffix == ".safetensors" and options.push is not None:
        raise UsageError("push needs a folder as output", found=path)
    return path
