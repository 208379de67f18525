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
from typing import NamedTuple

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.header import TensorInfo

__all__ = ["Alignment", "Headers", "Rename", "align", "count_of", "reading"]

Headers = Mapping[str, TensorInfo]

WRAPPER = re.compile(r"(base_model\.model|module|model|text|language_model)\.")
"""The prefixes that peft, DDP, Lightning, models with a head, a text tower of open_clip and models with
vision add to names. The last have `language_model.model.` around their language model in older releases of
transformers, and `model.language_model.` since 4.52."""
INSERTED = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_fpw_module",
    "_module",
)
"""The components that `torch.compile`, FSDP, activation checkpointing, Lightning's strategies, FairScale and
Opacus insert, at the start or where a submodule was wrapped."""
INNER = re.compile(r"(?<=\.)module\.|(?<=_tower\.)vision_model\.")
"""What DDP inserts where it wraps a submodule, and what releases of transformers had between a tower and its
layers. Both are ordinary names elsewhere."""
LEGACY = (
    (re.compile(r"(LayerNorm)\.gamma$"), r"\1.weight"),
    (re.compile(r"(LayerNorm)\.beta$"), r"\1.bias"),
    (re.compile(r"\b(\w*weight\w*)_g$"), r"parametrizations.\1.original0"),
    (re.compile(r"\b(\w*weight\w*)_v$"), r"parametrizations.\1.original1"),
)
"""Endings of names in older releases of transformers and torch, mapped to today's. It loads both."""
MAX_LAST = 256
"""How long the last component of a name may be to be looked at."""
MAX_WRAPPERS = 8
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
    is_wanted = not renames or _matches(other, renamed, first, wrapper) >= _matches(
        other, names, first, wrapper
    )
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


def _matches(
    other: Headers, names: Sequence[str], first: Headers, wrapper: re.Pattern[str]
) -> tuple[int, int]:
    """How many tensors match under these names in the end, and how many of them by themselves."""
    headers = dict(zip(names, other.values(), strict=True))
    alone = len(headers.keys() & first.keys())
    return alone + len(_unwrap(headers, first, wrapper)[0]), alone


def reading(old: str, new: str) -> str:
    """How names are read, in words."""
    if not new:
        return f"without '{old}.'"
    return f"with '{old}' replaced by '{new}'" if old else f"with '{new}.' in front"


def count_of(count: int) -> str:
    """So many tensors, in words."""
    return "(1 tensor)" if count == 1 else f"({count:,} tensors)"


Part = tuple[tuple[str, ...], str]
"""The wrappers around a part of a model, and its own name: the first component behind them."""


