"""Power that is lost at any moment of a run: whatever the disk kept, the next command goes on from it."""

from __future__ import annotations

import hashlib
import pickle
import random
import shutil
from itertools import chain

import pytest

from tests.outputs.crashes import KINDS, Kind, Place, every_kind, prepare, recover
from tests.outputs.power_loss import NAMING, Files, loose, ordered, read_tree, tree, write_tree


def lose_power(place: Place, kind: Kind, count: int | None, *, has_old: bool) -> int:
    """Replay a run up to crashes, all of them or some, and recover from each; returns how many there were.

    Fates are drawn and times are written, so a few states more or less fall together in each run.
    """
    new = prepare(place, kind, has_old=has_old)
    place.restore("start")
    old = place.content(kind)
    assert place.run(kind, *(["--overwrite"] if has_old else []), records=str(place.work)).code == 0
    calls, first = pickle.loads((place.root / "work.calls").read_bytes())
    names = [call for call in calls if call.what in NAMING]
    assert tree(names, calls, lambda _: "kept") == read_tree(place.work), (
        "the model is true if nothing is lost"
    )
    draws = random.Random(0)
    states: dict[str, Files] = {}
    for state in chain(ordered(calls, first), loose(calls, first, draws)):
        states.setdefault(digest(state), state)
    chosen = list(states.values())
    for state in chosen if count is None else draws.sample(chosen, count):
        shutil.rmtree(place.root / "crashed", ignore_errors=True)
        write_tree(state, place.root / "crashed")
        place.restore("crashed")
        recover(place, kind, old, new)
    return len(chosen)


def digest(state: Files) -> str:
    return hashlib.sha256(pickle.dumps(sorted(state.items()))).hexdigest()


@pytest.mark.slow
def test_power_loss_while_an_output_is_replaced(place):
    assert lose_power(place, KINDS["folder"], 12, has_old=True) > 50


@pytest.mark.thorough
@every_kind
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_power_loss(place, kind, has_old):
    assert lose_power(place, kind, None, has_old=has_old) > 50
