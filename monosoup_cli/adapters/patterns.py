"""Match the patterns of ranks and alphas in an adapter's configuration in bounded time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.sources.library_files import ADAPTER_CONFIG

__all__ = ["MAX_WORK", "Settings"]

MAX_PATTERNS = 10_000
MAX_PATTERN = 300
MAX_CHARACTERS = 1_000_000
MAX_ALPHA = 2**53
MAX_WORK = 50_000_000
"""How many steps matching may take, each about a microsecond at worst."""

CHARACTER = r"(?:\\[dw.-]|\[\^?[\w-]+\]|[\w.-])"
REPEAT = r"[*+?]|\{\d{1,2}(?:,\d{0,2})?\}"
TOKEN = re.compile(rf"({CHARACTER}|\((?:\?:)?((?:{CHARACTER}|\|)+)\))(?:({REPEAT})\??)?")
"""A part of a supported pattern: a character or a group of alternatives, which may be repeated as a whole."""
OUTER_OR = re.compile(r"\|(?![^()]*\))")


@dataclass(frozen=True)
class _Step:
    """A part of a pattern: one of `branches`, repeated `low` to `high` times."""

    branches: tuple[re.Pattern[str], ...]
    low: int = 1
    high: float = 1

    @property
    def work(self) -> int:
        """The steps at one position of a name. An unbounded repetition visits each position once."""
        return len(self.branches) * (1 + self.low + (0 if math.isinf(self.high) else int(self.high)))

    def ends(self, name: str, starts: set[int]) -> set[int]:
        """Return where a match may end that starts at one of these positions."""
        found = set(starts) if self.low == 0 else set()
        count = 0
        while starts and count < self.high:
            count += 1
            ends = {
                match.end() for at in starts for branch in self.branches if (match := branch.match(name, at))
            }
            starts = ends if count < self.low else ends - found
            found |= ends if count >= self.low else set()
        return found


def _parse(pattern: str) -> list[tuple[bool, list[_Step]]] | None:
    """Parse a pattern into its branches, each with whether it only matches at the start of a name.

    Returns:
        The branches; None for a pattern that is too long or not supported.
    """
    if len(pattern) > MAX_PATTERN:
        return None
    branches: list[tuple[bool, list[_Step]]] = []
    for branch in OUTER_OR.split(pattern):
        text, plain, at = branch.removeprefix("^").removesuffix("$"), "", 0
        steps: list[_Step] = []
        while at < len(text):
            token = TOKEN.match(text, at)
            if token is None:
                return None
            part, inside, repeat = token.groups()
            at = token.end()
            if inside is None and repeat is None:
                plain += part
                continue
            if plain:
                steps.append(_Step((re.compile(plain),)))
            plain = ""
            low, high = _times(repeat)
            if high < low:
                return None
            steps.append(_Step(tuple(map(re.compile, (inside or part).split("|"))), low, high))
        if plain:
            steps.append(_Step((re.compile(plain),)))
        branches.append((branch.startswith("^"), steps))
    return branches


def _times(repeat: str | None) -> tuple[int, float]:
    if repeat is None or repeat in "*+?":
        return {None: (1, 1.0), "*": (0, math.inf), "+": (1, math.inf), "?": (0, 1.0)}[repeat]
    low, comma, high = repeat[1:-1].partition(",")
    return int(low), int(high) if high else math.inf if comma else int(low)


def _matches(branches: list[tuple[bool, list[_Step]]], name: str) -> bool:
    """Return whether the pattern matches the name, or an end of it that starts with a component."""
    for is_anchored, steps in branches:
        places = {0} if is_anchored else {0, *(dot.end() for dot in re.finditer(r"\.", name))}
        for step in steps:
            places = step.ends(name, places)
        if len(name) in places:
            return True
    return False


class Settings:
    """The rank and alpha of modules, by the first pattern of the configuration that matches.

    Patterns come from untrusted files, and some would keep `re` busy forever. So they are matched step by
    step, all alternatives at once, in time that grows only with their length.

    Args:
        config: The content of adapter_config.json.
        modules: The modules that will be looked up.
        path: The file that errors name.

    Raises:
        CheckpointError: The patterns are malformed, or would take too long to match.
    """

    def __init__(self, config: Mapping[str, Any], modules: Sequence[str], path: str) -> None:
        self._path = path
        self._ranks = self._table(config, "rank_pattern")
        self._alphas = self._table(config, "alpha_pattern")
        self._rank = self._number(config.get("r", 8), "r")
        self._alpha = self._number(config.get("lora_alpha", 8), "lora_alpha")
        longest = max(map(len, modules), default=0)
        components = 10 + max((module.count(".") for module in modules), default=0)
        work = sum(
            components if len(steps) == 1 else sum(step.work for step in steps) * longest
            for table in (self._ranks, self._alphas)
            for branches, _ in table
            for _, steps in branches
        )
        if work * len(modules) > MAX_WORK:
            raise CheckpointError(f"{ADAPTER_CONFIG}: too many rank and alpha patterns", path=path)

    def rank(self, module: str) -> float:
        """Return the rank that the factors of a module must have."""
        return self._first(self._ranks, module, self._rank)

    def alpha(self, module: str) -> float:
        """Return the alpha of a module."""
        return self._first(self._alphas, module, self._alpha)

    def _first(self, table: list[tuple[Any, float]], module: str, default: float) -> float:
        return next((number for branches, number in table if _matches(branches, module)), default)

    def _table(self, config: Mapping[str, Any], option: str) -> list[tuple[Any, float]]:
        patterns = config.get(option) or {}
        if not isinstance(patterns, Mapping):
            raise CheckpointError(f"{ADAPTER_CONFIG}: {option} must map names to numbers", path=self._path)
        if len(patterns) > MAX_PATTERNS:
            raise CheckpointError(
                f"{ADAPTER_CONFIG}: {option} has too many patterns",
                path=self._path,
                expected=f"at most {MAX_PATTERNS:,}",
                found=f"{len(patterns):,}",
            )
        if sum(map(len, patterns)) > MAX_CHARACTERS:
            raise CheckpointError(f"{ADAPTER_CONFIG}: the patterns of {option} are too long", path=self._path)
        table = []
        for pattern, number in patterns.items():
            try:
                branches = _parse(pattern)
            except re.error:
                branches = None
            if branches is None:
                raise CheckpointError(
                    f"{ADAPTER_CONFIG}: {option} has the pattern {crop(repr(pattern), 60)},"
                    " which is not supported",
                    path=self._path,
                    expected=f"at most {MAX_PATTERN} characters, and groups with nothing but alternatives",
                )
            table.append((branches, self._number(number, option)))
        return table

    def _number(self, number: object, option: str) -> float:
        is_rank = option in ("r", "rank_pattern")
        if type(number) is int and (1 if is_rank else -MAX_ALPHA) <= number <= MAX_ALPHA:
            return number
        if not is_rank and isinstance(number, float) and abs(number) <= MAX_ALPHA:  # nor NaN
            return number
        raise CheckpointError(
            f"{ADAPTER_CONFIG}: {option} must be a {'positive whole ' if is_rank else ''}number",
            path=self._path,
            found=crop(repr(number), 80) if isinstance(number, float | str) else None,
        )
