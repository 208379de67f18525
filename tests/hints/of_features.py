"""What hints on features lead to: features that are compared."""

from __future__ import annotations

import re
from pathlib import Path

import numpy

from tests.features import random_features, save
from tests.hints.table import Trial, follows


def saved_again(at: Trial, old: Path) -> None:
    """The code in the hint is run, and what it writes is compared."""
    new, good = at.tmp / "new.npy", save(at.tmp / "good.npy", random_features(20, 4))
    at.refused("cka", good, old)
    line = re.search(r"numpy\.save\(.*\)", at.hint)
    assert line is not None
    exec(line[0], {"numpy": numpy, "OLD": old, "NEW": new})
    assert numpy.array_equal(numpy.load(new), numpy.load(old))
    at.works("cka", good, new)


@follows("formats/npy.py", "not floating-point numbers")
def features_of_integers(at: Trial) -> None:
    saved_again(at, save(at.tmp / "old.npy", numpy.arange(80).reshape(20, 4) ** 2))


@follows("formats/npy.py", "the array is in Fortran order")
def features_in_fortran_order(at: Trial) -> None:
    features = random_features(20, 4).astype("float32")
    saved_again(at, save(at.tmp / "old.npy", numpy.asfortranarray(features)))


@follows("pipeline/memory.py", "free some memory")
def too_little_memory(at: Trial) -> None:
    from monosoup_cli.devices import host

    features = [save(at.tmp / f"{name}.npy", random_features(20, 4)) for name in "ab"]
    with at.request.getfixturevalue("monkeypatch").context() as patched:
        patched.setattr(host, "free_bytes", lambda: 200 << 20)
        at.refused("cka", *features)
    at.works("cka", *features)
