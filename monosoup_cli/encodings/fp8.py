"""fp8 codes: with a scale for a whole tensor, for every channel or for every block, or plain ones.

`SCALES` has the names that libraries give to scales. What elements share a scale follows from its shape: in
each dimension a tensor has one scale, one for every index, or one for every block of the configured size. A
decoded element is its code times its scale. Codes without scales are floats that somebody cast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from monosoup_cli.encodings.codec import MAX_ELEMENTS, Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.encodings.facts import IF_LOST, Left
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Fp8"]

CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
SCALES = (
    ("", "_scale_inv"),  # DeepSeek and transformers; despite its name it multiplies
    ("", "_scale"),  # compressed-tensors, ModelOpt, FBGEMM
    (".weight", ".scale_weight"),  # ComfyUI
    (".weight", ".qscale_weight"),  # Mistral
    (".weight", ".scale"),  # DeepSeek
)
"""What a name of codes ends in, and what the name of their scales has in its place."""
FLOATS = ("F32", "BF16", "F16", "F8_E8M0")
"""The dtypes that scales have."""
OF_WEIGHTS = re.compile(r"(^|[._])(weight_scale|\w*_scale_inv|q?scale_weight|weight_zero_point)$")
"""The names that only scales of weights have, and their zero points, which fp8 has not."""
BLOCK = (128, 128)
"""The size of blocks where config.json does not say."""


@dataclass(frozen=True)
class _Grid:
    """Which elements of a matrix share a scale.

    A stack of matrices is one below the other, and so are the scales of each.

    Attributes:
        rows: The number of rows of each matrix of a stack.
        scales: The numbers of rows and of columns of its scales.
        block: How many rows and columns share one scale.
    """

    rows: int
    scales: tuple[int, int]
    block: tuple[int, int]


class Fp8:
    """fp8 with or without scales."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the tensors of fp8. If some have scales, or config.json says so, then all matrices have."""
        settings, path = _settings(source.files.config or {}), source.path
        block = _block_size(settings)
        found, plain, scales = {}, [], set()
        for name, codes in tensors.items():
            if codes.dtype not in CODES or OF_WEIGHTS.search(name):
                continue
            scale = _scale_of(codes, tensors)
            if scale is None:
                plain.append(codes)
                continue
            grid, words = _grid(codes, scale, block, path)
            scales.add(scale.name)
            found[name] = Encoded(
                decoded_info(name, codes.shape),
                {"codes": name, "scales": scale.name},
                partial(_decode, grid=grid),
                held=4 * scale.elements + MAX_ELEMENTS,
                words=words,
                has_columns=True,
            )
        for codes in plain:
            if len(codes.shape) > 1 and (found or settings):
                raise CheckpointError(
                    "fp8 codes without their scales",
                    path=path,
                    tensor=codes.name,
                    expected=" or ".join(repr(f"{codes.name}{other}") for end, other in SCALES if not end),
                    hint=IF_LOST,
                )
        for name in tensors if found else ():
            if name not in scales and OF_WEIGHTS.search(name):
                owners = [f"{name.removesuffix(other)}{end}" for end, other in SCALES if name.endswith(other)]
                is_alone = bool(owners) and owners[0] not in found
                raise CheckpointError(
                    "no fp8 codes have these scales",
                    path=path,
                    tensor=name,
                    expected=f"codes in {owners[0]!r}" if is_alone else None,
                    hint=IF_LOST if is_alone else None,
                )
        for codes in plain:
            found[codes.name] = Encoded(
                decoded_info(codes.name, codes.shape),
                {"codes": codes.name},
                _codes,
                held=MAX_ELEMENTS,
                words="fp8 without scales",
                has_columns=True,
            )
        return found


