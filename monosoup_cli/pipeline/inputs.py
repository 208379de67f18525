"""The inputs of a command, opened, and read under the names of the first fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from monosoup_cli.adapters.adapter import Adapter, read_adapter
from monosoup_cli.adapters.lora_file import read_lora_file
from monosoup_cli.adapters.merged import MergedCheckpoint
from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.sources.alignment import Rename, align, suggestion, tied_names
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.hub import fetch
from monosoup_cli.sources.locate import open_checkpoint

__all__ = ["Inputs", "open_inputs", "update_of"]


@dataclass
class Inputs:
    """Opened checkpoints, whose files `with` closes. `hint`: the `--rename` that seems to be missing."""

    base: Checkpoint | None
    finetuned: list[Checkpoint]
    notices: list[str] = field(default_factory=list)
    hint: str | None = None

    @property
    def all(self) -> list[Checkpoint]:
        return [*([] if self.base is None else [self.base]), *self.finetuned]

    @property
    def kept_in_order(self) -> int:
        """Bytes that a worker may hold of tensors whose elements do not lie in order."""
        return sum(checkpoint.kept_in_order for checkpoint in self.all)

    @property
    def has_adapters(self) -> bool:
        return any(isinstance(checkpoint, MergedCheckpoint) for checkpoint in self.finetuned)

    @property
    def unchanged(self) -> frozenset[str]:
        """Names that no fine-tuned checkpoint changes, as far as headers tell: those that adapters leave."""
        return frozenset(
            name
            for name in self.finetuned[0].tensors
            if not any(checkpoint.changes(name) for checkpoint in self.finetuned)
        )

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for checkpoint in self.all:
            checkpoint.close()


def update_of(finetuned: Sequence[Checkpoint], name: str) -> dict[str, Any]:
    """What the report says of the update of a tensor beside what is measured: where adapters make it, its
    rank, which in a mean is the sum of theirs, and the scale, where it is one."""
    found = [checkpoint.update_of(name) for checkpoint in finetuned]
    if not all(found):
        return {}
    scales = {each["adapter_scale"] for each in found}
    return {
        "adapter_rank": sum(each["adapter_rank"] for each in found),
        "adapter_scale": scales.pop() if len(scales) == 1 else None,
    }


def open_inputs(
    base: str | None, finetuned: Sequence[str], renames: Sequence[str], *, alone: bool = False
) -> Inputs:
    """Read the headers, and align the names of all others with those of the first fine-tuned checkpoint.

    `renames`: what `--rename` said. `alone`: an adapter does without its base. Raises MonosoupError.
    """
    parsed = [Rename.parse(each) for each in renames]
    if alone and base is None and len(finetuned) > 1:
        raise UsageError(
            f"--as-adapter takes one adapter, found {len(finetuned)}: without it, and with a base, their mean"
            " is merged"
        )
    with ExitStack() as opened:
        checkpoints = [
            opened.enter_context(open_checkpoint(each))
            for each in (*([] if base is None else [base]), *finetuned)
        ]
        place = 0 if base is None else 1
        if place and checkpoints[0].adapter_config is not None:
            raise CheckpointError(
                "a LoRA adapter, which can be no base",
                path=checkpoints[0].source,
                hint="the base comes first, and then the adapter",
            )
        unused_by: list[Sequence[Rename]] = []
        if checkpoints[place].adapter_config is not None:
            over = checkpoints[0] if place else None
            checkpoints[place], unused = _merged(over, checkpoints[place], parsed, alone=alone)
            unused_by.append(unused)
        first, aligned = checkpoints[place], dict[int, Checkpoint]()
        for number, each in enumerate(checkpoints):
            if each is not first:
                if each.adapter_config is None:
                    aligned[number], unused = _aligned(each, first, parsed)
                else:  # the base, which comes before it, has the names of the first by now
                    aligned[number], unused = _merged(aligned.get(0) if place else None, each, parsed)
                unused_by.append(unused)
        matchless = set(parsed).intersection(*unused_by)
        if matchless:
            raise UsageError(
                f"--rename {next(each for each in parsed if each in matchless)} makes no more names match"
            )
        checkpoints = [aligned.get(number, each) for number, each in enumerate(checkpoints)]
        inputs = Inputs(None if base is None else checkpoints.pop(0), checkpoints)
        inputs.notices = [
            f"{each.source}: names are read {said}" for each in inputs.all for said in each.read_as
        ]
        inputs.notices += [
            f"{each.source}: beside the state dict, and left out: {', '.join(shard.left_out)}"
            for each in inputs.all
            for shard in each.shards
            if shard.left_out
        ]
        if inputs.base is not None:
            inputs.hint = suggestion(inputs.base.tensors, first.tensors)
        opened.pop_all()
    return inputs


def _merged(
    base: Checkpoint | None, own: Checkpoint, renames: Sequence[Rename], *, alone: bool = False
) -> tuple[Checkpoint, Sequence[Rename]]:
    """An adapter over its base, as the one checkpoint that merging them would make; and the renames that
    matched nothing."""
    if base is None and not alone:
        raise CheckpointError(
            "a LoRA adapter, which needs its base", path=own.source, hint=f"--base names it{_named_base(own)}"
        )
    assert own.adapter_config is not None
    if own.adapter_config:
        adapter = read_adapter(own, own.adapter_config, None if base is None else base.tensors, renames)
    elif base is None:
        raise CheckpointError(
            "a LoRA file of its own, which says by the base's names alone what it changes",
            path=own.source,
            hint="name the base",
        )
    else:
        fetch(own.select(None))  # its scales are among the tensors, and it is small
        adapter = read_lora_file(own, base.tensors, renames)
    if base is not None:
        _check_ties(base, adapter)
    return MergedCheckpoint.of(base, adapter), adapter.unused


def _check_ties(base: Checkpoint, adapter: Adapter) -> None:
    """Raise CheckpointError where the adapter replaces weights that the base uses twice, for one use alone: a
    checkpoint with the base's names and configuration cannot say so."""
    noted = {name: kept for shard in base.shards for name, kept in shard.tied.items()}
    ties = tied_names(base.tensors, base.config, base.metadata, noted)
    for missing, holder in ties.items():
        own = adapter.replaced.get(holder)
        is_matrix = own is not None and len(adapter.own.tensors[own].shape) > 1
        if is_matrix and holder not in adapter.twins:
            raise CheckpointError(
                f"replaces weights to which the base ties {missing!r}, and would leave that one as it was",
                path=adapter.own.source,
                tensor=own,
                hint="save the base with the two apart (tie_word_embeddings: false) first",
            )


