"""Values of arguments (lists where Python takes one or several, paths, choices, sizes), and those of JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

from monosoup_cli.errors import MonosoupError, UsageError, crop, some

__all__ = [
    "StrPath",
    "as_list",
    "as_paths",
    "check_choice",
    "check_keys",
    "check_one_each",
    "did_you_mean",
    "nearest",
    "parse_size",
    "path_list",
    "unique",
]

StrPath: TypeAlias = str | os.PathLike[str]


def as_list(patterns: str | Sequence[str] | None) -> list[Any]:
    """One pattern, or several, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def path_list(sources: StrPath | Sequence[StrPath]) -> list[str]:
    """One path, or several, as a list of strings."""
    return [os.fspath(one) for one in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]


def as_paths(sources: StrPath | Sequence[StrPath], *, at_least: int = 1) -> list[str]:
    """The fine-tuned checkpoints as strings.

    Raises:
        UsageError: There are too few, or one is given twice, under whatever spelling of its path.
    """
    names = path_list(sources)
    if len(names) < at_least:
        raise UsageError("too few fine-tuned checkpoints", expected=f"at least {at_least}", found=len(names))
    seen: set[str] = set()
    for name in names:
        place = os.path.realpath(name) if os.path.lexists(name) else name.removeprefix("hf://")
        if place in seen:
            raise UsageError("a fine-tuned checkpoint is given twice", path=name)
        seen.add(place)
    return names


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise UsageError for a value that is none of a Literal's."""
    words = get_args(choices)
    if value not in words:
        flag = f"--{name.replace('_', '-')}"
        expected = f"{', '.join(words[:-1])} or {words[-1]}"
        raise UsageError(f"{flag} has no such value", expected=expected, found=repr(value))


def check_keys(
    problem: str,
    given: Iterable[object],
    known: Collection[str],
    *,
    expected: str | None = None,
    hint: str | None = None,
    also: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise UsageError for keys that are not known; `problem` is what comes before their names.

    Without a hint, the error asks whether the first is meant to be a known one, or one of `also`.
    """
    others = [crop(str(key)) for key in given if key not in known]
    if others:
        problem = f"{problem} {some(others, 4)}"
        raise UsageError(problem, expected=expected, hint=hint or did_you_mean(others[0], known, also))


LEAST_RATIO, LEAST_START, LEAST_PART = 0.7, 3, 4
"""How alike two words are if one is the other misspelt, how many letters begin a word, and how many there
are in a part that words with dashes share."""


def nearest(word: str, others: Iterable[str], also: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """The one of the others that a misspelt or shortened word is meant to be, or that shares a part with it;
    None if none is near. A word that is meant to be one of `also` is its value."""
    typed, bare = word.lstrip("-"), {**also, **{one.lstrip("-"): one for one in others}}
    found = get_close_matches(typed, bare, 1, LEAST_RATIO)
    longer = [one for one in bare if one.startswith(typed) and len(typed) >= LEAST_START]
    shared = [one for one in bare if _share_a_part(typed, one)]
    return next((bare[one] for one in [*found, *longer, *shared]), None)


def did_you_mean(
    word: str, others: Iterable[str], also: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """A question for what is nearest to a word; None if nothing is near."""
    meant = nearest(word, others, also)
    return f"did you mean {meant}?" if meant else None


def _share_a_part(typed: str, other: str) -> bool:
    """Whether one word is the other's beginning or end, up to a dash; or both have the same before a dash,
    and the same letter after it."""
    short, long = sorted((typed, other), key=len)
    is_part = len(short) >= LEAST_PART and (long.startswith(f"{short}-") or long.endswith(f"-{short}"))
    head, _, rest = typed.partition("-")
    return is_part or (rest != "" and other.startswith(f"{head}-{rest[0]}"))


def check_one_each(flag: str, values: Sequence[float], count: int, *, of: str = "checkpoint") -> None:
    """Raise UsageError if there are more or fewer values than checkpoints."""
    if len(values) != count:
        raise UsageError(
            f"{flag} needs one number for each {of}", expected=f"{count} of them", found=len(values)
        )


UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}{b}": 1000**power for power, prefix in enumerate("KMGT", start=1) for b in ("", "B")},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}


def parse_size(text: str | int, option: str = "max_shard_size") -> int:
    """Bytes from "5GB" (10^9), "5GiB" (2^30) or a number.

    Raises:
        UsageError: The text is not a size.
    """
    digits = str(text).strip()
    number = digits.rstrip("KMGTIBkmgtib ")
    unit = digits[len(number) :].strip().upper()
    try:
        nbytes = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise UsageError(
            f"--{option.replace('_', '-')} is not a size",
            expected="a number and a unit, such as 5GB",
            found=repr(text),
        )
    return nbytes


def unique(refusal: Callable[[str], MonosoupError]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for a parser of JSON that raises `refusal`, which gets words, for a key that repeats."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise refusal(f"names {crop(repr(twice))} twice")
        return found

    return hook