def _scale_of(codes: TensorInfo, tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """The scales of some codes."""
    for end, other in SCALES:
        stem = codes.name.removesuffix(end)
        if codes.name.endswith(end) and f"{stem}{other}" in tensors:
            return tensors[f"{stem}{other}"]
    return None


def _settings(config: Mapping[str, Any]) -> Any:
    """What a configuration says about codes, under today's key or that of old compressed-tensors."""
    of_text = config.get("text_config")
    parts = [config, of_text if isinstance(of_text, dict) else {}]
    keys = ("quantization_config", "compression_config")
    return next((part[key] for part in parts for key in keys if part.get(key)), None)


def _block_size(settings: Any) -> tuple[int, int]:
    """The size of blocks as transformers or compressed-tensors write it."""
    if not isinstance(settings, dict):
        return BLOCK
    groups = settings.get("config_groups")
    sizes = [settings.get("weight_block_size")]
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        sizes.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    for size in sizes:
        if isinstance(size, list) and len(size) == 2 and all(type(one) is int and one > 0 for one in size):
            return size[0], size[1]
    return BLOCK


def _grid(codes: TensorInfo, scale: TensorInfo, block: tuple[int, int], path: str) -> tuple[_Grid, str]:
    """Which elements share a scale, and the same in words.

    Raises:
        CheckpointError: The shapes of codes and scales do not fit each other.
    """
    if scale.dtype not in FLOATS:
        raise CheckpointError(
            "scales of an unknown kind", path=path, tensor=scale.name, expected="floats", found=scale.dtype
        )
    rows, columns = (1, 1, *codes.shape)[-2:]
    if scale.elements == 1:
        rows = math.prod(codes.shape[:-1])  # of all matrices of a stack
        return _Grid(rows, (1, 1), (rows, columns)), "fp8 with a scale per tensor"
    shape = scale.shape
    if shape == codes.shape[:1]:  # one for every row, or for every matrix of a stack
        shape = (*shape, *[1] * (len(codes.shape) - 1))
    wanted = (*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    shared = [0, 0]
    if len(shape) == len(codes.shape) > 1 and shape[:-2] == wanted[:-2]:
        half = -(-rows // 2 // block[0])
        if "gate_up" in codes.name and rows % 2 == 0 and shape[-2] == 2 * half != wanted[-2]:
            rows, shape = rows // 2, (*shape[:-2], half, shape[-1])  # of gate and of up, each for itself
        shared = [_shared(rows, shape[-2], block[0]), _shared(columns, shape[-1], block[1])]
    if 0 in shared:
        raise CheckpointError(
            f"the scales do not fit the codes {list(codes.shape)} in blocks of {block[0]} × {block[1]}",
            path=path,
            tensor=scale.name,
            expected=list(wanted),
            found=list(scale.shape),
        )
    of_rows, of_columns = shared
    kind = "block scales"
    if of_columns == columns and of_rows in (1, rows):
        kind = "a scale per channel" if of_rows == 1 else "a scale per tensor"
    return _Grid(rows, (shape[-2], shape[-1]), (of_rows, of_columns)), f"fp8 with {kind}"


def _shared(size: int, count: int, block: int) -> int:
    """How many neighbours share one of so many scales for a dimension; 0 if the scales do not fit it."""
    if count == 1:
        return size
    return 1 if count == size else block if count == -(-size // block) else 0


def _codes(parts: Parts, part: Rectangle) -> torch.Tensor:
    return parts.rectangle("codes", part)


def _decode(parts: Parts, part: Rectangle, grid: _Grid) -> torch.Tensor:
    import torch

    codes, scales = _codes(parts, part), parts.whole("scales").view(-1, *grid.scales)
    rows = torch.arange(part.start, part.stop)
    of_rows = scales.flatten(0, 1)[rows // grid.rows * grid.scales[0] + rows % grid.rows // grid.block[0]]
    size = grid.block[1]
    aligned = part.last // size * size if part.first % size == 0 else part.first
    blocks = range(part.first // size, aligned // size) if aligned > part.first else range(0)
    whole = codes[:, : len(blocks) * size].view(len(rows), len(blocks), size)
    whole.mul_(of_rows[:, blocks.start : blocks.stop, None])
    rest = torch.arange(aligned, part.last) // size  # parts of blocks, one scale for each element
    codes[:, len(blocks) * size :].mul_(of_rows[:, rest])
    return codes
