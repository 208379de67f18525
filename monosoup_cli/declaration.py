"""How an option is declared, and what follows from its facts: what a resumed run compares, and what a model
card shows.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from io import IOBase
from numbers import Integral, Real
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from monosoup_cli.errors import Keyword, UsageError, crop

__all__ = [
    "Call",
    "DeclaredOption",
    "Option",
    "as_word",
    "declared_in",
    "evaluate",
    "from_keywords",
    "keywords_of",
    "placeholders",
    "taken",
]

Group = TypeVar("Group")


@dataclass(frozen=True)
class Option:
    """The facts of one option.

    Attributes:
        help: What it does; read alone, in the shell and in Python.
        metavar: The placeholder for its value in the shell's help.
        shell: Its type in the shell, where that is not the type in Python.
        flags: Its names in the shell, where they are not the Python name with dashes.
        is_argument: Whether the shell takes it by position.
        minimum: The least number that it can be.
        changes_bytes: Whether the bytes of the output depend on it. A resumed run must repeat it.
        in_card: Whether the command in the model card needs it.
        is_private: Whether its value may contain paths or secrets, which must not be published.
        is_list: Whether the shell takes several values with commas in between.
        in_shell: Whether the shell has it.
        of_layer: What it sets of a layer, if that may differ from layer to layer. Options that set the same
            stand for each other.
    """

    help: str
    metavar: str | None = None
    shell: Any = None
    flags: tuple[str, ...] = ()
    is_argument: bool = False
    minimum: float | None = None
    changes_bytes: bool = True
    in_card: bool = True
    is_private: bool = False
    is_list: bool = False
    in_shell: bool = True
    of_layer: str = ""


@dataclass(frozen=True)
class DeclaredOption:
    """An option where it is declared: its name, type and default in Python, and its facts."""

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Its first name in the shell."""
        return self.option.flags[0] if self.option.flags else f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> Sequence[str]:
        """The words that it takes, where they are few."""
        kinds = [self.type, *get_args(self.type)]
        words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        return words or (self.option.metavar or "").split("|")

    def saying(self, words: str) -> DeclaredOption:
        """The option with another help."""
        return replace(self, option=replace(self.option, help=words))

    @property
    def parameter(self) -> inspect.Parameter:
        """The keyword of Python."""
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=self.type
        )

    def taken(self, value: Any) -> Any:
        """A value as the command has it.

        Raises:
            UsageError: It is not of the option's type.
        """
        return taken(self.name, value, self.type, self.default)

    def accepts(self, value: Any) -> bool:
        """Whether a value is the option's default, or of its type."""
        try:
            self.taken(value)
        except UsageError:
            return False
        return True


def placeholders(declared: Mapping[str, DeclaredOption]) -> dict[str, str]:
    """The argument for each placeholder of the shell, such as "finetuned" for "adapter"."""
    return {
        one.option.metavar.lower(): name
        for name, one in declared.items()
        if one.option.is_argument and one.option.metavar
    }


def keywords_of(declared: Mapping[str, DeclaredOption], *, is_in_yaml: bool = False) -> dict[str, Keyword]:
    """The keyword for each option of the shell, by its flags."""
    return {
        flag: Keyword(name, one.type is bool, one.choices, is_in_yaml)
        for name, one in declared.items()
        for flag in (one.flag, *one.option.flags)
    }


def taken(name: str, value: Any, kind: Any, default: Any = inspect.Parameter.empty) -> Any:
    """The value of an argument, with lists where Python takes any sequence, and numbers and keys of JSON.

    Raises:
        UsageError: It is neither the default nor of the type of the argument.
    """
    if value is default or (value is None and default == ()):
        return default
    try:
        return _as(kind, value)
    except (TypeError, OverflowError):
        *others, last = _words_of(kind)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{name} cannot be {crop(repr(value))}", expected=expected) from None


