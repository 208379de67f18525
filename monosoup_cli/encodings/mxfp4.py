"""mxfp4: floats of four bits, 32 of which share an exponent.

In gpt-oss, `X_blocks` (experts, out, groups, 16) has two codes (e2m1) in a byte, the first in the low bits,
and `X_scales` (experts, out, groups) the exponents, with a bias of 127. The decoded tensor `X` is
transposed: (experts, in, out), as transformers has it. compressed-tensors ("mxfp4-pack-quantized") stores
matrices as they are: `X.weight_packed` (out, in / 2) and `X.weight_scale` (out, in / 32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from monosoup_cli.encodings.codec import MAX_ELEMENTS, Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.encodings.facts import Left, check_shape, columns_of, needed, stems
from monosoup_cli.encodings.packed import E2M1, UNPACKING, by_groups, byte_table, unpacked
from monosoup_cli.formats.dtypes import as_float32, looked_up
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Mxfp4", "Mxfp4Experts"]

GROUP = 32
EXPONENTS = ("U8", "F8_E8M0")


class Mxfp4Experts:
    """Stacks of experts, transposed, as gpt-oss has them."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the pairs of `_blocks` and `_scales` of bytes."""
        of_bytes = Left({name: one for name, one in tensors.items() if one.dtype in EXPONENTS})
        found = {}
        for stem, name in stems(of_bytes, "_blocks", "_scales").items():
            blocks = needed(of_bytes, source.path, f"{stem}_blocks", name)
            scales = needed(of_bytes, source.path, f"{stem}_scales", name)
            experts, columns, groups = (*blocks.shape, 0, 0, 0)[:3]
            check_shape(source.path, blocks, (experts, columns, groups, GROUP // 2))
            check_shape(source.path, scales, (experts, columns, groups))
            found[stem] = Encoded(
                decoded_info(stem, (experts, groups * GROUP, columns)),
                {"codes": blocks.name, "scales": scales.name},
                _decode_experts,
                held=UNPACKING + 4 * MAX_ELEMENTS + (blocks.elements + scales.elements) // max(experts, 1),
                words="mxfp4",
                has_columns=True,
            )
        return found


def _decode_experts(parts: Parts, part: Rectangle) -> torch.Tensor:
    """Decode what is asked of one expert after the other, whose codes are held."""
    import torch

    rows = parts.info("scales").shape[-1] * GROUP
    exponents = as_float32(bytearray(range(256)), "F8_E8M0")
    result = torch.empty(part.shape)
    for expert in range(part.start // rows, -(-part.stop // rows)):
        start = expert * rows
        first, last = max(part.start - start, 0), min(part.stop - start, rows)
        codes = _of_expert(parts, "codes", expert)[part.first : part.last, first // 2 : -(-last // 2)]
        values = looked_up(codes, byte_table(E2M1)).flatten(1)[:, first % 2 : first % 2 + last - first]
        group = first // GROUP
        scales = _of_expert(parts, "scales", expert)[part.first : part.last, group : -(-last // GROUP)]
        moved = Rectangle(0, len(values), first - group * GROUP, last - group * GROUP)
        for piece, of_piece in by_groups(values, looked_up(scales, exponents), moved, GROUP):
            piece.mul_(of_piece)
        result[start + first - part.start : start + last - part.start] = values.t()
    return result


def _of_expert(parts: Parts, role: str, expert: int) -> torch.Tensor:
    """The bytes of one expert: (columns of the decoded matrix, bytes)."""
    info = parts.info(role)
    size = info.elements // info.shape[0]
    return parts.slab(role, expert * size, (expert + 1) * size).view(info.shape[1], -1)


class Mxfp4:
    """Matrices as compressed-tensors has them."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the `weight_packed` of bytes whose scales are exponents."""
        found = {}
        for stem in stems(tensors, ".weight_packed"):
            codes, scales = tensors[f"{stem}.weight_packed"], tensors.get(f"{stem}.weight_scale")
            if codes.dtype != "U8" or scales is None or scales.dtype not in EXPONENTS:
                continue
            shape = (*codes.shape[:-1], columns_of(source.path, codes, 2, GROUP))
            check_shape(source.path, scales, (*shape[:-1], shape[-1] // GROUP))
            found[f"{stem}.weight"] = Encoded(
                decoded_info(f"{stem}.weight", shape),
                {"codes": codes.name, "scales": scales.name},
                _decode,
                held=UNPACKING,
                words="mxfp4",
            )
        return found


def _decode(parts: Parts, part: Rectangle) -> torch.Tensor:
    info = parts.info("scales")
    groups = info.shape[-1]
    values = unpacked(parts, part, byte_table(E2M1), groups * GROUP)
    scales = parts.values("scales", part.start * groups, part.stop * groups, "F8_E8M0").view(-1, groups)
    for piece, of_piece in by_groups(values, scales, part, GROUP):
        piece.mul_(of_piece)
    return values
