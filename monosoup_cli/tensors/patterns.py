"""Whether the patterns that the user gave match names of tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from monosoup_cli.errors import UsageError

__all__ = ["CARRY_BASE", "check_patterns"]

CARRY_BASE = "carry-base"
WORD = re.compile(r"\w+")


def check_patterns(
    patterns: Mapping[str, Sequence[str]],
    names: Collection[str],
    only_in_base: Collection[str],
    tied: Mapping[str, str],
) -> None:
    """Refuse patterns that match nothing.

    Args:
        patterns: The globs of every option, by its name.
        names: The names that the globs are for.
        only_in_base: Those that `--carry-base` is for.
        tied: Names that the first fine-tuned checkpoint leaves out, and what they are tied to.

    Raises:
        UsageError: A pattern matches no tensor.
    """
    for option, pattern in ((option, one) for option, globs in patterns.items() for one in globs):
        candidates, kind = names, "tensor"
        of = " of the (first) fine-tuned checkpoint,"
        if option == CARRY_BASE:
            candidates, kind, of = only_in_base, "tensor that only the base has", ""
        if any(fnmatchcase(name, pattern) for name in candidates):
            continue
        found = _not_only_in_base(pattern, names, tied) if option == CARRY_BASE else None
        raise UsageError(
            f"--{option} {pattern!r} matches no {kind}",
            expected=f"a name{of} such as {_like(pattern, candidates)!r}" if candidates else None,
            found=found,
            hint=None if found else "a pattern must match the whole name, as '*layers.3.*' does",
        )


def _not_only_in_base(pattern: str, names: Collection[str], tied: Mapping[str, str]) -> str | None:
    """A name that the pattern matches, and why it is not that of a tensor that only the base has."""
    for name in (*tied, *names):
        if fnmatchcase(name, pattern):
            why = f"ties to {tied[name]!r}" if name in tied else "has"
            return f"{name!r}, which the fine-tuned checkpoint {why}"
    return None


def _like(pattern: str, names: Collection[str]) -> str:
    """The first of the names that have most words of a pattern."""
    words = set(WORD.findall(pattern))
    return max(names, key=lambda name: len(words.intersection(WORD.findall(name))))