class _Name(NamedTuple):
    """A tensor's name, taken apart.

    Attributes:
        outer: The wrappers in front.
        inner: The components that are inserted behind them.
        legacy: The ending of an older release, and today's; empty where it has none.
        core: The name without all that, and with today's ending.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    legacy: tuple[str, ...]
    core: str

    @property
    def part(self) -> Part:
        return self.outer, self.core.partition(".")[0]

    @classmethod
    def parse(cls, name: str, wrapper: re.Pattern[str]) -> _Name:
        parts = name.split(".")
        inserted = [part for part in parts if part in INSERTED]
        plain = ".".join(part for part in parts if part not in INSERTED) if inserted else name
        legacy: tuple[str, ...] = ()
        last = plain[plain.rfind(".") + 1 :]
        for ending, today in (
            LEGACY if last.endswith(("gamma", "beta", "_g", "_v")) and len(last) < 256 else ()
        ):
            if match := ending.search(plain):
                legacy = match[0], match.expand(today)
                plain = plain[: match.start()] + legacy[1]
        start, outer = 0, list[str]()
        while (match := wrapper.match(plain, start)) and len(outer) < MAX_WRAPPERS:
            outer.append(match[1])
            start = match.end()
        core = plain[start:]
        behind = INNER.findall(core)
        inserted += [part.rstrip(".") for part in behind]
        return cls(tuple(outer), tuple(inserted), legacy, INNER.sub("", core) if behind else core)


def _unwrap(other: Headers, first: Headers, wrapper: re.Pattern[str]) -> tuple[dict[str, str], list[str]]:
    """Match names that differ only by wrappers.

    The most frequent difference is tried first. Each part of a model may have its own, as a language model
    and a vision tower do. But all names of a part differ in the same way, and no two parts become one: what
    would match otherwise belongs to another part, even if it has the same shapes. If most shapes disagree, of
    a part or of all that differ in one way, it is a coincidence, or belongs to another model.

    Returns:
        Unmatched names of `other`, mapped to unmatched names of `first`; and the differences, in words.
    """
    if other.keys() <= first.keys() or first.keys() <= other.keys():
        return {}, []
    ours, theirs = ({name: _Name.parse(name, wrapper) for name in headers} for headers in (other, first))
    namesakes = _by_core(ours, first)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for core, targets in _by_core(theirs, other).items():
        for name in namesakes.get(core, ()):
            for target in targets:
                pairs[_difference(ours[name].outer, theirs[target].outer)].append((name, target))
    read_as = {ours[name].part: ours[name].part for name in other if name in first}
    found: dict[str, str] = {}
    notes: Counter[str] = Counter()
    for (old, new), candidates in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])):
        parts, taken = {part: own for own, part in read_as.items()}, set(found.values())
        moves: dict[tuple[Part, Part], dict[str, str]] = defaultdict(dict)
        for name, target in candidates:
            own, part = ours[name].part, theirs[target].part
            is_one_part = read_as.get(own, part) == part and parts.get(part, own) == own
            if is_one_part and not (name in found or name in moves[own, part] or target in taken):
                moves[own, part][name] = target
                taken.add(target)
        moves = {
            move: names
            for move, names in moves.items()
            if len(names) == 1 or _are_fitting(names, other, first)
        }
        chosen = {name: target for names in moves.values() for name, target in names.items()}
        if not _are_fitting(chosen, other, first):
            continue
        read_as |= dict(moves.keys())
        found |= chosen
        if old or new:
            notes[reading(old, new)] += len(chosen)
        for name, target in chosen.items():
            words = _differences_behind(ours[name], theirs[target])
            if not (words or old or new):
                words = [f"with '{part}' in another place" for part in dict.fromkeys(ours[name].inner)]
            notes.update(words)
    return found, [f"{words} {count_of(count)}" for words, count in notes.items() if count]


def _by_core(names: Mapping[str, _Name], matched: Headers) -> dict[str, list[str]]:
    """Unmatched names by what is left without their wrappers."""
    cores: dict[str, list[str]] = defaultdict(list)
    for name, own in names.items():
        if name not in matched:
            cores[own.core].append(name)
    return {core: namesakes for core, namesakes in cores.items() if len(namesakes) <= MAX_NAMESAKES}


def _difference(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, str]:
    """Remove the wrappers that both have next to the core."""
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return ".".join(old), ".".join(new)


def _differences_behind(own: _Name, target: _Name) -> list[str]:
    """How two names differ behind their wrappers, in words."""
    found = [f"without '{part}'" for part in dict.fromkeys(own.inner) if part not in target.inner]
    found += [f"with '{part}'" for part in dict.fromkeys(target.inner) if part not in own.inner]
    if own.legacy and not target.legacy:
        found.append(reading(*own.legacy))
    if target.legacy and not own.legacy:
        found.append(reading(*reversed(target.legacy)))
    return found


def _are_fitting(names: Mapping[str, str], other: Headers, first: Headers) -> bool:
    """Whether at least half of the tensors have the shapes of those that they are read as."""
    return 2 * sum(_is_fitting(other[name], first[target]) for name, target in names.items()) >= len(names)


def _is_fitting(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Return whether the shapes are equal, or differ only in the rows, as those of a resized vocabulary."""
    if tensor.shape == other.shape:
        return True
    return len(tensor.shape) > 1 and tensor.shape[1:] == other.shape[1:]
