"""Open the inputs of a command, and read them under the names of the first fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from monosoup_cli.encodings.table import decoded
from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.layouts.layout import Reading
from monosoup_cli.layouts.match import in_layout_of
from monosoup_cli.options import NO_BASE
from monosoup_cli.pipeline.disagreements import disagreements
from monosoup_cli.report.words import plural
from monosoup_cli.sources.alignment import Rename, align
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.derived import renamed
from monosoup_cli.sources.files import Files, encodings_of
from monosoup_cli.sources.folders import notes_of
from monosoup_cli.sources.locate import open_checkpoint, parts_of
from monosoup_cli.sources.others import note_of_others
from monosoup_cli.sources.source import Source, are_unchanged
from monosoup_cli.sources.suggestions import suggestions
from monosoup_cli.sources.ties import Copy, copies_in, ties_in, ties_of, without_copies

if TYPE_CHECKING:
    from monosoup_cli.adapters.lora import Adapter
    from monosoup_cli.formats.header import TensorInfo

__all__ = ["NEEDS_BASE", "Inputs", "open_inputs"]

NEEDS_BASE = "a LoRA adapter needs its base"


@dataclass
class Inputs:
    """The opened inputs of a command; a context manager that closes their files.

    Attributes:
        base: The base; None where there is none.
        finetuned: The fine-tuned checkpoints. An adapter is merged into the base.
        adapters: For each fine-tuned checkpoint the adapter that it was merged from, or None.
        copies: What is left out because it should be the same as another tensor; values tell whether it is.
        readings: How tensors of the first fine-tuned checkpoint are read, where others store them otherwise.
        notices: What the user should know about how the inputs are read.
        hint: The `--rename`s that seem to be missing.
        has_target: Whether the first of `finetuned` is what the updates of the others are added to.
    """

    base: Source | None
    finetuned: list[Source]
    adapters: list[Adapter | None]
    copies: list[Copy] = field(default_factory=list)
    readings: dict[str, Reading] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    hint: str | None = None
    has_target: bool = False

    @property
    def sources(self) -> list[Source]:
        """All checkpoints, in the order of the command line."""
        return [*([] if self.base is None else [self.base]), *self.finetuned]

    @property
    def parent(self) -> Source | None:
        """The base, if the first fine-tuned checkpoint is a whole one, which may have other names."""
        return self.base if self.adapters[0] is None else None

    @cached_property
    def unchanged(self) -> frozenset[str]:
        """The names that no fine-tuned checkpoint changes, as far as headers show."""
        tuned = self.finetuned[1:] if self.has_target else self.finetuned
        return frozenset(name for name in self.finetuned[0].tensors if are_unchanged(name, tuned))

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """The names that the first fine-tuned checkpoint leaves out as tied, and what they are tied to."""
        return ties_in(self.finetuned[0], self.base)

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self.sources:
            source.files.close()


def open_inputs(
    base: str | Checkpoint | None,
    finetuned: Sequence[str | Checkpoint],
    renames: Iterable[str],
    *,
    state_dict: str | None = None,
    parts: Sequence[str] = (),
    alone: bool = False,
    leaves_out: Callable[[str], bool] = lambda name: False,
) -> Inputs:
    """Read the headers of all inputs, and align their names with those of the first fine-tuned checkpoint.

    Args:
        base: The base as the user typed it, or opened; None for no base.
        finetuned: The fine-tuned checkpoints as the user typed them, or opened.
        renames: What the user typed after `--rename`.
        state_dict: What the user typed after `--state-dict`.
        parts: The parts of a pipeline that the user typed after `--parts`.
        alone: Whether an adapter is looked at or written again for itself, so that it needs no base.
        leaves_out: Whether a tensor is not edited, so that its layout may stay unknown.

    Raises:
        MonosoupError: An input cannot be read, or the inputs do not belong together.
    """
    parsed = [Rename.parse(text) for text in renames]
    if base == NO_BASE:
        raise UsageError(
            "- means that there is no base, which only `edit --as-adapter` and `inspect-spectrum` do without",
            hint="give the checkpoint that was fine-tuned",
        )
    if alone and base is None and len(finetuned) > 1:
        raise UsageError(
            f"without a base there can be one adapter, found {len(finetuned)}: with a base, their mean is"
            " merged, and `monosoup extract` makes one adapter of several"
        )
    with ExitStack() as opened:
        checkpoints: list[Source] = []
        for one in [*([] if base is None else [base]), *finetuned]:
            checkpoint = open_checkpoint(one, state_dict, parts) if isinstance(one, str) else one
            opened.enter_context(checkpoint.files)
            if checkpoint.files.kind.is_adapter:
                checkpoints.append(checkpoint)
                continue
            checkpoints.append(decoded(checkpoint))
            if checkpoint.files.kind.inner is not None:
                from monosoup_cli.adapters.merged_model import MergedModel  # most models do without

                checkpoints.append(MergedModel(checkpoints.pop()))
        _check_choice(state_dict, checkpoints)
        if parts and not any(_has_parts(checkpoint.files) for checkpoint in checkpoints):
            raise UsageError(
                "--parts has no effect: no input is a pipeline's folder or a single LoRA file",
                hint="--include GLOB chooses tensors by name",
            )
        base_checkpoint = None if base is None else checkpoints.pop(0)
        if base_checkpoint is not None and base_checkpoint.files.kind.is_adapter:
            raise CheckpointError(
                "BASE is a LoRA adapter; a full model is needed",
                path=base_checkpoint.path,
                hint="give the base first, then the adapter",
            )
        inputs = _align(base_checkpoint, checkpoints, parsed, parts, alone=alone, leaves_out=leaves_out)
        opened.pop_all()
    return inputs


def _check_choice(state_dict: str | None, checkpoints: Sequence[Source]) -> None:
    """Raise UsageError if no input has the state dict that the user asked for."""
    shards = [shard for checkpoint in checkpoints for shard in checkpoint.files.shards]
    chosen = [shard.state_dicts[0] for shard in shards if shard.state_dicts]
    if state_dict is not None and state_dict not in chosen:
        choices = sorted({one for shard in shards for one in shard.state_dicts if one})
        raise UsageError(
            f"no input has a state dict {state_dict!r}",
            expected=", ".join(choices) if choices else None,
            hint=None if choices else "without --state-dict, their tensors are read",
        )


def _has_parts(files: Files) -> bool:
    """Whether `--parts` chooses among what these files have."""
    place = files.place
    return files.kind.is_in_parts or (place.folder is not None and place.inner != "")


def _align(
    base: Source | None,
    checkpoints: Sequence[Source],
    renames: Sequence[Rename],
    parts: Sequence[str],
    *,
    alone: bool,
    leaves_out: Callable[[str], bool],
) -> Inputs:
    """Merge adapters into the base, and read everything under the names of the first checkpoint."""
    unused_by: list[Sequence[Rename]] = []
    missing: list[Rename] = []
    adapters: list[Adapter | None] = [None] * len(checkpoints)
    sources: list[Source] = []
    copies: list[Copy] = []
    readings: dict[str, Reading] = {}
    for number, checkpoint in enumerate(checkpoints):
        if not checkpoint.files.kind.is_adapter:
            if number:
                stored = checkpoint
                checkpoint, unused = _align_names(stored, sources[0], renames)
                checkpoint, seen = in_layout_of(checkpoint, sources[0], leaves_out)
                readings |= seen
                unused_by.append(unused)
                missing += _missing(stored, checkpoint, sources[0], renames)
                checkpoint, left_out = without_copies(checkpoint, sources[0], number + 1)
                copies += left_out
            sources.append(checkpoint)
        else:
            _check_gathered(checkpoint.path, checkpoint.tensors)
            merged = _adapter(base, checkpoint, renames, parts, alone=alone)
            unused_by.append(merged.unused)
            adapters[number] = merged
            from monosoup_cli.adapters.merged import MergedSource  # full models do without

            sources.append(MergedSource(merged, base))
        if number == 0 and base is not None:  # further adapters change a base that has the names of the first
            stored = base
            base, unused = _align_names(stored, sources[0], renames)
            base, seen = in_layout_of(base, sources[0], leaves_out)
            readings |= seen
            unused_by.append(unused)
            missing += _missing(stored, base, sources[0], renames)
    without_effect = set(renames).intersection(*unused_by)
    if without_effect:
        rename = next(one for one in renames if one in without_effect)
        raise UsageError(f"--rename {rename} has no effect: it matches no additional names")
    inputs = Inputs(base, sources, adapters, copies, readings)
    for source in inputs.sources:
        _check_gathered(source.path, source.tensors, [other.tensors for other in inputs.sources])
    for source in inputs.sources:
        inputs.notices += [f"{source.path}: names are read {words}" for words in source.files.read_as]
        for words, count in encodings_of(source.files).items():
            inputs.notices.append(f"{source.path}: decoded from {words} ({plural(count, 'tensor')})")
        inputs.notices += [f"{source.path}: {note}" for note in source.files.notes]
        inputs.notices += [f"{source.path}: {note}" for one in source.files.shards for note in one.notes]
        inputs.notices += [f"{source.path}: {note}" for note in _notes_of_place(source.files)]
    for source in inputs.sources:
        inputs.notices += [
            f"{source.path}: not part of the state dict, and left out: {', '.join(shard.left_out)}"
            for shard in source.files.shards
            if shard.left_out
        ]
    whole = [one.files for one, adapter in zip(sources, adapters, strict=True) if adapter is None]
    if base is not None and any(bool(files.decoded) != bool(base.files.decoded) for files in whole):
        inputs.notices.append(
            "only one of base and fine-tuned checkpoint is stored as codes: what they round off is part of"
            " the update, and may be most of it"
        )
    inputs.notices += disagreements(base, sources)
    inputs.hint = " ".join(f"--rename {rename}" for rename in dict.fromkeys(missing)) or None
    return inputs


def _check_gathered(
    path: str, tensors: Mapping[str, TensorInfo], others: Sequence[Mapping[str, TensorInfo]] = ()
) -> None:
    """Raise CheckpointError for what ZeRO-3 and FSDP leave in place of weights: empty and flat tensors.

    Args:
        path: The checkpoint.
        tensors: Its tensors. Those of an adapter are never empty.
        others: The tensors of all checkpoints, one of which has a matrix of the name; none for an adapter.
    """
    flat = [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) == 1
        and any(_is_flattened(tensor, other[name]) for other in others if name in other)
    ]
    if flat:
        raise CheckpointError(
            f"flat tensors in place of matrices ({len(flat)} of {len(tensors)}), as a rank of FSDP has them",
            path=path,
            tensor=flat[0],
            found=f"{tensors[flat[0]].elements:,} elements",
            hint="give the run's CHECKPOINT/pytorch_model_fsdp_0, if it has one; or train with"
            " fsdp_state_dict_type: FULL_STATE_DICT",
        )
    empty = [
        name
        for name, tensor in tensors.items()
        if tensor.shape == (0,)
        and (not others or any(len(other[name].shape) > 1 for other in others if name in other))
    ]
    if empty:
        raise CheckpointError(
            f"empty tensors in place of weights ({len(empty)} of {len(tensors)}), as DeepSpeed's ZeRO-3 has"
            " them when nothing gathers its parts",
            path=path,
            tensor=empty[0],
            hint="gather them in the run's checkpoint folder: python zero_to_fp32.py . NEW; or train with"
            " stage3_gather_16bit_weights_on_model_save",
        )


def _is_flattened(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Whether this vector has elements of what is a matrix elsewhere: FSDP flattens and then slices."""
    is_matrix = len(other.shape) > 1 and sum(size > 1 for size in other.shape) > 1
    return is_matrix and tensor.shape[0] not in other.shape and 0 < tensor.elements <= other.elements


