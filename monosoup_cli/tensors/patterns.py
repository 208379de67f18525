"""Whether the patterns that the user gave match names of tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from monosoup_cli.errors import UsageError, some

__all__ = ["CARRY_BASE", "LAYERS", "check_effects", "check_patterns", "first_match", "settings_of"]

CARRY_BASE, LAYERS = "carry-base", "layers"
WORD = re.compile(r"\w+")


def first_match(globs: Iterable[str], name: str) -> str | None:
    """The first of some globs that matches a name."""
    return next((glob for glob in globs if fnmatchcase(name, glob)), None)


def settings_of(layers: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The settings that a tensor has of its own, where `layers` has some by glob."""
    glob = first_match(layers, name)
    return {} if glob is None else layers[glob]


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
        UsageError: A pattern matches no tensor; or one of layers none that an earlier one leaves.
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
            f"{'' if option == LAYERS else '--'}{option} {pattern!r} matches no {kind}",
            expected=f"a name{of} such as {_like(pattern, candidates)!r}" if candidates else None,
            found=found,
            hint=None if found else "a pattern must match the whole name, as '*layers.3.*' does",
        )

    used = {first_match(patterns.get(LAYERS, ()), name) for name in names}
    for pattern in patterns.get(LAYERS, ()):
        if pattern not in used:
            raise UsageError(
                f"{LAYERS} {pattern!r} has no effect: earlier ones match all of its tensors",
                hint="the first that matches counts, so put it before them",
            )


def check_effects(globs: Collection[str], reasons: Mapping[str, str | None]) -> None:
    """Refuse a pattern of `layers` whose tensors all stay as they are.

    Args:
        globs: The patterns.
        reasons: Why each tensor stays as it is; None for one that does not.

    Raises:
        UsageError: A pattern has no effect.
    """
    for glob in globs:
        matched = [name for name in reasons if fnmatchcase(name, glob)]
        if all(reasons[name] is not None for name in matched):
            names = [f"{name!r} ({reasons[name]})" for name in matched]
            raise UsageError(
                f"{LAYERS} {glob!r} matches no tensor that is edited", found=some(names, 2) or None
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
