"""Match the tensor names of checkpoints that are renamed or wrapped by a library.

The output has the names of the first fine-tuned checkpoint, and all others are read under these names.
Prefixes that libraries add, components that they insert, and names of older releases are recognised if the
names then match. Everything else needs `--rename`. Only names and shapes are compared; no byte of a tensor is
read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.header import TensorInfo

__all__ = ["LANGUAGE_WRAPPER", "Alignment", "Headers", "Rename", "align", "count_of", "reading"]

Headers = Mapping[str, TensorInfo]

WRAPPER = re.compile(r"(base_model\.model|module|model|text)\.")
"""The prefixes that peft, DDP, Lightning, models with a head and a text tower of open_clip add to names."""
LANGUAGE_WRAPPER = re.compile(r"(base_model\.model|module|model|text|language_model)\.")
"""The same, and what models with vision put around their language model: `language_model.model.` in older
releases of transformers, `model.language_model.` since 4.52."""
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The components that `torch.compile`, FSDP and activation checkpointing insert, at the start or where a
submodule was wrapped."""
LEGACY = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""Endings of names in older releases of transformers and torch, mapped to today's. It loads both."""
MAX_NAMESAKES = 8
"""How many names may differ only by wrappers. More would take too long to try, and are ambiguous anyway."""


@dataclass(frozen=True)
class Rename:
    """One `--rename OLD=NEW`, which replaces runs of whole components.

    Attributes:
        old: What is replaced; if empty, `new` is added at the start of names.
        new: The replacement; if empty, `old` is removed.
    """

    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> Rename:
        """Parse OLD=NEW. Raise UsageError for anything else."""
        old, equals, new = text.partition("=")
        old, new = old.removesuffix("."), new.removesuffix(".")
        if not equals or old == new:
            raise UsageError(
                f"--rename {text!r} renames nothing", expected="OLD=NEW, such as 'transformer.h=model.layers'"
            )
        return cls(old, new)

    def apply(self, names: Iterable[str]) -> list[str]:
        """Rename all names, in their order."""
        if not self.old:
            return [f"{self.new}.{name}" for name in names]
        run, new = re.compile(rf"\.{re.escape(self.old)}(?=\.)"), f".{self.new}" if self.new else ""
        # dots mark the ends of the name; names without OLD are skipped, which is faster
        return [run.sub(lambda _: new, f".{name}.")[1:-1] if self.old in name else name for name in names]

    def __str__(self) -> str:
        return f"{self.old}={self.new}"


@dataclass(frozen=True)
class Alignment:
    """How a checkpoint's names map to those of the first fine-tuned checkpoint.

    Attributes:
        stored: The names under which tensors are read, mapped to the names in this checkpoint, in its order.
        notes: What was recognised, in words.
        unused: The renames that matched no name.
    """

    stored: Mapping[str, str]
    notes: tuple[str, ...]
    unused: tuple[Rename, ...]


def align(
    other: Headers, first: Headers, renames: Sequence[Rename], path: str, wrapper: re.Pattern[str] = WRAPPER
) -> Alignment:
    """Map the names of a checkpoint to those of the first fine-tuned checkpoint.

    Renames are applied first, in their order, unless more names match without them. Then wrappers are
    recognised in the names that still do not match.

    Args:
        other: The tensors of the checkpoint.
        first: The tensors of the first fine-tuned checkpoint.
        renames: The renames that the user asked for.
        path: The path of the checkpoint, for errors.
        wrapper: The wrappers that are recognised.

    Raises:
        MismatchError: A rename maps two names to one.
    """
    names, notes, unused = list(other), [], []
    renamed = names
    for rename in renames:
        renamed = rename.apply(renamed)
    is_wanted = sum(name in first for name in renamed) >= sum(name in first for name in names)
    for rename in renames if is_wanted else ():
        before, names = names, rename.apply(names)
        count = sum(name != old for name, old in zip(names, before, strict=True))
        if count:
            notes.append(f"{reading(rename.old, rename.new)} {count_of(count)}")
        else:
            unused.append(rename)
    stored: dict[str, str] = {}
    for name, old in zip(names, other, strict=True):
        if name in stored:
            raise MismatchError(
                "--rename maps two names to one",
                path=path,
                tensor=name,
                found=f"{stored[name]!r} and {old!r}",
                hint="use a longer OLD to tell them apart",
            )
        stored[name] = old
    unwrapped, recognised = _unwrap({name: other[old] for name, old in stored.items()}, first, wrapper)
    return Alignment(
        {unwrapped.get(name, name): old for name, old in stored.items()},
        (*notes, *recognised),
        tuple(unused) if is_wanted else tuple(renames),
    )


