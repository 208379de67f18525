"""Runs that are killed at their system calls: whatever is left, the next command goes on from it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outputs.crashes import KINDS, Kind, Place, every_kind, prepare, recover
from tests.outputs.forks import Forks

NAMES = {"mkdir", "open", "rename", "replace", "unlink", "rmdir"}
"""Calls that change which names there are, and so what the next run finds."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture
def place(tmp_path: Path, forks: Forks) -> Place:
    return Place(tmp_path, forks)


def kill_everywhere(place: Place, kind: Kind, calls: set[str] | None, *, has_old: bool) -> int:
    """Kill runs at each of some system calls, and recover from each; returns how many were."""
    new = prepare(place, kind, has_old=has_old)
    place.restore("start")
    old = place.content(kind)
    number = kills = 0
    while True:
        number += 1
        place.restore("start")
        ended = place.run(kind, *(["--overwrite"] if has_old else []), at=number)
        if ended.code == 0:
            return kills
        assert ended.code == -signal.SIGKILL, ended
        if calls is None or ended.calls[-1] in calls:
            kills += 1
            place.keep("crashed")
            recover(place, kind, old, new)


@pytest.mark.slow
def test_killed_where_names_change(place):
    assert kill_everywhere(place, KINDS["folder"], NAMES, has_old=True) > 12


@pytest.mark.thorough
@every_kind
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_killed_at_every_system_call(place, kind, has_old):
    assert kill_everywhere(place, kind, None, has_old=has_old) > 30
