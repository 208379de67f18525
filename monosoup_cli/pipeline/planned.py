"""A task whose inputs are open and whose tensors are decided, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from monosoup_cli.devices.device import Device, find_devices
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import UsageError, mismatch_in
from monosoup_cli.formats.files import Download
from monosoup_cli.outputs.form import Draft, OutputContext
from monosoup_cli.pipeline.destination import Destination
from monosoup_cli.pipeline.inputs import Inputs, open_inputs
from monosoup_cli.pipeline.kinship import check_names
from monosoup_cli.pipeline.memory import Resources, allot, needs_of
from monosoup_cli.pipeline.splitting import split_fused
from monosoup_cli.pipeline.task import Task, drafts_of
from monosoup_cli.tensors.factors import check_merged
from monosoup_cli.tensors.method import Method
from monosoup_cli.tensors.plan import Plan, PlannedTensor, Selection, make_plan
from monosoup_cli.tensors.stacks import expert_counts

__all__ = ["Planned", "plan_on", "prepare"]


@dataclass
class Planned:
    """A task on opened inputs; a context manager, because it holds their files.

    Making one reads headers and refuses what can be refused by them. `make_ready` then examines the tensors
    that the layout of the output depends on; for a whole checkpoint there are none.

    Attributes:
        task: What the call asks for.
        inputs: The opened inputs.
        method: The task's method, which by now knows the names of the tensors.
        plan: What is done to every tensor.
        draft: The output that is planned.
        selection: Which tensors the user wants edited.
        destination: Where the output goes.
        devices: The devices that compute.
        examined: The tensors that `make_ready` examines.
        examining: What they are examined with; None where there are none.
    """

    task: Task
    inputs: Inputs
    method: Method
    plan: Plan
    draft: Draft
    selection: Selection
    destination: Destination
    devices: Sequence[Device]
    examined: Sequence[PlannedTensor] = ()
    examining: Resources | None = None

    @cached_property
    def downloads(self) -> list[Download]:
        """What has to be downloaded to examine those tensors; empty once it is."""
        names = [tensor.name for tensor in self.examined]
        return [
            download
            for source in self.inputs.sources
            for download in source.select([name for name in names if name in source.tensors])
            if names
        ]

    @property
    def can_carry_base(self) -> bool:
        """Whether tensors that only the base has can be written."""
        return self.task.kind.can_carry_base and self.inputs.base is not None

    def __enter__(self) -> Planned:
        return self

    def __exit__(self, *_: object) -> None:
        self.inputs.__exit__()


def check_task(task: Task) -> None:
    """Refuse arguments that contradict each other; nothing is opened.

    Raises:
        UsageError: They do.
    """
    carry_base = task.options.storing.carry_base
    if carry_base and not task.kind.can_carry_base:
        raise UsageError("--carry-base is for whole checkpoints, not for an adapter")
    if carry_base and task.order.base is None:
        raise UsageError("--carry-base without a base: there is nothing to carry")


def prepare(task: Task) -> Planned:
    """Open the inputs and plan the output; refuse everything that headers show to be wrong.

    Raises:
        MonosoupError: The inputs do not belong together, or the output cannot be written.
    """
    devices = find_devices(task.options.computing.device)
    destination = Destination.of(
        task.order.output, task.options, is_sweep=bool(task.order.method.variants()[0].folder)
    )
    check_task(task)
    selecting, writing = task.options.selecting, task.options.writing
    sharing = "--engine" if writing.engine != "threads" else None
    if writing.part is not None:
        if sharing is not None:
            raise UsageError(
                "--engine ray makes all parts, and --part makes one", hint="leave out one of them"
            )
        sharing = "--part"
    if sharing is not None and scores_whole(task):
        raise UsageError(
            "in parts, no whole checkpoint is made that a score command could take",
            hint=f"leave out {sharing}",
        )
    with ExitStack() as opened:
        inputs = opened.enter_context(
            open_inputs(
                task.order.base,
                task.order.finetuned,
                selecting.rename,
                state_dict=selecting.state_dict,
                parts=selecting.parts,
                alone=task.kind.takes_no_base,
                leaves_out=Selection(tuple(selecting.include), tuple(selecting.exclude)).leaves_out,
            )
        )
        _check_kinds(task, inputs)
        inputs.has_target = task.order.kept == "first"
        planned = plan_on(inputs, task, destination, devices)
        if sharing is not None and not planned.draft.is_foreseeable:
            rank = "--rank" if task.call.command == "extract" else "--adapter-rank"
            raise UsageError(
                "parts need ranks that do not depend on all layers",
                hint=f"give {rank}, the same for all of them",
            )
        destination.check_path(inputs.sources)
        destination.check_push(inputs.sources)
        if planned.examined:

            def needs(device: Device) -> list[Held]:
                return needs_of(planned.examined, planned.method, inputs.sources, device)

            resources = allot(needs, devices, task.options.computing.workers)
            planned.examining = resources
        opened.pop_all()
    return planned


def _check_kinds(task: Task, inputs: Inputs) -> None:
    """Raise UsageError where inputs are adapters, or whole checkpoints, that should be the other."""
    order = task.order
    if order.base_is_option and inputs.base is not None and not any(inputs.adapters):
        raise UsageError("--base is for LoRA adapters, and there are none", found=inputs.base.path)
    if order.takes_adapters_only and None in inputs.adapters:
        raise UsageError(
            f"{task.call.command} takes LoRA adapters, and this is a whole checkpoint",
            path=inputs.finetuned[inputs.adapters.index(None)].path,
            hint="`monosoup wise` interpolates with it, and `monosoup transplant` adds its update to a model",
        )


def scores_whole(task: Task) -> bool:
    """Whether a score command gets whole checkpoints."""
    return bool(task.order.scores) or drafts_of(task) > 0


def plan_on(inputs: Inputs, task: Task, destination: Destination, devices: Sequence[Device]) -> Planned:
    """Plan a task on inputs that are open.

    Raises:
        MonosoupError: The inputs do not belong together, or the output cannot be written.
    """
    selecting, storing = task.options.selecting, task.options.storing
    first = inputs.finetuned[0]
    with mismatch_in(first.path):
        method = task.order.method.for_names(list(first.tensors))
    variants = method.variants()

    def interpolates(name: str) -> bool:
        return any(variant.wise_for(name) is not None for variant in variants)

    draft = task.kind.draft(
        OutputContext(
            inputs.base,
            inputs.finetuned,
            inputs.adapters,
            destination.path,
            storing.dtype,
            storing.shard_bytes,
            storing.side_files,
            task.order.weights,
            interpolates,
        )
    )
    selection = Selection(
        tuple(selecting.include),
        tuple(selecting.exclude),
        (*task.order.stacked, *draft.stacked()),
        expert_counts(inputs.finetuned[0].model.config),
        selecting.on_mismatch,
        storing.dtype,
        tuple(storing.carry_base),
        layers=tuple(task.layers),
    )
    with mismatch_in(first.path):
        of_base, of_finetuned = draft.headers()
        names = set(of_base or ()).union(*of_finetuned)
        base, *whole = (  # without an adapter's own factors, and what it leaves as it is
            {name: tensor for name, tensor in source.tensors.items() if name in names}
            for source in (inputs.base or first, *inputs.finetuned)
        )
        check_merged(base if method.needs_base else None, whole, selection)
        plan = make_plan(
            of_base,
            of_finetuned,
            selection,
            access=method.access,
            interpolates=lambda name: task.order.kept == "base" or interpolates(name),
            hint=inputs.hint,
            unchanged=inputs.unchanged,
            left_out=[copy.name for copy in inputs.copies],
            uses_base=method.needs_base,
            tied=inputs.tied,
            has_target=inputs.has_target,
        )
        if inputs.parent is not None:
            check_names(plan, inputs.parent.tensors, inputs.hint, partial=selecting.partial)
        if task.order.split_fused:
            plan = split_fused(plan, inputs)
    examined = draft.examined(plan)
    if task.chooser is not None:
        task.chooser.check(inputs, selection)
    return Planned(task, inputs, method, plan, draft, selection, destination, devices, examined)
