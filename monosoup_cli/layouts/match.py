"""Read a checkpoint in the layout of another one of the same model.

What the names and shapes leave open is decided by values: a model and its fine-tune are near each other, so
the relative difference of a sample is far lower under the right reading than under a wrong one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import TYPE_CHECKING

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.dtypes import BITS, FLOATING, as_float64, integers_in
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.strided import gather
from monosoup_cli.layouts.arrangement import Arranged, Piece
from monosoup_cli.layouts.layout import Atom, Reading, facts_of, starred
from monosoup_cli.layouts.table import LAYOUTS
from monosoup_cli.names import ALIKE
from monosoup_cli.sources.alignment import align
from monosoup_cli.sources.derived import Derived, Made
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["in_layout_of", "modules_of"]

NEAR = 1.0
"""The relative difference, at most, under a right reading. Of unrelated weights it is about 1.41."""
CLEARER = 1.2
"""How many times larger it is under every other reading."""
SAMPLED_TENSORS, SAMPLED_ATOMS, SAMPLED_ROWS = 2, 8, 64
"""How many tensors of a module are sampled, atoms of each, and rows and columns of each of these."""
MAX_READINGS = 64
"""How many readings of one module are tried at most."""


@dataclass
class _Module:
    """The tensors of one kind in all layers: those of the same name but for its numbers.

    Attributes:
        name: The name with stars for its numbers, without `weight` or `bias`.
        readings: The readings of each tensor, by their words.
    """

    name: str
    readings: dict[str, dict[str, Reading]] = field(default_factory=dict)

    @property
    def ways(self) -> list[str]:
        """The words of the readings that every tensor of the module has."""
        first, *others = self.readings.values()
        return [words for words in first if all(words in other for other in others)]

    def atoms(self, words: str) -> Iterator[tuple[str, Atom]]:
        """Yield the atoms of all tensors under one reading, each with its tensor."""
        for tensor, readings in self.readings.items():
            for atom in readings[words].atoms:
                yield tensor, atom


@dataclass(frozen=True)
class _Way:
    """One way to make the tensors of a module out of those of the other checkpoint.

    Attributes:
        wanted: The reading of the module.
        stored: The readings of the other checkpoint's modules, by their names.
        made: The pieces of every tensor.
    """

    wanted: str
    stored: Mapping[str, str]
    made: Mapping[str, Sequence[Piece]]

    @property
    def words(self) -> str:
        """The readings, in words."""
        parts = [self.wanted, *self.stored.values()]
        return ", ".join(dict.fromkeys(part for part in parts if part)) or "as it is"


def in_layout_of(other: Source, first: Source) -> Source:
    """Read a checkpoint in the layout of the first one, as far as only the layout differs.

    Args:
        other: A checkpoint under the names of the first one, where the names match.
        first: The checkpoint whose layout is wanted.

    Raises:
        MismatchError: The weights are laid out differently, and no reading is clearly right.
    """
    wanted = _unmatched(first.tensors, other.tensors)
    spare = _unmatched(other.tensors, first.tensors)
    if not wanted or not spare:
        return other
    modules = modules_of(wanted, first, spare)
    stored = modules_of(spare, other, wanted)
    owners = _owners(modules, stored, other.path)
    tensors: dict[str, str | Made] = {name: name for name in other.tensors}
    read_as = []
    for module in modules.values():
        ways = list(islice(_ways(module, stored, owners), MAX_READINGS))
        if not ways:
            continue
        way = _chosen(module, ways, other, first)
        for name, pieces in way.made.items():
            info = replace(first.tensors[name], dtype=other.tensors[pieces[0].tensor].dtype)
            info = replace(info, stop=info.start + info.elements * BITS[info.dtype] // 8)
            tensors[name] = Arranged(info, pieces)
            for piece in pieces:
                if piece.tensor not in first.tensors:
                    tensors.pop(piece.tensor, None)
        sources = " and ".join(f"'{name}'" for name in way.stored)
        read_as.append(f"with '{module.name}' made of {sources} ({way.words})")
    if not read_as:
        return other
    files = replace(other.files, read_as=(*other.files.read_as, *read_as))
    return Derived(other, tensors, files)


def _unmatched(ones: Mapping[str, TensorInfo], others: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The floating-point tensors that the other checkpoint does not have in the same shape."""
    return {
        name: tensor
        for name, tensor in ones.items()
        if tensor.dtype in FLOATING and (name not in others or others[name].shape != tensor.shape)
    }


