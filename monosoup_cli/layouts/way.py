"""Which of several readings is right: the one under which the values of two checkpoints are near each other.

A model and its fine-tune are near each other, so the relative difference of a sample is far lower under the
right reading than under a wrong one, under which it is that of unrelated weights, about √2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.dtypes import BITS, as_float64, integers_in
from monosoup_cli.formats.strided import gather
from monosoup_cli.layouts.arrangement import Piece
from monosoup_cli.names import ALIKE
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Way", "are_unlike", "choose"]

NEAR = 1.0
"""The relative difference, at most, under a right reading."""
CLEARER = 1.2
"""How many times larger it is under every other reading."""
BLOCKS, SIDE, MAX_BLOCKS = 16, 16, 256
"""How many blocks of a module are compared, their rows and columns, and how many are looked at if most of
them are zeros."""
FEW = 4
"""How many blocks show whether tensors that are alike by names and shapes are unlike."""
PROBES = 32
"""How many elements of a tensor show whether two ways are the same."""
UNRELATED = "was one fine-tuned from the other? if not, --exclude leaves such tensors as they are"
GOLDEN, OTHER = (math.sqrt(5) - 1) / 2, math.sqrt(2)
"""Their multiples, less their whole numbers, spread over 0 to 1, whatever their count."""


@dataclass(frozen=True)
class Way:
    """One way to make the tensors of a module out of those of the other checkpoint.

    Attributes:
        wanted: The reading of the module, in words.
        stored: The readings of the other checkpoint's modules, by their names.
        made: The pieces of every tensor.
        renamed: The tensors that are stored ones under other names, or under their own, with these names.
        is_only: Whether no other reading of the module comes to the same, with another one of what is stored.
    """

    wanted: str
    stored: Mapping[str, str]
    made: Mapping[str, Sequence[Piece]]
    renamed: Mapping[str, str]
    is_only: bool = True

    @property
    def words(self) -> str:
        """The readings, in words; empty where there is nothing to say."""
        parts = dict.fromkeys(part for part in (*self.stored.values(), self.wanted) if part)
        return " as ".join(parts)

    @property
    def is_identity(self) -> bool:
        """Whether every tensor is made of itself, as it is."""
        return all(
            (piece.tensor, piece.first, piece.strides) == (name, piece.at, piece.steps)
            for name, pieces in self.made.items()
            for piece in pieces
        )

    @property
    def is_told_by_names(self) -> bool:
        """Whether every tensor is a stored one whose last name is the same: a gate may be another's up."""
        return len(self.renamed) == len(self.made) and all(
            _last(name) == _last(stored) for name, stored in self.renamed.items()
        )

    def mapping(self) -> tuple[tuple[str, int] | None, ...]:
        """Where some elements of a tensor of every size come from, which differs between ways that differ."""
        sizes = {max(piece.stop for piece in pieces): pieces for pieces in self.made.values()}
        return tuple(_origin(pieces, element) for size, pieces in sizes.items() for element in _probes(size))


def choose(
    module: str, ways: Sequence[Way], other: Source, first: Source, *, may_stay: bool = False
) -> Way | None:
    """The way under which the values of both checkpoints are nearest.

    Args:
        module: The module's name, for errors.
        ways: At least one way. Those that come to the same are one, with the words of the first of them.
        other: The checkpoint that is read.
        first: The checkpoint whose layout is wanted.
        may_stay: Whether the module may be read as it is where no way is clearly right; it is None then.

    Raises:
        MismatchError: None is clearly right.
    """
    different: dict[object, Way] = {}
    for way in ways:
        known = different.setdefault(way.mapping(), way)
        if known.wanted != way.wanted:
            different[way.mapping()] = replace(known, is_only=False)
    ways = list(different.values())
    if len(ways) == 1 and ways[0].is_told_by_names:
        return ways[0]
    samples = _Samples(other, first)
    differences = [samples.difference(way) for way in ways]
    nearest, *rest = sorted(range(len(ways)), key=lambda number: differences[number])
    best = differences[nearest]
    is_clear = all(differences[number] > CLEARER * best for number in rest)
    if is_clear and (best <= NEAR or (not rest and not may_stay and math.isinf(best))):
        return ways[nearest]
    if may_stay:
        return None
    tried = [
        f"{way.words or 'as it is'} ({difference:.2f})"
        for way, difference in zip(ways, differences, strict=True)
    ]
    raise MismatchError(
        f"stored in another form than {module!r} in {first.path}, and no reading is clearly right by its"
        f" values, whose relative difference is near 0 where models are related; tried: {'; '.join(tried)}",
        path=other.path,
        tensor=" and ".join(ways[0].stored),
        hint=ALIKE if ".experts" in module else UNRELATED,
    )


