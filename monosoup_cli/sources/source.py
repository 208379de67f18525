"""A checkpoint as everything above sees it: tensors by name, wherever they are read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

    from monosoup_cli.formats.files import CheckpointFile, Download
    from monosoup_cli.formats.header import TensorInfo
    from monosoup_cli.sources.files import Files

__all__ = [
    "DENSE",
    "UNCHANGED",
    "Dense",
    "Factors",
    "LowRank",
    "Reader",
    "Source",
    "Unchanged",
    "Update",
    "are_unchanged",
]

Factors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""Left (rows, rank) and right (rank, columns), both float64; the matrix is their product."""


class Reader(NamedTuple):
    """Reads one tensor piece by piece.

    Attributes:
        dtype: The dtype in which the bytes are read, in the words of the format.
        read_into: Fills a buffer with the tensor's bytes from an offset on. Where `place` is known, it reads
            beyond the tensor's end into the next one.
        place: The file, and the offset of the tensor's first byte in it. None where the bytes are not those
            of a file.
    """

    dtype: str
    read_into: Callable[[memoryview, int], None]
    place: tuple[CheckpointFile, int] | None = None


@dataclass(frozen=True)
class Dense:
    """An update without a known structure."""


@dataclass(frozen=True)
class Unchanged:
    """No update: the tensor is the base's own."""


@dataclass(frozen=True)
class LowRank:
    """An update that is the product of two thin factors.

    Attributes:
        rank: The rank of the factors; of a stack, the rank of each matrix.
        scale: What their product is multiplied by; the left factor already contains it.
        factors: Takes the index of a matrix, its rows and its columns, and returns the factors. Returns None
            if the factors do not match the way the tensor is cut into matrices.
    """

    rank: int
    scale: float
    factors: Callable[[int, int, int], Factors | None]


Update: TypeAlias = "Dense | Unchanged | LowRank"
DENSE, UNCHANGED = Dense(), Unchanged()


class Source(Protocol):
    """Tensors by name, under the names of the first fine-tuned checkpoint.

    Attributes:
        path: What the user typed.
        files: The files that it was opened from; of an adapter, the adapter's own.
        model: The files whose layout, configuration and side files an output follows.
        tensors: The header of every tensor, in the order of the files.
    """

    path: str
    files: Files
    tensors: Mapping[str, TensorInfo]

    @property
    def model(self) -> Files: ...

    def update(self, name: str) -> Update:
        """What is known of a tensor's difference from the base."""
        ...

    def reader(self, name: str) -> Reader:
        """How a tensor is read."""
        ...

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have a tensor, or its first `limit` bytes, ready soon. Does not wait."""
        ...

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """What has to be downloaded to read these tensors, or all of them."""
        ...

    def is_at_hand(self, name: str) -> bool:
        """Whether the tensor exists, and `select` has not left it on the Hub."""
        ...

    @property
    def held_bytes(self) -> int:
        """How many bytes a thread may hold to read one of the tensors."""
        ...

    def forget(self) -> None:
        """Drop what the calling thread holds of the tensors."""
        ...

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file was written to since it was opened."""
        ...


def are_unchanged(name: str, sources: Iterable[Source]) -> bool:
    """Whether headers show that a tensor is the base's in all of these."""
    return all(isinstance(source.update(name), Unchanged) for source in sources)
