"""Matrices whose rows are fused in one tensor, or that are stored one by one under one of several names.

Fused rows are one part after the other, or take turns: of every group of heads its q, its k and its v.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.arrangement import row_major
from monosoup_cli.layouts.layout import NUMBER, Atom, Facts, Reading, same, starred

__all__ = ["Separate", "is_matrix", "joined", "parse", "rows_of_parts", "split"]

NAME = re.compile(r"^(?:(?P<module>.+)\.)?(?P<last>[^.]+?)(?:\.|(?<=_))(?P<kind>weight|bias)$")
STACK = re.compile(r"(^|\.)experts$")


def parse(name: str, tensor: TensorInfo, facts: Facts) -> tuple[str, str, str] | None:
    """The module around a projection, the projection's own name, and `weight` or `bias`.

    None for tensors that are no weights or biases of a projection, for those of stacked experts, and for
    those that the other checkpoint has under the same name, which are not fused in one of them alone.

    >>> parse("blocks.0.attn.in_proj_weight", TensorInfo("", "F32", (3, 1), 0, 12), Facts({}, {}))
    ('blocks.0.attn', 'in_proj_', 'weight')
    """
    match = NAME.match(name)
    if match is None or (len(tensor.shape) > 1) != (match["kind"] == "weight") or 0 in tensor.shape:
        return None
    if starred(name) in facts.rows:
        return None
    module = match["module"] or ""
    return None if STACK.search(module) else (module, match["last"], match["kind"])


def joined(module: str, part: str) -> str:
    """The name of a part of a module."""
    return f"{module}.{part}" if module else part


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether a tensor may be stored as (in, out)."""
    return len(tensor.shape) == 2


class Separate:
    """Every matrix in a tensor of its own.

    Args:
        names: The names that libraries give to the parts, each mapped to its name in common.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """As it is, under the name in common."""
        found = parse(name, tensor, facts)
        if found is None:
            return []
        module, last, kind = found
        part = self.part(module, last, facts)
        return [] if part is None else [same(joined(module, f"{part}.{kind}"), tensor)]

    def part(self, module: str, last: str, facts: Facts) -> str | None:
        """The name in common of a part of a module; None of what is no part."""
        return self._names.get(last)


def split(
    module: str, kind: str, tensor: TensorInfo, parts: Mapping[str, int], groups: int, *, is_transposed: bool
) -> tuple[Atom, ...]:
    """The atoms of a tensor with the rows of several parts.

    Args:
        module: The module that the parts belong to.
        kind: `weight` or `bias`.
        tensor: The tensor.
        parts: How many rows each part has, by their names, in their order.
        groups: How many groups of rows take turns, each with its share of every part.
        is_transposed: Whether the tensor is stored as (in, out).
    """
    if is_transposed and is_matrix(tensor):
        inner, row, columns = tensor.shape[:1], 1, tensor.shape[1:]
    else:
        inner, columns = tensor.shape[1:], row_major(tensor.shape)[1:]
        row = row_major(tensor.shape)[0]
    total, start, atoms = sum(parts.values()), 0, []
    for part, rows in parts.items():
        atoms.append(
            Atom(
                joined(module, f"{part}.{kind}"),
                (rows, *inner),
                start * row,
                (total // groups * row, row, *columns),
                (groups, rows // groups, *inner),
            )
        )
        start += rows // groups
    return tuple(atoms)


def rows_of_parts(
    module: str, parts: Sequence[str], names: Mapping[str, str], facts: Facts
) -> Iterator[tuple[int, ...]]:
    """Yield how many rows the parts have in the other checkpoint, in modules of about the same name first.

    Args:
        module: The module of the fused tensor.
        parts: The names in common of the parts.
        names: The names that libraries give to them, each mapped to its name in common.
        facts: What is known of the other checkpoint.
    """
    found: dict[str, dict[str, str]] = {}
    for key in facts.rows:
        match = NAME.match(key)
        if match is not None and names.get(match["last"]) in parts and match["kind"] == "weight":
            found.setdefault(match["module"] or "", {})[names[match["last"]]] = key
    complete = [other for other, has in found.items() if all(part in has for part in parts)]
    for other in sorted(complete, key=lambda other: -_likeness(starred(f"{module}."), f"{other}.")):
        keys = [found[other][part] for part in parts]
        yield tuple(facts.rows_by_layer.get(_numbered(key, module), facts.rows[key]) for key in keys)


def _numbered(name: str, module: str) -> str:
    """A name with the numbers of a module's name in place of its stars, as far as there are any."""
    numbers = iter(NUMBER.findall(f"{module}."))
    return re.sub(r"\*", lambda star: next(numbers, star[0]), name)


def _likeness(name: str, other: str) -> int:
    """How many last components two names have in common."""
    pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
