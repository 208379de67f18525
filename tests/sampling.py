"""Seeds and sizes of which `make test` takes the first, and `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["first"]


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: those after the first `count` are for `make test-slow`."""
    return [
        value if at < count else pytest.param(value, marks=pytest.mark.thorough)
        for at, value in enumerate(values)
    ]
