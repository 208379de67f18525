"""Options that take several values, each of which makes a checkpoint of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from itertools import product
from typing import TypeAlias

from monosoup_cli.errors import UsageError

__all__ = ["Numbers", "Sweep", "combine"]

Numbers: TypeAlias = float | str | Sequence[float]
"""One value; or several: a sequence, or text like "0.3,0.5" or "0:1:0.1" (start, stop, step)."""

MAX_VALUES = 1000
MAX_DIGITS = 60


@dataclass(frozen=True)
class Sweep:
    """The values of one option, in their order; `is_several`: given as a list, if only of one."""

    option: str
    values: Sequence[Decimal]
    is_several: bool

    @classmethod
    def parse(cls, option: str, given: Numbers | None) -> Sweep:
        """The stop of start:stop:step is included where a step meets it. Raises UsageError for what
        is no finite number, and for values that appear twice."""
        try:
            if given is None:
                return cls(option, (), False)
            if isinstance(given, (int, float)):
                return cls(option, (_decimal(given),), False)
            if isinstance(given, str) and ":" in given:
                return cls(option, _steps(given), True)
            parts = given.split(",") if isinstance(given, str) else given
            values = [_decimal(each) for each in parts]
        except (DecimalException, ValueError):
            raise UsageError(
                f"--{option} is not a number, a comma list or start:stop:step", found=repr(given)
            ) from None
        if any(len(f"{value.normalize():f}") > MAX_DIGITS for value in values):
            raise UsageError(f"--{option} has too many digits for the name of a folder", found=repr(given))
        if not values:
            raise UsageError(f"--{option} has no value")
        if len(set(values)) < len(values):
            raise UsageError(f"--{option} has the same value twice", found=repr(given))
        return cls(option, values, len(values) > 1 or not isinstance(given, str))

    @property
    def given(self) -> float | list[float] | None:
        """As the report has it."""
        numbers = [float(value) for value in self.values]
        return numbers if self.is_several else next(iter(numbers), None)

    def check(self, low: float, high: float, hint: str | None = None) -> None:
        """Raise UsageError for a value outside low..high."""
        for value in self.values:
            if not low <= value <= high:
                expected = f"{low:g} <= value <= {high:g}"
                raise UsageError(
                    f"--{self.option} is out of range", expected=expected, found=value, hint=hint
                )


def _decimal(text: str | float) -> Decimal:
    value = Decimal(str(text).strip()) + 0  # no minus zero
    if not math.isfinite(float(value)):
        raise ValueError(text)
    return value


def _steps(text: str) -> list[Decimal]:
    start, stop, step = (_decimal(each) for each in text.split(":"))
    if step <= 0 or stop < start:
        raise UsageError("step must be positive and stop ≥ start", found=repr(text))
    if (stop - start) / step >= MAX_VALUES:
        raise UsageError("too many values", expected=f"at most {MAX_VALUES:,}", found=repr(text))
    return [start + number * step for number in range(int((stop - start) / step) + 1)]


def combine(*options: Sweep) -> Iterator[tuple[str, dict[str, float], list[float | None]]]:
    """(folder inside OUT, the arguments that are its own, the options' values) of every combination,
    the last option fastest. Folders have the shortest exact decimal: alpha-0.3."""
    for values in product(*(option.values or (None,) for option in options)):
        swept = [
            (option.option, value)
            for option, value in zip(options, values, strict=True)
            if option.is_several and value is not None
        ]
        yield (
            "-".join(f"{name}-{value.normalize():f}" for name, value in swept),
            {name: float(value) for name, value in swept},
            [None if value is None else float(value) for value in values],
        )