def _last(name: str) -> str:
    """The last component of a name that tells projections apart."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def are_unlike(way: Way, other: Source, first: Source) -> bool:
    """Whether a few blocks are as far apart under a way as those of unrelated weights."""
    return NEAR < _Samples(other, first).difference(way, FEW) < math.inf


class _Samples:
    """Blocks of two checkpoints, each read once."""

    def __init__(self, other: Source, first: Source) -> None:
        self._other, self._first = other, first
        self._read: dict[object, torch.Tensor] = {}

    def difference(self, way: Way, count: int = BLOCKS) -> float:
        """The relative difference under a way, in the quarter of the blocks where it is largest.

        A reading that is right for a half of the weights is a wrong one. Infinite if one side has nothing but
        zeros, which tell nothing.
        """
        found: list[tuple[float, float]] = []
        for name, piece in _blocks(way):
            one = self._block(self._other, piece.tensor, piece.shape, piece.first, piece.strides)
            two = self._block(self._first, name, piece.shape, piece.at, piece.steps)
            of_one, of_two = float(one.square().sum()), float(two.square().sum())
            if of_one and of_two and math.isfinite(of_one + of_two):
                found.append((float((one - two).square().sum()), (of_one + of_two) / 2))
            if len(found) == count:
                break
        if not found:
            return math.inf
        found.sort(key=lambda block: block[0] / block[1], reverse=True)
        differences, squares = (sum(column) for column in zip(*found[: -(-len(found) // 4)], strict=True))
        return math.sqrt(differences / squares)

    def _block(
        self, source: Source, name: str, shape: Sequence[int], first: int, strides: Sequence[int]
    ) -> torch.Tensor:
        """Read a block of a stored tensor in float64."""
        key = (source is self._first, name, first, *shape, *strides)
        if key not in self._read:
            reader = source.reader(name)
            bits = BITS[reader.dtype]
            data = bytearray(math.prod(shape) * bits // 8)
            into = integers_in(memoryview(data), bits).view(tuple(shape))
            gather(reader.read_into, into, first * bits // 8, strides)
            self._read[key] = as_float64(data, reader.dtype)
        return self._read[key]


def _blocks(way: Way) -> Iterator[tuple[str, Piece]]:
    """Yield small blocks that are spread over the tensors of a module, matrices before vectors."""
    pieces = [(name, piece) for name, some in way.made.items() for piece in some]
    matrices = [one for one in pieces if len(one[1].shape) > 1]
    vectors = [one for one in pieces if len(one[1].shape) <= 1]
    for some in (matrices, vectors):
        for number in range(MAX_BLOCKS if some else 0):
            name, piece = some[int(number * GOLDEN % 1 * len(some))]
            yield name, piece.part(SIDE, number * OTHER % 1)


def _probes(size: int) -> list[int]:
    return [int(number * GOLDEN % 1 * size) for number in range(PROBES)]


def _origin(pieces: Sequence[Piece], element: int) -> tuple[str, int] | None:
    """The stored tensor and the element in it that is read as an element of a made tensor."""
    for piece in pieces:
        origin = piece.origin(element)
        if origin is not None:
            return piece.tensor, origin
    return None
