"""Screen the pickles of state dicts before torch parses them."""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.archive import SAVE_ALONE, quote

__all__ = ["check_pickle"]

MAX_OPERATIONS = 5_000_000
MAX_TUPLE_DEPTH = 100

REBUILT = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "collections Counter",
    "torch Size",
    "torch device",
}
"""The functions that a state dict and plain values next to it need, by their names in a pickle."""
NOT_DENSE = {
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_njt": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
    "_rebuild_from_type_v2": "a tensor with attributes, or of a class of its own",
    "_rebuild_parameter_with_state": "a parameter with attributes",
}
PLAIN = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "EMPTY_DICT",
    "EMPTY_LIST",
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class _Part:
    """A value in a pickle that is being screened.

    Attributes:
        weight: How many parts hashing or copying the value visits: its own items and, because tuples cannot
            change, those of the tuples in it.
        depth: How deep tuples are nested in it.
        items: The items of a tuple.
        rebuilds: Whether the value is a function that may be called.
        rebuilt: Whether the value is the result of such a call, and may get a state.
    """

    weight: int = 1
    depth: int = 0
    items: tuple[_Part, ...] | None = None
    rebuilds: bool = False
    rebuilt: bool = False

    def add(self, items: Iterable[_Part]) -> None:
        self.weight += sum(item.weight if item.items is not None else 1 for item in items)

    @property
    def cost(self) -> int:
        """The work of passing it on as arguments. The lists in a tuple may have grown since it was made."""
        return self.weight + sum(item.weight for item in self.items or ())


@dataclass
class _Stack:
    parts: list[_Part] = field(default_factory=list)
    below: list[list[_Part]] = field(default_factory=list)

    def pop_mark(self) -> list[_Part]:
        found, self.parts = self.parts, self.below.pop()
        return found

    def pop(self, count: int) -> list[_Part]:
        if count > len(self.parts):
            raise IndexError
        start = len(self.parts) - count
        found, self.parts[start:] = self.parts[start:], []
        return found


def check_pickle(pickle: bytes, shown: str) -> None:
    """Refuse a pickle that is unsafe or too expensive to parse.

    Values can refer to each other, so a few bytes can make for a lot of work.

    Args:
        pickle: The pickle.
        shown: The file that errors name.

    Raises:
        CheckpointError: The pickle names anything but tensors and plain values, or takes far more work than
            its size warrants.
    """
    allowed = _allowed_names()
    stack, memo = _Stack(), dict[int, _Part]()
    left = 1_000_000 + 16 * len(pickle)

    def refuse(problem: str, hint: str | None = SAVE_ALONE) -> CheckpointError:
        return CheckpointError(problem, path=shown, hint=hint)

    try:
        for count, (operation, found, _) in enumerate(pickletools.genops(pickle)):
            name, argument = operation.name, cast(Any, found)
            if count >= MAX_OPERATIONS:
                raise refuse("its pickle has too many parts")
            if name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack.parts[-1]
            elif name in PLAIN:
                stack.parts.append(_Part())
            elif name in ("BINGET", "LONG_BINGET"):
                stack.parts.append(memo[argument])
            elif name == "MARK":
                stack.below.append(stack.parts)
                stack.parts = []
            elif name == "TUPLE" or name in TUPLES or name == "EMPTY_TUPLE":
                items = stack.pop_mark() if name == "TUPLE" else stack.pop(TUPLES.get(name, 0))
                part = _Part(1, 1 + max((item.depth for item in items), default=0), tuple(items))
                part.add(items)
                if part.depth > MAX_TUPLE_DEPTH:
                    raise refuse("its pickle is nested too deeply")
                stack.parts.append(part)
            elif name in ("APPENDS", "APPEND"):
                items = stack.pop_mark() if name == "APPENDS" else stack.pop(1)
                stack.parts[-1].add(items)
            elif name in ("SETITEMS", "SETITEM"):
                items = stack.pop_mark() if name == "SETITEMS" else stack.pop(2)
                stack.parts[-1].add(items)
                left -= sum(key.weight for key in items[::2])
            elif name == "GLOBAL":
                if argument not in allowed:
                    raise refuse(*_foreign(argument))
                stack.parts.append(_Part(rebuilds=argument in REBUILT))
            elif name == "REDUCE":
                function, arguments = stack.pop(2)
                if not function.rebuilds or arguments.items is None:
                    raise ValueError
                left -= arguments.cost
                stack.parts.append(_Part(rebuilt=True))
            elif name == "BUILD":
                (state,) = stack.pop(1)
                if not stack.parts[-1].rebuilt:
                    raise ValueError
                left -= state.cost
            elif name == "BINPERSID":
                stack.pop(1)
                stack.parts.append(_Part())
            elif name == "PROTO" and argument == 2:
                pass
            elif name == "PROTO":
                raise refuse(f"pickled in protocol {argument}, not torch's own")
            elif name != "STOP":
                raise refuse(f"its pickle has the operation {name}, which torch.save does not write", None)
            if left < 0:
                raise refuse("its pickle takes far more work than its size warrants", None)
    except (ValueError, LookupError):
        raise refuse("its pickle is malformed", None) from None


def _allowed_names() -> set[str]:
    """Return the names that a pickle may use: REBUILT, dtypes and storages."""
    import torch

    return (
        REBUILT
        | {
            f"torch {name}"
            for name, value in vars(torch).items()
            if isinstance(value, torch.dtype) or (name.endswith("Storage") and isinstance(value, type))
        }
        | {"torch.storage UntypedStorage", "torch.storage TypedStorage"}
    )


def _foreign(named: str) -> tuple[str, str]:
    """Describe a refused name, and say what to do."""
    module, _, name = named.rpartition(" ")
    if name in NOT_DENSE:
        return f"holds {NOT_DENSE[name]}", SAVE_ALONE
    return f"holds an object that is not a tensor: {quote(f'{module}.{name}')}", SAVE_ALONE
