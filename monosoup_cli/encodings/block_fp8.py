"""fp8 codes with a scale for every block of a matrix, as DeepSeek-V3 and its kin are published.

`X.weight` has the codes (e4m3) and `X.weight_scale_inv` one float32 for every 128 × 128 of them; the block's
size is in config.json. A decoded element is its code times its scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from monosoup_cli.encodings.codec import Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["BlockFp8"]

SCALE = "_scale_inv"
BLOCK = (128, 128)
"""The size of blocks where config.json does not say."""


class BlockFp8:
    """fp8 with a scale for every block of rows and columns."""

    def find(
        self, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], path: str
    ) -> Mapping[str, Encoded]:
        """Find the matrices of e4m3 codes that have a `_scale_inv` beside them."""
        settings = config.get("quantization_config")
        size = settings.get("weight_block_size") if isinstance(settings, dict) else None
        rows, columns = size if isinstance(size, list) and len(size) == 2 else BLOCK
        found = {}
        for name, scale in tensors.items():
            weight = name.removesuffix(SCALE)
            if weight == name:
                continue
            codes = tensors.get(weight)
            if codes is None:
                raise CheckpointError("scales without their codes", path=path, tensor=name)
            wanted = [-(-codes.shape[0] // rows), -(-codes.shape[1] // columns)]
            if list(scale.shape) != wanted:
                raise CheckpointError(
                    f"the scales do not fit the codes {list(codes.shape)} in blocks of {rows} × {columns}",
                    path=path,
                    tensor=name,
                    expected=wanted,
                    found=list(scale.shape),
                )
            found[weight] = Encoded(
                decoded_info(weight, codes.shape, "BF16"),
                {"codes": weight, "scales": name},
                partial(_decode, block=(rows, columns)),
                held=4 * scale.elements,
            )
        return found


def _decode(parts: Parts, part: Rectangle, block: tuple[int, int]) -> torch.Tensor:
    import torch

    width = parts.info("codes").shape[-1]
    start = part.start * width + part.first
    codes = parts.values("codes", start, start + part.shape[0] * part.shape[1]).view(part.shape)
    scales = parts.whole("scales")
    rows = torch.arange(part.start, part.stop) // block[0]
    columns = torch.arange(part.first, part.last) // block[1]
    return codes.mul_(scales[rows][:, columns])
