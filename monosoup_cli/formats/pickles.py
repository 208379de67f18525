"""Read the pickles that torch writes, without running anything that they ask for.

A pickle is a program that builds a value. Here it builds plain values and the descriptions of tensors.
Whatever else it would import or call is only noted by name, so nothing in it can run, and nothing takes more
work than its size warrants.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import BITS, FLOATING

__all__ = ["DTYPES", "Foreign", "Key", "PickledTensor", "read_pickle"]

MAX_OPERATIONS = 5_000_000
MAX_NAME = 1000
"""How long the name of a module, or of a function or class in it, may be."""

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "complex64": "C64",
    "int64": "I64",
    "uint64": "U64",
    **{name: dtype for dtype, name in FLOATING.items()},
}
"""torch's dtypes of whole bytes, mapped to the names that safetensors has for them."""

STORED_AS = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
"""The classes of storages, mapped to the dtypes of their elements."""
TAKEN = {
    "_codecs encode",
    *(f"{room} {name}" for room in ("__builtin__", "builtins") for name in ("set", "bytearray", "complex")),
    "torch.serialization _get_layout",
    "torch device",
}
"""What torch's `weights_only=True` calls besides. No state dict needs it, so nothing is said of it."""

VALUES = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
"""The operations that push a value which stands in the pickle."""
NEW: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Foreign("builtins set"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(eq=False)
class Global:
    """A function or class by its name in a pickle, the module and the name in it with a space in between."""

    name: str


@dataclass(eq=False)
class Foreign:
    """An object of a class that is not known here, of which nothing is made.

    Attributes:
        name: What makes it, as for `Global`.
        state: The attributes that it is given.
        function: What makes a tensor of the class of that name; "" for other objects.
    """

    name: str
    state: Any = None
    function: str = ""

    @property
    def shown(self) -> str:
        """Its name for messages."""
        return self.name.replace(" ", ".")


@dataclass(eq=False)
class Key:
    """A key of a dict that is not text. Keys are never compared: that can take any time."""

    value: Any


@dataclass(frozen=True)
class Storage:
    """Elements in a record of the archive.

    Attributes:
        dtype: The dtype, as torch names it.
        key: The name of the record.
        nbytes: Its size.
    """

    dtype: str
    key: str
    nbytes: int


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """The description of a tensor. Offset and strides count elements.

    Attributes:
        is_plain: Whether the elements are as stored, and not to be conjugated or negated.
    """

    dtype: str
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_plain: bool


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> PickledTensor:
    flags = more[2] if len(more) > 2 else None
    return _described(storage, offset, shape, strides, storage.dtype, flags)


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> PickledTensor:
    return _described(storage, offset, shape, strides, dtype.name.removeprefix("torch "), *more[:1])


def _described(
    storage: Any, offset: int, shape: Any, strides: Any, dtype: str, flags: Any = None
) -> PickledTensor:
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, Storage)
        or len(shape) != len(strides)
        or not all(type(one) is int and one >= 0 for one in numbers)
    ):
        raise ValueError
    is_plain = not (isinstance(flags, dict) and (flags.get("conj") or flags.get("neg")))
    return PickledTensor(dtype, storage, offset, tuple(shape), tuple(strides), is_plain)


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, which are left out; or one of a class that is not known here."""
    made = CALLS.get(function.name)
    is_known = kind.name in ("torch Tensor", "torch.nn.parameter Parameter") and made not in (None, _of_type)
    return made(*arguments) if is_known and made else Foreign(kind.name, function=function.name)


OF_TYPE = "torch._tensor _rebuild_from_type_v2"
CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,
    OF_TYPE: _of_type,
    "collections Counter": lambda counts: counts,
    "torch Size": lambda sizes: sizes,
}
"""What a state dict needs of functions, by their names in a pickle: our own in their place."""


@dataclass
class _Machine:
    """The state of a program: its stack, cut at marks, and what it keeps for later."""

    left: int
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    foreign: dict[str, None] = field(default_factory=dict)

    def pop_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise IndexError
        found, self.stack[start:] = self.stack[start:], []
        return found

    def call(self, function: Any, arguments: Any) -> None:
        """Push what our own function makes of the arguments, or an object of which nothing is made."""
        if not isinstance(function, Global | Foreign) or not isinstance(arguments, tuple):
            raise ValueError
        self.left -= _work(arguments)  # a few bytes can refer to the same long tuple many times
        if function.name == OF_TYPE and len(arguments) > 2:
            self.left -= _work(arguments[2])
        if self.left < 0:
            return
        if isinstance(function, Global) and function.name in CALLS:
            self.stack.append(CALLS[function.name](*arguments))
        elif isinstance(function, Global) and function.name == "collections OrderedDict":
            made: dict[Any, Any] = {}
            for pair in arguments[0] if arguments else ():
                self.left -= 1
                name, value = pair
                made[_key(name)] = value
                if self.left < 0:
                    break
            self.stack.append(made)
        else:
            if function.name not in TAKEN:
                self.foreign[Foreign(function.name).shown] = None
            self.stack.append(Foreign(function.name))

    def extend(self, items: Sequence[Any]) -> None:
        """Add items to the list on the stack; of an object of which nothing is made they are dropped."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Foreign):
            raise ValueError

    def update(self, items: Sequence[Any]) -> None:
        """Add keys and values, in turn, to the dict on the stack."""
        if len(items) % 2:
            raise ValueError
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif not isinstance(self.stack[-1], Foreign):
            raise ValueError

    def set_state(self, state: Any) -> None:
        """Give the object on the stack its attributes. Those of a dict are left out."""
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], dict):
            raise ValueError


