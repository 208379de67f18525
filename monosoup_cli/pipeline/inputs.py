"""The inputs of a command, opened, and read under the names of the first fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from monosoup_cli.checkpoints.alignment import Rename, align, suggestion, tied_names
from monosoup_cli.checkpoints.checkpoint import Checkpoint
from monosoup_cli.checkpoints.locate import open_checkpoint
from monosoup_cli.errors import UsageError

__all__ = ["Inputs", "open_inputs"]


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

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for checkpoint in self.all:
            checkpoint.close()


def open_inputs(base: str | None, finetuned: Sequence[str], renames: Sequence[str]) -> Inputs:
    """Read the headers, and align the names of all others with those of the first fine-tuned checkpoint.

    `renames`: what `--rename` said. Raises MonosoupError.
    """
    parsed = [Rename.parse(each) for each in renames]
    with ExitStack() as opened:
        checkpoints = [
            opened.enter_context(open_checkpoint(each))
            for each in (*([] if base is None else [base]), *finetuned)
        ]
        place = 0 if base is None else 1
        first = checkpoints[place]
        others = [_aligned(each, first, parsed) for each in checkpoints if each is not first]
        unused = set(parsed).intersection(*(unused for _, unused in others)) if others else set(parsed)
        if unused:
            raise UsageError(
                f"--rename {next(each for each in parsed if each in unused)} makes no more names match"
            )
        checkpoints = [each for each, _ in others]
        checkpoints.insert(place, first)
        inputs = Inputs(None if base is None else checkpoints.pop(0), checkpoints)
        inputs.notices = [
            f"{each.source}: names are read {said}" for each in inputs.all for said in each.read_as
        ]
        inputs.notices += [
            f"{each.source}: beside the state dict, and left out: {', '.join(shard.left_out)}"
            for each in inputs.all for shard in each.shards if shard.left_out
        ]  # fmt: skip
        if inputs.base is not None:
            inputs.hint = suggestion(inputs.base.tensors, first.tensors)
        opened.pop_all()
    return inputs


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
            other.config if other.config is not None else first.config, other.metadata, {},
        )
    )  # fmt: skip
    for one, two in ((one, two) for shard in first.shards for one, two in shard.tied.items()):
        for missing, holder in ((one, two), (two, one)):
            if missing not in names and holder in names:
                ties.setdefault(missing, holder)
    return {missing: holder for missing, holder in ties.items() if missing not in names and holder in names}
