"""A task whose output is known to the last byte's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

from monosoup_cli.devices.device import Device
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.files import Download
from monosoup_cli.outputs.form import OutputForm
from monosoup_cli.outputs.model_card import has_card, own_metadata
from monosoup_cli.outputs.output_path import allow_open_files, check_space
from monosoup_cli.outputs.push import CardMetadata, screen_metadata
from monosoup_cli.outputs.side_files import SideFile, side_files
from monosoup_cli.pipeline.destination import part_of, work_path
from monosoup_cli.pipeline.engine import Progress, Threads, ignore
from monosoup_cli.pipeline.inputs import Inputs
from monosoup_cli.pipeline.kinship import doubts_of_inputs, doubts_of_names
from monosoup_cli.pipeline.memory import Resources, allot, needs_of
from monosoup_cli.pipeline.planned import Planned
from monosoup_cli.pipeline.shares import Share, shares_of
from monosoup_cli.pipeline.task import drafts_of, true_hints
from monosoup_cli.sources.library_files import CARD_NAME
from monosoup_cli.sources.source import Source
from monosoup_cli.sources.transfer import fetch
from monosoup_cli.tensors.method import Variant
from monosoup_cli.tensors.plan import Plan, PlannedTensor
from monosoup_cli.tensors.together import is_small

__all__ = [
    "Ready",
    "doubts_of",
    "doubts_of_headers",
    "foresee",
    "known_doubts",
    "lay_out",
    "make_ready",
    "read_beside",
    "refuse_doubts",
]


@dataclass
class Ready:
    """A task that only needs to be executed.

    Attributes:
        planned: The task on its opened inputs.
        plan: What is done to every tensor; without the edits that the output cannot hold.
        form: The files of the output, and where every tensor goes.
        resources: The devices, and how many tensors are computed at once.
        share: What of it is made.
        is_foreseen: Whether the output may become smaller, because nothing has been examined.
    """

    planned: Planned
    plan: Plan
    form: OutputForm
    resources: Resources
    share: Share
    is_foreseen: bool = False

    @cached_property
    def variants(self) -> Sequence[Variant]:
        """The checkpoints that the output consists of."""
        return self.planned.method.variants()

    @property
    def nbytes(self) -> int:
        """The size of the output's checkpoint files."""
        return self.share.layout.nbytes * len(self.variants)

    @cached_property
    def metadata(self) -> CardMetadata:
        """What the model card passes on of the model's own: all, or if it is pushed, what the Hub accepts."""
        own = own_metadata(self.form.model)
        is_pushed = self.planned.destination.options.push is not None
        return screen_metadata(own) if own and is_pushed else CardMetadata(own, {})

    @cached_property
    def doubts(self) -> list[str]:
        """What speaks against base and fine-tuned checkpoints belonging together. Reads a sample of both."""
        return doubts_of(self.planned.inputs, self.plan)

    @cached_property
    def downloads(self) -> list[Download]:
        """What has to be downloaded before the run. Of the base, only what is compared with or carried."""
        inputs = self.planned.inputs
        is_part = self.share.part is not None
        read = [one for one in self.plan.tensors if one.name in self.share.names or is_small(one)]
        names = [one.name for one in read if one.reads.base or one.reason == "carried"]
        downloads: list[Download] = []
        model = self.form.model
        if inputs.base is not None:
            is_merged = any(inputs.adapters) and not self.form.parts()  # written with all of the base
            compares = self.planned.method.needs_base and not is_merged
            downloads += inputs.base.select(names if compares or is_part else None)
        for source in inputs.finetuned:
            own = [one.name for one in read if one.name in source.tensors]
            downloads += source.select(own if is_part else None)
        files = read_beside(self.form)
        if drafts_of(self.planned.task):  # the program that scores wants whole folders
            files += [file for source in inputs.finetuned for file in side_files(source.files).carried]
            files += side_files(model).carried
        for folder in {id(file.folder): file.folder for file in files}.values():
            downloads += folder.select(sorted({file.stored for file in files if file.folder is folder}))
        return downloads

    def check(self) -> None:
        """Check what depends on the layout.

        Raises:
            OutputError: The report has the name of another file of the output.
            ResourceError: Too many files would be open, or the disk has too little space.
        """
        destination, layout = self.planned.destination, self.share.layout
        folders = {variant.folder for variant in self.variants}
        is_sweep = any(folders)
        own = self.form.own_files()
        destination.check_report_name(
            folders if is_sweep else self.form.layout.names | {*self.form.side_files.names, *own, CARD_NAME}
        )
        names = layout.names | set(self.form.side_files.names)
        folders_of_each = {folder for name in names for folder in PurePosixPath(name).parents}
        allow_open_files((len(layout.files) + len(folders_of_each)) * len(self.variants))
        is_whole = self.share.part is None
        copied = sum(file.nbytes for file in self.form.side_files.carried) if is_whole else 0
        nbytes = self.nbytes + drafts_of(self.planned.task) * layout.nbytes
        check_space(work_path(destination), nbytes + len(self.variants) * copied)


