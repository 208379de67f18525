"""Matrices of features, (samples, features), read in pieces from .npy and .safetensors files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monosoup_cli.errors import CheckpointError, NonfiniteError
from monosoup_cli.formats.dtypes import BITS, FLOATING, as_float64, count_nonfinite
from monosoup_cli.formats.files import Advance, CheckpointFile, InputFile
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.npy import SUFFIX, read_npy, swapped
from monosoup_cli.formats.table import open_shard
from monosoup_cli.sources.folders import local_folder, unresolved

if TYPE_CHECKING:
    import torch

__all__ = ["Features", "is_model", "open_model", "open_npy"]

SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Features:
    """The features of some samples in one block of a model.

    Attributes:
        name: What the block is called.
        file: The file that has them.
        tensor: Their dtype and shape.
        start: The byte of the file where they begin.
        is_swapped: Whether they are in the byte order of other machines.
        advance: Gets the number of bytes of every piece that is read.
    """

    name: str
    file: CheckpointFile
    tensor: TensorInfo
    start: int
    is_swapped: bool = False
    advance: Advance = lambda nbytes: None

    def __post_init__(self) -> None:
        def refuse(problem: str, expected: str, found: object) -> CheckpointError:
            return CheckpointError(
                problem, path=self.file.shown, tensor=self.inside, expected=expected, found=found
            )

        if len(self.tensor.shape) != 2:
            raise refuse("is no matrix", "(samples, features)", self.tensor.shape)
        if self.tensor.shape[0] < 2 or self.tensor.shape[1] < 1:
            raise refuse("has too few samples or features", "2 and 1 at least", self.tensor.shape)
        if self.tensor.dtype not in FLOATING:
            raise refuse("has another dtype", ", ".join(FLOATING), self.tensor.dtype)

    @property
    def inside(self) -> str | None:
        """The name of its tensor in the file; None where the file has nothing else."""
        return self.name if self.file.shown.endswith(SAFETENSORS) else None

    @property
    def shape(self) -> tuple[int, int]:
        samples, width = self.tensor.shape
        return samples, width

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self, rows: range, columns: range) -> torch.Tensor:
        """Read some rows and columns in float64.

        Raises:
            NonfiniteError: There is NaN or Inf among them.
        """
        size, width = BITS[self.tensor.dtype] // 8, self.shape[1]
        data = bytearray(len(rows) * len(columns) * size)
        buffer, step = memoryview(data), len(columns) * size
        if len(columns) == width:
            self.file.read_into(buffer, self.start + rows.start * step)
        else:
            for number, row in enumerate(rows):
                first = self.start + (row * width + columns.start) * size
                self.file.read_into(buffer[number * step : (number + 1) * step], first)
        self.advance(len(data))
        values = as_float64(swapped(data, size) if self.is_swapped else data, self.tensor.dtype)
        if count_nonfinite(values):
            raise NonfiniteError("has NaN or Inf", path=self.file.shown, tensor=self.inside)
        return values.view(len(rows), len(columns))


def is_model(source: str) -> bool:
    """Whether these are the features of all blocks of a model: a folder, or a .safetensors file."""
    return Path(source).is_dir() or source.endswith(SAFETENSORS)


def open_npy(source: str) -> Features:
    """Open an .npy file.

    Raises:
        CheckpointError: There is no such file, or it is malformed or has no matrix.
    """
    return _of_npy(source, _opened(source))


def open_model(source: str) -> list[Features]:
    """Open the features of all blocks of a model, in the order of the numbers in their names.

    Args:
        source: A folder with an .npy file for each block, or a .safetensors file with a tensor for each.

    Raises:
        CheckpointError: There is no such folder or file, or something in it is malformed or no matrix.
    """
    if source.endswith(SAFETENSORS) and not Path(source).is_dir():
        shard = open_shard(Path(source).name, _opened(source))
        blocks = [
            Features(name, shard.file, tensor, shard.data_start + tensor.start)
            for name, tensor in shard.header.tensors.items()
        ]
    else:
        folder = local_folder(Path(source), source)
        names = [name for name in folder.names() if name.endswith(SUFFIX)]
        blocks = [_of_npy(name, folder.open(name)) for name in names]
    if not blocks:
        raise CheckpointError("has no features", path=source, expected=f"a {SUFFIX} file for each block")
    return sorted(blocks, key=lambda block: _natural(block.name))


def _of_npy(name: str, file: CheckpointFile) -> Features:
    array = read_npy(file)
    return Features(name.removesuffix(SUFFIX), file, array.tensor, array.tensor.start, array.is_swapped)


def _opened(source: str) -> InputFile:
    try:
        return InputFile(Path(source).resolve(strict=True), source)
    except (OSError, RuntimeError) as error:
        if not Path(source).is_symlink():
            raise CheckpointError("no such file", path=source) from error
        raise unresolved(error, source) from error


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts block 2 before block 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
