"""Suggest the `--rename`s that make the names of a checkpoint match those of the first fine-tuned one."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, takewhile

from monosoup_cli.errors import MismatchError
from monosoup_cli.sources.alignment import Headers, Rename

__all__ = ["suggestions"]

Shapes = Mapping[str, tuple[int, ...]]

MAX_COMPONENTS = 32
MAX_COMPARED = 10_000
"""How many names of each side a suggestion considers, because their suffixes take memory."""
MAX_TWINS = 4
MAX_RENAMES = 8
MAX_TRIED = 3
"""How many renames of each form are tried."""
FORMS = 3
MANY = 1 / 4
"""The share of the first checkpoint's names that must be unmatched. Fewer are likely those of a new head."""
ENOUGH = 1 / 3
"""The share of the unmatched names that the first suggestion must explain."""
BLOCK = re.compile(r"(^|\.)\d+\.")


def suggestions(other: Headers, first: Headers, reread: Callable[[list[Rename]], Headers]) -> list[Rename]:
    """Suggest renames, from names with a common ending and equal shapes, until none matches more.

    Where many names are unmatched, the first rename explains many. The few that are left, such as the head of
    a model whose towers are named otherwise, only count where they are sure: where the common ending has the
    number of a block, or is the whole of one of the names. `dense.weight` is the ending of heads that have
    nothing in common.

    Args:
        other: The tensors of a checkpoint, by the names under which they are read.
        first: The tensors of the first fine-tuned checkpoint.
        reread: The tensors by the names under which they are read with further renames.

    Returns:
        The renames, in the order in which the user would type them.
    """

    def matches(renames: list[Rename]) -> int:
        try:
            headers = reread(renames)
        except MismatchError:  # two names become one
            return 0
        return sum(name in first and first[name].shape == one.shape for name, one in headers.items())

    found: list[Rename] = []
    while len(found) < MAX_RENAMES:
        ours = {name: tensor.shape for name, tensor in other.items() if name not in first}
        theirs = {name: tensor.shape for name, tensor in first.items() if name not in other}
        is_sure = bool(found) or len(theirs) < MANY * len(first)
        candidates = _candidates(ours, theirs, is_sure=is_sure)
        if not candidates:
            break
        before = matches(found)
        gains = {rename: matches([*found, rename]) - before for rename in candidates}
        best = max(candidates, key=lambda rename: gains[rename])
        if gains[best] < (1 if is_sure else max(ENOUGH * min(len(ours), len(theirs)), 2)):
            break
        found.append(best)
        other = reread(found)
    return found


def _candidates(ours: Shapes, theirs: Shapes, *, is_sure: bool) -> list[Rename]:
    """The renames that most pairs of names ask for; the best form of a rename first."""
    twins: dict[object, list[str]] = defaultdict(list)
    for target, shape in islice(theirs.items(), MAX_COMPARED):
        for key, _ in _endings(target, shape):
            if len(twins[key]) <= MAX_TWINS:
                twins[key].append(target)
    votes: list[Counter[Rename]] = [Counter() for _ in range(FORMS)]
    for name, shape in islice(ours.items(), MAX_COMPARED):
        for key, ending in _endings(name, shape):
            if targets := twins.get(key, []):
                for target in targets if len(targets) <= MAX_TWINS else ():
                    if not is_sure or ending in (name, target) or BLOCK.search(ending):
                        for form, rename in zip(votes, _forms(name, target, ending), strict=True):
                            form.update([] if rename is None else [rename])
                break
    return [rename for form in votes for rename, _ in form.most_common(MAX_TRIED)]


def _endings(name: str, shape: tuple[int, ...]) -> Iterator[tuple[object, str]]:
    """The ends of a name that are whole components, the longest first, which is the name itself; each by what
    two names that differ in what is before it have in common: the numbers in that and the shape, or only the
    shape."""
    starts = (match.end() for match in re.finditer(r"\.", name))
    for start in (0, *islice(starts, MAX_COMPONENTS)):
        numbers = tuple(part for part in name[:start].split(".") if part.isdecimal())
        yield (name[start:], numbers, shape), name[start:]
        yield (name[start:], shape), name[start:]


def _forms(name: str, target: str, ending: str) -> tuple[Rename | None, ...]:
    """The rename of all that is before the ending; of that and the module after it, which leaves others
    alone; and of what differs in it, which may be in every block."""
    old, new = (full[: -len(ending)].removesuffix(".") for full in (name, target))
    module = ending.partition(".")[0]
    longer = Rename(f"{old}.{module}".strip("."), f"{new}.{module}".strip("."))
    before, after = old.split("."), new.split(".")
    same = len(list(takewhile(lambda parts: parts[0] == parts[1], zip(before, after, strict=False))))
    inner = Rename(".".join(before[same:]), ".".join(after[same:]))
    return Rename(old, new), longer, inner if same and inner.old else None