def read_beside(form: OutputForm) -> list[SideFile]:
    """The files that the output is made of besides weights: those that are carried, and the model's card."""
    files = list(form.side_files.carried)
    folder = form.model.place.folder
    if not form.layout.is_single_file and folder is not None and has_card(folder):
        files.append(SideFile(CARD_NAME, folder, CARD_NAME))
    return files


def foresee(planned: Planned) -> Ready:
    """Lay out the output as headers tell it, and check that. Only for a draft that is foreseeable.

    Raises:
        MonosoupError: The output cannot be written.
    """
    ready = lay_out(planned)
    ready.check()
    return replace(ready, is_foreseen=planned.examining is not None)


def doubts_of(inputs: Inputs, plan: Plan) -> list[str]:
    """What speaks against the inputs of a plan belonging together. Reads a sample of them."""
    return [*doubts_of_headers(inputs, plan), *doubts_of_inputs(inputs, plan)]


def doubts_of_headers(inputs: Inputs, plan: Plan) -> list[str]:
    """The first of the doubts, which names tell."""
    of_names = [] if inputs.parent is None else doubts_of_names(plan, inputs.parent.tensors)
    of_adapters = [
        f"{source.path}: {doubt}"
        for source, adapter in zip(inputs.finetuned, inputs.adapters, strict=True)
        if adapter is not None
        for doubt in adapter.fit.doubts
    ]
    return [*of_adapters, *of_names]


def known_doubts(ready: Ready) -> list[str]:
    """The doubts, if somebody has asked for them: to find them, a sample is read."""
    found: list[str] = vars(ready).get("doubts", [])
    return found


def refuse_doubts(doubts: Sequence[str]) -> None:
    """Refuse inputs of which there are doubts, as `--strict` asks for.

    Raises:
        MismatchError: There are.
    """
    if doubts:
        raise MismatchError(doubts[0], hint="without --strict, this is a note, and the run goes on")


def make_ready(planned: Planned, progress: Progress = ignore) -> Ready:
    """Examine what the layout of the output depends on, and check what depends on the layout.

    Raises:
        MonosoupError: The output cannot be written.
    """
    if planned.examining is not None:
        if planned.draft.is_foreseeable:
            foresee(planned)  # refuses before anything is read
        with true_hints(planned.task):
            _examine(planned, planned.examining, progress)
    ready = lay_out(planned)
    ready.check()
    return ready


def _examine(planned: Planned, resources: Resources, progress: Progress) -> None:
    sources = planned.inputs.sources

    def reads(tensor: PlannedTensor) -> list[Source]:
        return [source for source in sources if tensor.name in source.tensors]

    fetch(planned.downloads)
    engine = Threads(resources.places, resources.substitute)
    engine.each(planned.examined, planned.draft.examine, reads=reads, progress=progress)


def lay_out(planned: Planned, resources: Resources | None = None) -> Ready:
    """Lay out the output, after what it depends on has been examined. Its place is not checked.

    Args:
        planned: The task on its opened inputs.
        resources: The devices and workers; None for those that the user asks for and the memory allows.

    Raises:
        ResourceError: The memory does not suffice.
    """
    plan, form = planned.draft.form(planned.plan)
    method, sources = planned.method, planned.inputs.sources

    def needs(device: Device) -> list[Held]:
        return needs_of(plan.tensors, method, sources, device, form)

    if resources is None:
        workers = planned.task.options.computing.workers
        resources = allot(needs, planned.devices, workers, method.access)
    part, share = part_of(planned.destination), Share(plan.tensors, form.layout)
    if part is not None:
        shares = shares_of(plan, form.layout, form.parts(), planned.inputs.finetuned, part.count)
        share = shares[part.number - 1]
    return Ready(planned, plan, form, resources, share)