def _notes_of_place(files: Files) -> list[str]:
    names = [name for shard in files.shards for name in stored_files(shard)]
    names += [] if files.index is None else [files.index.name]
    places = [] if files.place.folder is None else notes_of(files.place.folder, names)
    return [*note_of_others(files), *places]


def _missing(stored: Source, read: Source, first: Source, renames: Sequence[Rename]) -> list[Rename]:
    """The further renames with which more names of a checkpoint would match."""

    def reread(more: list[Rename]) -> Mapping[str, TensorInfo]:
        return _align_names(stored, first, [*renames, *more])[0].tensors

    return suggestions(read.tensors, first.tensors, reread)


def _adapter(
    base: Source | None, own: Source, renames: Sequence[Rename], parts: Sequence[str], *, alone: bool
) -> Adapter:
    """What an adapter changes of its base."""
    if base is None and not alone:
        raise CheckpointError(NEEDS_BASE, path=own.path, hint=f"add --base BASE{_named_base(own.files)}")
    from monosoup_cli.adapters.pipeline_names import Wanted
    from monosoup_cli.adapters.table import READERS

    wanted = Wanted(parts)
    if base is not None and base.files.place.folder is not None and base.files.place.inner:
        folder = base.files.place.inner.rstrip("/")
        others = [part for part in parts_of(base.files.place.folder) if part != folder]
        wanted = Wanted(parts, folder, others)
    read = READERS[type(own.files.kind)]
    adapter = read(own, base, renames, wanted)
    if base is not None and not alone:  # an adapter that is written again is tied or not as it was
        from monosoup_cli.adapters.base import check_ties

        check_ties(adapter, base.tensors, base.files)
    return adapter


def _named_base(files: Files) -> str:
    """What an adapter says about its base, for a message; it is never opened unasked."""
    name = (files.kind.settings or {}).get("base_model_name_or_path")
    return f" (it names {name!r})" if isinstance(name, str) and name and name.isprintable() else ""


def _align_names(other: Source, first: Source, renames: Sequence[Rename]) -> tuple[Source, Sequence[Rename]]:
    """The checkpoint under the names of the first, tied weights included; and the renames without effect."""
    alignment = align(other.tensors, first.tensors, renames, other.path)
    names, words = dict(alignment.stored), list(alignment.notes)
    for copy, kept in copies_in(other, first, names):
        del names[copy]
        words.append(f"without {copy!r}, which is tied to {kept!r}")
    for missing, holder in ties_of(other, first, names).items():
        shape = other.tensors[names[holder]].shape
        if missing in first.tensors and first.tensors[missing].shape[1:] == shape[1:]:
            names[missing] = names[holder]
            words.append(f"with {missing!r} taken from {holder!r}, to which it is tied")
    return (renamed(other, names, words) if words else other), alignment.unused