def _as(kind: Any, value: Any) -> Any:
    """A value of a type that arguments have. What mappings hold is not looked at: their readers name it.

    Raises:
        TypeError: It is of another type.
        OverflowError: It is a fraction of more digits than a float has.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for one in inner:
            with suppress(TypeError):
                return _as(one, value)
    elif origin is Literal:
        if isinstance(value, str) and value in inner:
            return value
    elif origin is Sequence:
        if isinstance(value, Iterable) and not isinstance(value, NO_LISTS):
            return [_as(inner[0], one) for one in value]
    elif origin is Mapping and isinstance(value, Mapping):
        return {_as(inner[0], os.fspath(key)): one for key, one in value.items()}
    elif kind in (int, float):
        if isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
            return int(value) if isinstance(value, Integral) else float(value)
    elif kind is Any or (value is None if kind is type(None) else isinstance(value, origin or kind)):
        return value
    raise TypeError


NO_LISTS = (str, bytes, Mapping, set, frozenset, IOBase)
"""What can be iterated and is not taken for a list: text, what has no order, and open files."""
WORDS = {
    bool: "True or False",
    int: "an int",
    float: "a float",
    str: "a string",
    os.PathLike: "a path",
    type: "a class such as tqdm",
    Callable: "a function",
}
"""What error messages call the types of arguments."""


def _words_of(kind: Any) -> list[str]:
    """The types that an argument may have, in words; None, which is only the default, is not among them."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not type(None)]
        is_path = any(get_origin(one) is os.PathLike for one in kinds)
        return [word for one in kinds if not (is_path and one is str) for word in _words_of(one)]
    if origin is Literal:
        return [str(one) for one in inner]
    if origin in (Sequence, Mapping):
        return [f"a {'list' if origin is Sequence else 'dict'} of {_words_of(inner[-1])[0].split()[-1]}s"]
    return [WORDS.get(origin or kind) or kind.__name__]


@cache
def declared_in(owner: Any) -> Mapping[str, DeclaredOption]:
    """The options that a function's signature, or a dataclass, declares."""
    if is_dataclass(owner):
        hints: Mapping[str, Any] = get_type_hints(owner, include_extras=True)
        defaults = {field.name: field.default for field in fields(owner)}
    else:
        parameters = inspect.signature(owner).parameters
        hints = {name: evaluate(one.annotation, owner) for name, one in parameters.items()}
        defaults = {name: one.default for name, one in parameters.items()}
    declared = {}
    for name, hint in hints.items():
        if get_origin(hint) is Annotated:
            kind, *facts = get_args(hint)
            option = next((fact for fact in facts if isinstance(fact, Option)), None)
            if option is not None:
                declared[name] = DeclaredOption(name, kind, defaults[name], option)
    return MappingProxyType(declared)


def evaluate(annotation: Any, owner: Callable[..., Any]) -> Any:
    """An annotation of a signature; `Any` where it only exists for type checkers."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, owner.__globals__)
    except NameError:
        return Any


def from_keywords(group: Callable[..., Group], keywords: Mapping[str, Any]) -> Group:
    """Make a dataclass of options from a command's keyword arguments; others are ignored."""
    return group(**{name: keywords[name] for name in declared_in(group) if name in keywords})


@dataclass(frozen=True)
class Call:
    """One call of a command.

    Attributes:
        command: The command in the shell.
        arguments: Every argument as the report has it.
        declared: Every option of the command.
    """

    command: str
    arguments: Mapping[str, Any]
    declared: Mapping[str, DeclaredOption]

    def identity(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that the bytes of the output depend on. They may also depend on a mapping's order."""
        return {
            name: [[*pair] for pair in value.items()] if isinstance(value, Mapping) else value
            for name, value in arguments.items()
            if name not in self.declared or self.declared[name].option.changes_bytes
        }

    def words(self, arguments: Mapping[str, Any]) -> list[str]:
        """The words of the shell command for the options that differ from their defaults.

        Private values are replaced by an ellipsis, since model cards are published.
        """
        words: list[str] = []
        for name, value in arguments.items():
            option = self.declared.get(name)
            is_shown = option is not None and option.option.in_card and option.option.in_shell
            if option is not None and is_shown and value != _plain(option.default):
                words += _words(option, value)
        return words


def _plain(default: Any) -> Any:
    """A default as the report has it: lists where Python takes any sequence."""
    return list(default) if isinstance(default, tuple) else default


def _words(declared: DeclaredOption, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [declared.flag if value else f"--no-{declared.flag.removeprefix('--')}"]
    if declared.option.is_private:
        return [declared.flag, "…"]
    if declared.option.is_list:
        return [declared.flag, ",".join(map(as_word, value))]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (declared.flag, as_word(one))]


def as_word(value: Any) -> str:
    """A value as people type it: whole numbers have no fraction."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
