"""Runs that are killed at their system calls: whatever is left, the next command goes on from it."""

from __future__ import annotations

import signal
from itertools import count

import pytest

from tests.outputs.crashes import KINDS, Kind, Place, every_kind, prepare, recover

NAMES = {"mkdir", "open", "rename", "replace", "unlink", "rmdir"}
"""Calls that change which names there are, and so what the next run finds."""

SPARE = 5
"""By how many calls runs differ: tensors that are finished together are journalled together."""


def stop_everywhere(
    place: Place, kind: Kind, number: signal.Signals, calls: set[str] | None, *, has_old: bool
) -> int:
    """Send runs a signal at each of some system calls, and recover from each; returns how many were."""
    new = prepare(place, kind, has_old=has_old)
    place.restore("start")
    old = place.content(kind)
    stopped = 0
    for at in count(1):
        place.restore("start")
        ended = place.run(kind, *(["--overwrite"] if has_old else []), at=at, signal=number)
        if len(ended.calls) + SPARE < at:
            return stopped
        if len(ended.calls) < at:
            continue
        assert ended.code in (-signal.SIGKILL, 128 + number, 0), ended
        if calls is None or ended.calls[at - 1] in calls:
            stopped += 1
            place.keep("crashed")
            recover(place, kind, old, new)
    raise AssertionError


@pytest.mark.slow
def test_killed_where_names_change(place):
    assert stop_everywhere(place, KINDS["folder"], signal.SIGKILL, NAMES, has_old=True) > 12


@pytest.mark.slow
def test_interrupted_where_the_workplace_comes_and_goes(place):
    assert stop_everywhere(place, KINDS["folder"], signal.SIGINT, {"mkdir", "rmdir"}, has_old=False) >= 2


@pytest.mark.thorough
@every_kind
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_killed_at_every_system_call(place, kind, has_old):
    assert stop_everywhere(place, kind, signal.SIGKILL, None, has_old=has_old) > 30


@pytest.mark.thorough
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_interrupted_at_every_system_call(place, has_old):
    assert stop_everywhere(place, KINDS["folder"], signal.SIGTERM, None, has_old=has_old) > 30
