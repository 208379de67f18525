"""The kinds of faults that are planted at a step: where, what they do, and what must follow."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from tests.faults.bench import Bench, Place, same
from tests.faults.commands import Command
from tests.faults.steps import CHANGES, READS, TAKES_SPACE

Follow = Callable[[Place, Any], None]


def is_call(step: str, calls: Sequence[str]) -> bool:
    return step.split()[0] in calls


def _finished(place: Place, outcome: Any) -> None:
    place.finish()


def _with_inputs_back(place: Place, outcome: Any) -> None:
    """Work that is left does not go on with other inputs, but with the old ones."""
    if outcome.code == 0:
        return
    if place.partial.exists():
        spoiled = place.run("--resume", name="spoiled")
        place.check(spoiled, [1], are_inputs_ours=False)
        assert spoiled.code == 1, "these are other inputs"
    shutil.rmtree(place.work / "in")
    shutil.copytree(place.bench.folder / "in", place.work / "in")
    place.finish()


def _with_permissions_back(place: Place, outcome: Any) -> None:
    for folder, _, _ in os.walk(place.work):
        os.chmod(folder, 0o755)
    place.finish()


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        calls: At which steps it is planted.
        fault: What is planted there, as in `steps.FAULTS`; may name `{out}`, `{partial}` and `{input}`.
        codes: The exit codes that it leads to; also 0, if the output is complete nevertheless.
        count: At how many steps of a command the slow tests plant it.
        follow: What is done and checked afterwards.
        order: More of the surroundings.
        spoils_inputs: Whether it changes an input.
        is_late: Whether it is planted only where the run already has its lock.
    """

    calls: Sequence[str]
    fault: Mapping[str, Any]
    codes: Sequence[int]
    count: int
    follow: Follow = _finished
    order: Mapping[str, Any] = field(default_factory=dict)
    spoils_inputs: bool = False
    is_late: bool = False

    def steps(self, command: Command, steps: Sequence[str]) -> list[str]:
        """The steps of an undisturbed run at which this may be planted."""
        if self.is_late:
            steps = steps[next(n for n, step in enumerate(steps) if step.startswith("flock")) + 1 :]
        return [step for step in steps if is_call(step, self.calls)]


EVERY = (*CHANGES, *READS)
WRITES = ("write", "pwrite")
spoils = partial(Kind, EVERY, codes=[1], count=1, follow=_with_inputs_back, spoils_inputs=True, is_late=True)
vanishes = partial(Kind, EVERY, codes=[1], count=1, is_late=True)
locked = partial(
    Kind, CHANGES, codes=[1], count=1, follow=_with_permissions_back, order={"without_powers": True}
)
KINDS = {
    "SIGKILL": Kind(CHANGES, {"signals": [9]}, [-9], 6),
    "SIGKILL in a write": Kind(WRITES, {"torn": 0.5}, [-9], 2),
    "SIGTERM": Kind(EVERY, {"signals": [15]}, [143], 3),
    "SIGINT": Kind(EVERY, {"signals": [2]}, [130], 3),
    "SIGINT twice": Kind(EVERY, {"signals": [2, 2]}, [130], 2),
    "SIGTERM, then SIGINT": Kind(CHANGES, {"signals": [15, 2]}, [143, 130], 1),
    "SIGHUP": Kind(EVERY, {"signals": [1]}, [-1, 129], 2),
    "full disk": Kind(TAKES_SPACE, {"full": "ENOSPC"}, [1], 3),
    "full for a moment": Kind(TAKES_SPACE, {"error": "ENOSPC"}, [1], 1),
    "failing disk": Kind(EVERY, {"error": "EIO"}, [1], 3),
    "read-only disk": Kind(CHANGES, {"broken": "EROFS"}, [1], 2),
    "no permission": Kind(("open", "mkdir", "rename", "replace", "unlink"), {"error": "EACCES"}, [1], 1),
    "no descriptors": Kind(("open",), {"error": "EMFILE"}, [1], 2),
    "input cut": spoils({"truncate": "{input}"}),
    "input changed": spoils({"flip": "{input}"}),
    "input replaced": spoils({"swap": ["{input}", "{input2}"]}),
    "input gone": spoils({"vanish": "{input}"}),
    "workplace gone": vanishes({"vanish": "{partial}"}),
    "files gone": vanishes({"vanish": "{partial}/files"}),
    "journal gone": vanishes({"vanish": "{partial}/journal"}),
    "folder locked": locked({"chmod": [".", 0o555]}),
    "workplace locked": locked({"chmod": ["{partial}", 0o555]}, is_late=True),
    "clock back": Kind(EVERY, {"clock": 10**8}, [], 1),
}


def picks(command: Command, kind: str, steps: Sequence[str], count: int) -> list[str]:
    """Some steps, always the same, spread over the run."""
    chance = random.Random(f"{command.name} {kind}")
    edges = [round(number * len(steps) / count) for number in range(count + 1)]
    return [steps[chance.randrange(low, high)] for low, high in pairwise(edges) if high > low]


def inject(bench: Bench, command: Command, kind: Kind, step: str) -> bool:
    """Plant a fault at a step, check what it leaves, and go on as its kind says.

    Returns:
        Whether the run reached the step.
    """
    whole = bench.reference(command)
    place = bench.place(command)
    inputs = [word for word in command.words if word.startswith("in/")]
    names = {"out": command.out, "partial": place.partial.name, "input": weights(place, inputs[-1])}
    names["input2"] = weights(place, inputs[0])
    fault = {name: _filled(value, names) for name, value in kind.fault.items()}
    outcome = place.run(fault={"at": step, **fault}, **kind.order)
    if outcome.is_planted:
        place.check(outcome, kind.codes, are_inputs_ours=not kind.spoils_inputs)
        kind.follow(place, outcome)
    else:
        assert outcome.code == 0, outcome
        assert same(place.result(), whole.tree)
    place.clear()
    return outcome.is_planted


def weights(place: Place, name: str) -> str:
    """The (last) file of weights of an input."""
    path = place.work / name
    if path.is_dir():
        path = sorted(path.glob("*.safetensors"))[-1]
    return str(path.relative_to(place.work))


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(each, names) for each in value]
    return value.format(**names) if isinstance(value, str) else value
