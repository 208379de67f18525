"""NVFP4: floats of four bits, 16 of which share a scale of eight bits, and a scale for the whole tensor.

ModelOpt stores `X.weight` (out, in / 2) with two codes (e2m1) in a byte, the first in the low bits,
`X.weight_scale` (out, in / 16) in e4m3, and `X.weight_scale_2`, which multiplies. In compressed-tensors
("nvfp4-pack-quantized") they are `X.weight_packed`, `X.weight_scale`, and `X.weight_global_scale`, which
divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from monosoup_cli.encodings.codec import Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.encodings.facts import Left, check_shape, columns_of, needed, stems
from monosoup_cli.encodings.packed import E2M1, UNPACKING, by_groups, byte_table, unpacked
from monosoup_cli.formats.header import FLOATING
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Nvfp4"]

GROUP = 16
PACKED = ".weight_packed"
FORMS = ((".weight", ".weight_scale_2", False), (PACKED, ".weight_global_scale", True))
"""The endings of the codes and of the scale of the whole tensor, and whether that one divides."""


class Nvfp4:
    """NVFP4 of ModelOpt and of compressed-tensors."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find bytes with scales, and a scale of the whole tensor, and refuse one without the other."""
        wholes = tuple(whole for _, whole, _ in FORMS)
        parts = Left(
            {name: one for name, one in tensors.items() if one.dtype == "U8" or name.endswith(wholes)}
        )
        found = {}
        for packed, whole, is_divided in FORMS:
            for stem, name in stems(parts, packed, whole).items():
                has_scales = f"{stem}.weight_scale" in tensors or packed == PACKED
                if f"{stem}{whole}" not in tensors and not has_scales:
                    continue
                codes = needed(tensors, source.path, f"{stem}{packed}", name, "U8")
                scales = needed(tensors, source.path, f"{stem}.weight_scale", name, "F8_E4M3")
                of_tensor = needed(tensors, source.path, f"{stem}{whole}", name, *FLOATING)
                shape = (*codes.shape[:-1], columns_of(source.path, codes, 2, GROUP))
                check_shape(source.path, scales, (*shape[:-1], shape[-1] // GROUP))
                check_shape(source.path, of_tensor, (), (1,))
                found[f"{stem}.weight"] = Encoded(
                    decoded_info(f"{stem}.weight", shape),
                    {"codes": codes.name, "scales": scales.name, "scale of the tensor": of_tensor.name},
                    partial(_decode, is_divided=is_divided),
                    held=UNPACKING,
                    words="NVFP4",
                )
        return found


def _decode(parts: Parts, part: Rectangle, *, is_divided: bool) -> torch.Tensor:
    groups = parts.info("scales").shape[-1]
    values = unpacked(parts, part, byte_table(E2M1), groups * GROUP)
    scales = parts.values("scales", part.start * groups, part.stop * groups).view(-1, groups)
    of_tensor = parts.whole("scale of the tensor")
    scales = scales / of_tensor if is_divided else scales * of_tensor
    for piece, of_piece in by_groups(values, scales, part, GROUP):
        piece.mul_(of_piece)
    return values
