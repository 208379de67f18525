"""`cka`: how alike the features of blocks and models are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from monosoup_cli.errors import MismatchError, NonfiniteError, UsageError, crop, some
from monosoup_cli.formats.files import Advance
from monosoup_cli.options import StrPath, path_list
from monosoup_cli.sources.features import Features, is_model, open_model, open_npy

__all__ = ["Alignment", "cka", "opened"]

BLOCKS = 4
"""How many blocks take memory at once: as stored, in float64, copied to be multiplied, freed late."""
NAMED = 4
"""How many blocks an error names."""
LEAST_BYTES = 32 << 20
"""The fewest bytes of products: with less, the files are read too often."""


def cka(features: StrPath | Sequence[StrPath], *, matching: bool = False) -> dict[str, Any]:
    """Compare the features of blocks, or of all blocks of models, by linear CKA (Kornblith et al., 2019).

    Args:
        features: Two or more .npy files of one shape (samples, features) each, of the same samples. Or one or
            more models, each a folder with an .npy file for each block, or a .safetensors file with a tensor
            for each block: every block of the first model is compared with every block of each model.
        matching: Compare blocks of models with those of the same name alone.

    Returns:
        The number of `samples`, and the `maps`. Each has its `kind`; the names of its `rows` and `columns`;
        and `cka`, a list for each row, with None where features do not vary. `files` has every file against
        every file. `matching` has a row for each model and a column for each block: against the same block of
        the first model. `blocks` has the blocks of the model `first` against those of `second`.

    Raises:
        monosoup_cli.errors.MonosoupError: The features cannot be read, or are not of the same samples.
    """
    with opened(path_list(features), matching=matching) as alignment:
        return alignment.run()


@dataclass(frozen=True)
class _Map:
    """A table to be computed: which matrix stands for each row and column."""

    kind: str
    facts: Mapping[str, Any]
    pairs: Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Alignment:
    """Opened features, and the tables that are to be computed of them."""

    matrices: Sequence[Features]
    maps: Sequence[_Map]

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """Which matrices are compared, by their places, the smaller one first."""
        return {_ordered(pair) for one in self.maps for row in one.pairs for pair in row}

    @property
    def nbytes(self) -> int:
        """How many bytes will be read."""
        from monosoup_cli.spectral.cka import passes

        shapes = [matrix.shape for matrix in self.matrices]
        return sum(
            self.matrices[place].nbytes // shapes[place][1] * len(columns)
            for one in passes(shapes, self.pairs, self.limit)
            for place, columns in one.strips
        )

    @cached_property
    def limit(self) -> int:
        """How many bytes of products are in memory at once.

        Raises:
            ResourceError: There is no memory for a block of features beside some products.
        """
        from monosoup_cli.pipeline.memory import host_bytes
        from monosoup_cli.spectral.cka import BLOCK_BYTES, HELD_BYTES

        blocks = BLOCKS * BLOCK_BYTES
        return host_bytes(LEAST_BYTES + blocks, HELD_BYTES + blocks) - blocks

    def run(self, advance: Advance = lambda nbytes: None) -> dict[str, Any]:
        """Compute the tables; `advance` gets the size of each piece that is read."""
        from monosoup_cli.spectral.cka import alignments

        try:
            found = alignments(
                [replace(one, advance=advance) for one in self.matrices], self.pairs, self.limit
            )
        except OverflowError:
            raise NonfiniteError("the products of the features overflow float64") from None
        for one in self.matrices:
            one.file.check_unchanged()
        return {
            "samples": self.matrices[0].shape[0],
            "maps": [
                {
                    "kind": one.kind,
                    **one.facts,
                    "cka": [[found[_ordered(pair)] for pair in row] for row in one.pairs],
                }
                for one in self.maps
            ],
        }


def _ordered(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


@contextmanager
def opened(sources: Sequence[str], *, matching: bool = False) -> Iterator[Alignment]:
    """Open features, check that they are of the same samples, and list what is compared."""
    models = [source for source in sources if is_model(source)]
    if models and len(models) < len(sources):
        other = next(source for source in sources if source not in models)
        if not Path(other).exists():
            raise UsageError("no such file or folder", path=other)
        raise UsageError("a single file among the features of models", path=other)
    if not models and (len(sources) < 2 or matching):
        raise UsageError(
            "--matching compares models" if matching else "too few files of features",
            expected="folders or .safetensors files" if matching else "2 at least",
        )
    groups: list[list[Features]] = []
    try:
        for source in sources:
            groups.append(open_model(source) if models else [replace(open_npy(source), name=source)])
        matrices = [one for group in groups for one in group]
        for one in matrices:
            if one.shape[0] != matrices[0].shape[0]:
                raise MismatchError(
                    "has other samples",
                    path=one.file.shown,
                    tensor=one.inside,
                    expected=f"{matrices[0].shape[0]:,} rows, as in {matrices[0].file.shown}",
                    found=f"{one.shape[0]:,}",
                )
        yield Alignment(matrices, list(_maps(sources, groups, matching) if models else [_of_files(sources)]))
    finally:
        for group in groups:
            for one in group:
                one.file.close()


def _of_files(sources: Sequence[str]) -> _Map:
    places = range(len(sources))
    names = {"rows": list(sources), "columns": list(sources)}
    return _Map("files", names, [[(row, column) for column in places] for row in places])


def _difference(expected: Sequence[str], found: Sequence[str]) -> str:
    """Which names are not there, or else which are there beside them."""
    lacking = [crop(name, 60) for name in expected if name not in found]
    further = [crop(name, 60) for name in found if name not in expected]
    return f"no {some(lacking, NAMED)}" if lacking else f"also {some(further, NAMED)}"


def _maps(sources: Sequence[str], groups: Sequence[Sequence[Features]], matching: bool) -> Iterator[_Map]:
    starts = [sum(map(len, groups[:number])) for number in range(len(groups))]
    names = [[one.name for one in group] for group in groups]
    others = next((number for number, found in enumerate(names) if found != names[0]), None)
    if matching and (others is not None or len(groups) < 2):
        raise MismatchError(
            "the blocks do not match" if others else "nothing to match: there is only one model",
            path=sources[others or 0],
            expected=None if others is None else f"the {len(names[0])} names of {sources[0]}",
            found=None if others is None else _difference(names[0], names[others]),
        )
    if others is None and len(groups) > 1:
        rows = [[(place, start + place) for place in range(len(names[0]))] for start in starts]
        facts = {"first": sources[0], "rows": list(sources), "columns": names[0]}
        yield _Map("matching", facts, rows)
    if matching:
        return
    for second in range(1, len(groups)) if len(groups) > 1 else [0]:
        rows = [
            [(row, starts[second] + column) for column in range(len(names[second]))]
            for row in range(len(names[0]))
        ]
        facts = {"first": sources[0], "second": sources[second], "rows": names[0], "columns": names[second]}
        yield _Map("blocks", facts, rows)
