"""Strategies for inputs that are almost valid."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))
TEXTS = (
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "[/x]",
    "\x1b[2J",
    "%s",
    "{}",
    "a" * 5000,
    "é",
)
DEEP = json.loads("[" * 200 + "]" * 200)

values = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.sampled_from([[], {}, [[]], [None], [0, 1, 2], {"": {}}, {"a": 1}, ["a", "b"], DEEP])
)


def mutated_bytes(seeds: Sequence[bytes], words: Sequence[str]) -> st.SearchStrategy[bytes]:
    """A seed with a few bytes replaced, removed or inserted, or cut off, and rarely as it is."""
    pieces = st.sampled_from([word.encode("utf-8", "surrogatepass") for word in words]) | st.binary(
        max_size=4
    )
    removed = st.sampled_from([0, 0, 1, 1, 1, 2, 4, 12])
    edits = st.lists(st.tuples(st.integers(0, 5000), removed, pieces), max_size=3)

    def edited(seed: bytes, edits: Sequence[tuple[int, int, bytes]], kept: int) -> bytes:
        for place, removed, inserted in edits:
            place %= len(seed) + 1
            seed = seed[:place] + inserted + seed[place + removed :]
        return seed[: len(seed) - kept] if kept < 40 else seed

    return st.builds(edited, st.sampled_from(seeds), edits, st.integers(1, 200))


@st.composite
def mutated_json(draw: st.DrawFn, valid: Any, more: Sequence[Any] = ()) -> Any:
    """A JSON value in which a few values are others, missing, doubled or renamed."""
    root = [copy.deepcopy(valid)]
    others = values | st.sampled_from([*more, None])
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
            holder = holder[key]
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        what = draw(st.sampled_from(["other", "other", "gone", "renamed", "doubled"]))
        if what == "gone" and holder is not root:
            del holder[key]
        elif what == "renamed" and isinstance(holder, dict):
            holder[draw(st.sampled_from(TEXTS))] = holder.pop(key)
        elif what == "doubled" and isinstance(holder, list) and holder is not root:
            holder.insert(key, holder[key])
        else:
            holder[key] = copy.deepcopy(draw(others))
    return root[0]


def text_of(value: Any) -> bytes:
    """The JSON of it, also where JSON has no such number."""
    return json.dumps(value).encode()
