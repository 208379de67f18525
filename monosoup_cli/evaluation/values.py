"""Numbers in JSON that somebody else wrote."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

__all__ = ["is_number"]

MAX_INTEGER = 10**18


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number; JSON's true is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= MAX_INTEGER if isinstance(value, int) else math.isfinite(value)