def _named_base(own: Checkpoint) -> str:
    """What the adapter says of its base, for people; it is never opened unasked."""
    name = (own.adapter_config or {}).get("base_model_name_or_path")
    return f" ({name})" if isinstance(name, str) and name and name.isprintable() else ""


def _aligned(
    other: Checkpoint, first: Checkpoint, renames: Sequence[Rename]
) -> tuple[Checkpoint, Sequence[Rename]]:
    """The checkpoint under the names of the first, those of tied weights included; and the renames that
    matched nothing."""
    alignment = align(other.tensors, first.tensors, renames, other.source)
    names, said = dict(alignment.stored), list(alignment.said)
    for copy, kept in _copies(other, first, names):
        del names[copy]
        said.append(f"without {copy!r}, which is tied to {kept!r}")
    for missing, holder in _ties(other, first, names).items():
        shape = other.tensors[names[holder]].shape
        if missing in first.tensors and first.tensors[missing].shape[1:] == shape[1:]:
            names[missing] = names[holder]
            said.append(f"with {holder!r} for {missing!r}, which is tied to it")
    return (other.renamed(names, tuple(said)) if said else other), alignment.unused


def _copies(other: Checkpoint, first: Checkpoint, names: dict[str, str]) -> list[tuple[str, str]]:
    """(a name that the first leaves out, the one it has) of tensors that share their elements in `other`."""
    read_as = {stored: name for name, stored in names.items()}
    found = []
    for shard in other.shards:
        for holder in dict.fromkeys(shard.tied.values()):
            twins = [holder, *(copy for copy, kept in shard.tied.items() if kept == holder)]
            group = [read_as[each] for each in twins]
            kept = next((name for name in group if name in first.tensors), None)
            if kept is not None:
                found += [(name, kept) for name in group if name not in first.tensors]
    return found


def _ties(other: Checkpoint, first: Checkpoint, names: dict[str, str]) -> dict[str, str]:
    """A name that `other` leaves out → the name that holds its weights, as either checkpoint says."""
    ties = dict(
        tied_names(
            {name: other.tensors[stored] for name, stored in names.items()},
            other.config if other.config is not None else first.config,
            other.metadata,
            {},
        )
    )
    for one, two in ((one, two) for shard in first.shards for one, two in shard.tied.items()):
        for missing, holder in ((one, two), (two, one)):
            if missing not in names and holder in names:
                ties.setdefault(missing, holder)
    return {missing: holder for missing, holder in ties.items() if missing not in names and holder in names}
