"""Options that take several values and make one checkpoint for each."""

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
    """The values of one option.

    Attributes:
        option: The option's name, without dashes.
        values: The values, in the order of the user.
        is_several: Whether the user wrote a list, which may have one value.
    """

    option: str
    values: Sequence[Decimal]
    is_several: bool

    @classmethod
    def parse(cls, option: str, numbers: Numbers | None) -> Sweep:
        """Parse what the user wrote; the stop of start:stop:step is included.

        Raises:
            UsageError: Something is not a finite number, a value appears twice, or no step meets the stop.
        """
        try:
            if numbers is None:
                return cls(option, (), False)
            if isinstance(numbers, (int, float)):
                return cls(option, (_decimal(numbers),), False)
            if isinstance(numbers, str) and ":" in numbers:
                return cls(option, _steps(option, numbers), True)
            parts = numbers.split(",") if isinstance(numbers, str) else numbers
            values = [_decimal(part) for part in parts]
        except (DecimalException, ValueError):
            raise UsageError(
                f"--{option} is not a number, a comma-separated list or start:stop:step", found=repr(numbers)
            ) from None
        if any(len(f"{value.normalize():f}") > MAX_DIGITS for value in values):
            raise UsageError(f"--{option} has too many digits for the name of a folder", found=repr(numbers))
        if not values:
            raise UsageError(f"--{option} has no value")
        if len(set(values)) < len(values):
            raise UsageError(f"--{option} has the same value twice", found=repr(numbers))
        return cls(option, values, len(values) > 1 or not isinstance(numbers, str))

    @property
    def argument(self) -> float | list[float] | None:
        """The argument as the report has it: a number, a list where the user wrote one, or None."""
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


def _steps(option: str, text: str) -> list[Decimal]:
    start, stop, step = (_decimal(part) for part in text.split(":"))
    if step <= 0 or stop < start:
        raise UsageError(f"--{option} needs a positive step, and a stop ≥ start", found=repr(text))
    count = int((stop - start) / step) + 1
    if count > MAX_VALUES:
        expected = f"at most {MAX_VALUES:,}"
        raise UsageError(f"--{option} has too many values", expected=expected, found=repr(text))
    values = [start + number * step for number in range(count)]
    if values[-1] != stop:
        met = ":".join(f"{value.normalize():f}" for value in (start, values[-1], step))
        hint = (
            f"{met} ends with the last step" if count > 1 else "no step fits: list the values, as in 0.2,0.5"
        )
        raise UsageError(f"--{option} has no step that meets {stop}", found=repr(text), hint=hint)
    return values


def combine(*options: Sweep) -> Iterator[tuple[str, dict[str, float], list[float | None]]]:
    """Combine the values of several options, the last option fastest.

    Yields:
        For every combination, its folder inside OUT, the arguments that only it has, and the value of every
        option, None where the option has none. Folders have the shortest exact decimal: alpha-0.3.
    """
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