def reading(old: str, new: str) -> str:
    """How names are read, in words."""
    if not new:
        return f"without '{old}.'"
    return f"with '{old}' replaced by '{new}'" if old else f"with '{new}.' in front"


def count_of(count: int) -> str:
    """So many tensors, in words."""
    return "(1 tensor)" if count == 1 else f"({count:,} tensors)"


def _unwrap(other: Headers, first: Headers, wrapper: re.Pattern[str]) -> tuple[dict[str, str], list[str]]:
    """Match names that differ only by wrappers.

    The most frequent difference is tried first. If most shapes disagree, it is a coincidence, or belongs to
    another model.

    Returns:
        Unmatched names of `other`, mapped to unmatched names of `first`; and the differences, in words.
    """
    ours, theirs = _unmatched_cores(other, first, wrapper), _unmatched_cores(first, other, wrapper)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for core, names in ours.items():
        for name, wrappers in names.items():
            for target, target_wrappers in theirs.get(core, {}).items():
                pairs[_difference(wrappers, target_wrappers)].append((name, target))
    found: dict[str, str] = {}
    taken: set[str] = set()
    notes: Counter[str] = Counter()
    for (old, new), candidates in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])):
        chosen: dict[str, str] = {}
        for name, target in candidates:
            if name not in found and name not in chosen and target not in taken:
                chosen[name] = target
                taken.add(target)
        fitting = sum(_is_fitting(other[name], first[target]) for name, target in chosen.items())
        if 2 * fitting < len(chosen):
            taken.difference_update(chosen.values())
            continue
        found |= chosen
        if old or new:
            notes[reading(old, new)] += len(chosen)
        for name, target in chosen.items():
            words = _inner_differences(name, target)
            if not (words or old or new):
                words = [f"with '{part}' in another place" for part in INSERTED if part in name.split(".")]
            notes.update(words)
    return found, [f"{words} {count_of(count)}" for words, count in notes.items() if count]


def _unmatched_cores(
    headers: Headers, matched: Headers, wrapper: re.Pattern[str]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Map unmatched names without their wrappers to the full names and the wrappers of each."""
    wrappers = re.compile(rf"({wrapper.pattern}){{0,8}}")
    cores: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for name in headers:
        if name not in matched:
            plain = ".".join(part for part in name.split(".") if part not in INSERTED)
            ending = _legacy_ending(plain)
            if ending is not None:
                plain = plain.removesuffix(ending) + LEGACY[ending]
            outer = wrappers.match(plain)
            assert outer is not None  # it also matches an empty string
            cores[plain[outer.end() :]][name] = tuple(wrapper.findall(outer[0]))
    return {core: names for core, names in cores.items() if len(names) <= MAX_NAMESAKES}


def _difference(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, str]:
    """Remove the wrappers that both have next to the core."""
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return ".".join(old), ".".join(new)


def _inner_differences(name: str, target: str) -> list[str]:
    """How two names differ behind their wrappers, in words."""
    parts, others = name.split("."), target.split(".")
    found = [
        f"with{'out' if part in parts else ''} '{part}'"
        for part in INSERTED
        if (part in parts) != (part in others)
    ]
    old, new = _legacy_ending(name), _legacy_ending(target)
    if old and not new:
        found.append(reading(old, LEGACY[old]))
    if new and not old:
        found.append(reading(LEGACY[new], new))
    return found


def _legacy_ending(name: str) -> str | None:
    return next((ending for ending in LEGACY if f".{name}".endswith(f".{ending}")), None)


def _is_fitting(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Return whether the shapes are equal, or differ only in the rows, as those of a resized vocabulary."""
    if tensor.shape == other.shape:
        return True
    return len(tensor.shape) > 1 and tensor.shape[1:] == other.shape[1:]