def modules_of(
    tensors: Mapping[str, TensorInfo], source: Source, others: Mapping[str, TensorInfo]
) -> dict[str, _Module]:
    """Describe the tensors that are part of a layout, by their modules."""
    facts = facts_of(source, others)
    modules: dict[str, _Module] = {}
    for name, tensor in tensors.items():
        readings = [one for layout in LAYOUTS for one in layout.readings(name, tensor, facts)]
        if readings:
            key = _module_name(name)
            modules.setdefault(key, _Module(key)).readings[name] = {one.words: one for one in readings}
    return modules


def _module_name(name: str) -> str:
    stem = starred(name)
    for ending in (".weight", ".bias", "_weight", "_bias"):
        stem = stem.removesuffix(ending)
    return stem


def _owners(
    modules: Mapping[str, _Module], stored: Mapping[str, _Module], path: str
) -> dict[str, tuple[str, str]]:
    """Map the names of wanted atoms to the other checkpoint's modules that have them, and to their names."""

    def names(some: Mapping[str, _Module]) -> dict[str, str]:
        return {
            atom.name: key for key, one in some.items() for words in one.ways for _, atom in one.atoms(words)
        }

    theirs = names(stored)
    aligned = align(_shapeless(theirs), _shapeless(names(modules)), (), path)
    return {name: (theirs[own], own) for name, own in aligned.stored.items()}


def _shapeless(names: Mapping[str, str]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (), 0, 4) for name in names}


def _ways(
    module: _Module, stored: Mapping[str, _Module], owners: Mapping[str, tuple[str, str]]
) -> Iterator[_Way]:
    """Yield each way in which all tensors of a module can be made."""
    for words in module.ways:
        atoms = list(module.atoms(words))
        holders = list(dict.fromkeys(owners[atom.name][0] for _, atom in atoms if atom.name in owners))
        if not holders or any(atom.name not in owners for _, atom in atoms):
            continue
        for combination in product(*(stored[holder].ways for holder in holders)):
            found = {
                atom.name: (tensor, atom)
                for holder, chosen in zip(holders, combination, strict=True)
                for tensor, atom in stored[holder].atoms(chosen)
            }
            made: dict[str, list[Piece]] = defaultdict(list)
            for name, atom in atoms:
                tensor, place = found[owners[atom.name][1]]
                if place.shape != atom.shape:
                    break
                made[name].append(
                    Piece(tensor, atom.shape, place.first, place.strides, atom.first, atom.strides)
                )
            else:
                yield _Way(words, dict(zip(holders, combination, strict=True)), made)


def _chosen(module: _Module, ways: Sequence[_Way], other: Source, first: Source) -> _Way:
    """The way under which the values of both checkpoints are nearest.

    Raises:
        MismatchError: None is clearly right.
    """
    differences = [_difference(way, other, first) for way in ways]
    order = sorted(range(len(ways)), key=lambda number: differences[number])
    best = differences[order[0]]
    is_clear = len(ways) == 1 or differences[order[1]] > CLEARER * best
    if (best <= NEAR and is_clear) or (len(ways) == 1 and math.isinf(best)):
        return ways[order[0]]
    tried = "; ".join(
        f"{way.words}: {difference:.2g}" for way, difference in zip(ways, differences, strict=True)
    )
    raise MismatchError(
        f"'{module.name}' is stored in another layout in {other.path}, and no reading of it is clearly right:"
        " relative differences of a sample of the weights are above 1, or near each other",
        path=first.path,
        found=tried,
        hint=ALIKE,
    )


def _difference(way: _Way, other: Source, first: Source) -> float:
    """The relative difference of a sample; infinite where both are zero."""
    differences = squares = 0.0
    names = list(way.made)
    for name in dict.fromkeys([names[0], names[len(names) // 2]][:SAMPLED_TENSORS]):
        pieces = way.made[name]
        for piece in pieces[:: -(-len(pieces) // SAMPLED_ATOMS)]:
            one = _sample(other, piece.tensor, piece.shape, piece.first, piece.strides)
            two = _sample(first, name, piece.shape, piece.at, piece.steps)
            differences += float((one - two).square().sum())
            squares += float(one.square().sum() + two.square().sum()) / 2
    return math.sqrt(differences / squares) if squares else math.inf


def _sample(
    source: Source, name: str, shape: Sequence[int], first: int, strides: Sequence[int]
) -> torch.Tensor:
    """The first rows and columns of a block of a stored tensor, in float64."""
    reader = source.reader(name)
    corner = [min(size, SAMPLED_ROWS) for size in shape]
    data = bytearray(math.prod(corner) * BITS[reader.dtype] // 8)
    into = integers_in(memoryview(data), BITS[reader.dtype]).view(corner)
    gather(reader.read_into, into, first * BITS[reader.dtype] // 8, strides)
    return as_float64(data, reader.dtype)