def _storage(known: dict[str, Storage], said: Any) -> Storage:
    """The storage that an archive refers to. torch reads every one of a record as it read the first."""
    what, kind, key, _, count = said
    if what != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError
    name = kind.name.rpartition(" ")[2]  # older releases wrote classes of storages on a card
    dtype = STORED_AS.get(name, name)
    bits = BITS[DTYPES[dtype]] if dtype in DTYPES else 8
    storage = Storage(dtype, key, count * bits // 8)
    if known.setdefault(key, storage) != storage:
        raise ValueError
    return storage


def read_pickle(pickle: bytes, shown: str, most: int | None = None) -> tuple[Any, Sequence[str]]:
    """Build the value that a pickle describes.

    Args:
        pickle: The pickle.
        shown: The file that errors name.
        most: How many operations it may have; None for as many as a state dict.

    Returns:
        The value, and what it would call that neither tensors nor torch's `weights_only=True` need.

    Raises:
        CheckpointError: The pickle is malformed, or takes far more work than its size warrants.
    """

    def refuse(problem: str) -> CheckpointError:
        return CheckpointError(problem, path=shown)

    machine = _Machine(250_000 + len(pickle))
    result: list[Any] = []
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
            if count >= (MAX_OPERATIONS if most is None else most):
                raise refuse("its pickle has too many parts")
            if operation.name == "STOP":
                result = machine.pop(1)
            elif not _step(machine, operation.name, argument):
                raise refuse(f"its pickle has the operation {operation.name}, which torch does not write")
            if machine.left < 0:
                raise refuse("its pickle takes far more work than its size warrants")
        return result[0], tuple(machine.foreign)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise refuse("its pickle is malformed") from None


def _step(machine: _Machine, name: str, found: object) -> bool:
    """Run one operation. Return whether it is known."""
    argument = cast(Any, found)
    if name in ("BINPUT", "LONG_BINPUT"):
        machine.memo[argument] = machine.stack[-1]
    elif name == "MEMOIZE":
        machine.memo[len(machine.memo)] = machine.stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        machine.stack.append(machine.memo[argument])
    elif name in VALUES:
        machine.stack.append(CONSTANTS.get(name, argument))
    elif name in NEW:
        machine.stack.append(NEW[name]())
    elif name == "MARK":
        machine.below.append(machine.stack)
        machine.stack = []
    elif name == "TUPLE" or name in TUPLES:
        items = machine.pop_mark() if name == "TUPLE" else machine.pop(TUPLES[name])
        machine.stack.append(tuple(items))
    elif name in ("APPENDS", "APPEND", "ADDITEMS"):
        machine.extend(machine.pop(1) if name == "APPEND" else machine.pop_mark())
    elif name in ("SETITEMS", "SETITEM"):
        machine.update(machine.pop(2) if name == "SETITEM" else machine.pop_mark())
    elif name == "FROZENSET":
        machine.pop_mark()
        machine.stack.append(Foreign("builtins set"))
    elif name == "GLOBAL":
        machine.stack.append(_global(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        machine.stack.append(_global(*machine.pop(2)))
    elif name in ("REDUCE", "NEWOBJ"):
        machine.call(*machine.pop(2))
    elif name == "NEWOBJ_EX":
        machine.call(*machine.pop(3)[:2])
    elif name == "BUILD":
        machine.set_state(*machine.pop(1))
    elif name == "BINPERSID":
        machine.stack.append(_storage(machine.storages, *machine.pop(1)))
    elif name == "POP":
        machine.pop(1)
    else:
        return name in ("PROTO", "FRAME")
    return True


def _global(module: str, name: str) -> Global:
    if len(module) > MAX_NAME or len(name) > MAX_NAME:
        raise ValueError
    return Global(f"{module} {name}")


def _work(arguments: Any) -> int:
    """How many values a call visits: its arguments, and what is in them."""
    return len(arguments) + sum(len(one) for one in arguments if isinstance(one, tuple | list | dict))


def _key(name: Any) -> Any:
    return name if isinstance(name, str) else Key(name)
