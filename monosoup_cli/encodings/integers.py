"""Integers with scales, as compressed-tensors stores them.

"pack-quantized" has `X.weight_packed` (out, words) of int32, in which the codes of a row follow each other
from the low bits on, `X.weight_scale`, and `X.weight_shape`, the shape of the matrix; "int-quantized" and
"naive-quantized" have `X.weight` of int8 and `X.weight_scale`. A scale is that of a group of columns, of a
row, or of the tensor. Asymmetric codes have a `X.weight_zero_point` for every scale, packed along its
columns where the codes are packed. `X.weight_g_idx` has the group of every column where groups are no
neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from monosoup_cli.encodings.codec import Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.encodings.facts import Left, check_shape, needed, stems
from monosoup_cli.encodings.packed import UNPACKING, by_groups, byte_table, unpacked
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.dtypes import integers_in, looked_up, number_in
from monosoup_cli.formats.header import FLOATING, TensorInfo
from monosoup_cli.sources.read import read_stored
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Integers", "PackedIntegers"]

PACKABLE = (4, 8, 2, 1)
"""The widths in bits of codes that no byte divides, the most frequent first."""


class PackedIntegers:
    """Several codes in an int32."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the `weight_packed` of int32, and refuse what belongs to one that is not there."""
        sizes, found = _said(source.files.config, "group_size"), {}
        said = _said(source.files.config, "num_bits")
        widths = sorted(PACKABLE, key=lambda bits: bits not in said)
        for stem, name in stems(tensors, ".weight_packed", ".weight_shape", ".weight_g_idx").items():
            codes = needed(tensors, source.path, f"{stem}.weight_packed", name, "I32")
            scales = needed(tensors, source.path, f"{stem}.weight_scale", name, *FLOATING)
            stored_shape = needed(tensors, source.path, f"{stem}.weight_shape", name, "I64", "I32")
            check_shape(source.path, stored_shape, (2,))
            rows, words = (*codes.shape, 0, 0)[:2]
            columns = _groups(scales) * next(iter(sizes), 0)
            if len(sizes) != 1 or _groups(scales) == 1:  # only then anything is read
                rows, columns = (_number(source, stored_shape, place) for place in (0, 1))
            check_shape(source.path, codes, *((rows, _words(columns, bits)) for bits in widths))
            bits = next(bits for bits in widths if _words(columns, bits) == words)
            names = {"codes": codes.name, "scales": scales.name, "shape": stored_shape.name}
            found[f"{stem}.weight"] = _encoded(stem, (rows, columns), names, tensors, source, bits)
        return found


class Integers:
    """One code in an int8."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the `weight` of int8 beside a `weight_scale`."""
        found = {}
        for stem in stems(tensors, ".weight_scale"):
            codes, scales = tensors.get(f"{stem}.weight"), tensors[f"{stem}.weight_scale"]
            if codes is not None and codes.dtype == "I8":
                rows, columns = (*codes.shape, 0, 0)[:2]
                check_shape(source.path, codes, (rows, columns))
                names = {"codes": codes.name, "scales": scales.name}
                found[codes.name] = _encoded(stem, (rows, columns), names, tensors, source, None)
        return found


def _encoded(
    stem: str,
    shape: tuple[int, int],
    names: dict[str, str],
    tensors: Mapping[str, TensorInfo],
    source: Source,
    bits: int | None,
) -> Encoded:
    """Describe a matrix of codes of so many bits; None for one code in an int8.

    Raises:
        CheckpointError: Scales, zero points or groups do not fit the codes.
    """
    rows, columns = shape
    scales = needed(tensors, source.path, names["scales"], names["codes"], *FLOATING)
    groups = _groups(scales)
    fitting: list[tuple[int, ...]] = [
        (rows, groups if columns % groups == 0 else 1),
        (rows,),
        (1, 1),
        (1,),
        (),
    ]
    check_shape(source.path, scales, *fitting)
    if f"{stem}.weight_zero_point" in tensors:
        names["zeros"] = f"{stem}.weight_zero_point"
        zeros = needed(tensors, source.path, names["zeros"], names["codes"], "I8", "I32")
        is_packed = bits is not None and zeros.dtype == "I32"
        check_shape(source.path, zeros, (_words(rows, bits or 8), groups) if is_packed else scales.shape)
    if bits is not None and f"{stem}.weight_g_idx" in tensors:
        names["groups"] = f"{stem}.weight_g_idx"
        check_shape(
            source.path, needed(tensors, source.path, names["groups"], names["codes"], "I32"), (columns,)
        )
    return Encoded(
        decoded_info(f"{stem}.weight", shape),
        names,
        partial(_decode, roles=frozenset(names), size=columns // groups, bits=bits, path=source.path),
        held=UNPACKING,
        words=f"int{bits or 8}",
    )


def _decode(
    parts: Parts, part: Rectangle, *, roles: frozenset[str], size: int, bits: int | None, path: str
) -> torch.Tensor:
    if bits is None:
        start = part.start * parts.info("codes").shape[1] + part.first
        values = parts.values("codes", start, start + part.shape[0] * part.shape[1]).view(part.shape)
    else:
        values = unpacked(parts, part, _table(bits), parts.info("codes").shape[1] * 32 // bits)
    groups = _group_of_columns(parts, part, path) if "groups" in roles else None
    for role in ("zeros", "scales"):
        if role in roles:
            scales = _of_rows(parts, part, role, bits)
            pieces = (
                by_groups(values, scales, part, size) if groups is None else [(values, scales[:, groups])]
            )
            for piece, of_piece in pieces:
                piece.mul_(of_piece) if role == "scales" else piece.sub_(of_piece)
    return values


def _of_rows(parts: Parts, part: Rectangle, role: str, bits: int | None) -> torch.Tensor:
    """The scales or zero points of some rows, or the one of the tensor: (rows or 1, groups)."""
    info = parts.info(role)
    if bits is not None and info.dtype == "I32":
        return _unpacked_rows(parts, part, role, bits)
    if info.elements == 1:
        return parts.whole(role).view(1, 1)
    groups = _groups(info)
    return parts.values(role, part.start * groups, part.stop * groups).view(-1, groups)


def _unpacked_rows(parts: Parts, part: Rectangle, role: str, bits: int) -> torch.Tensor:
    """Rows of a matrix that is packed along its columns."""
    in_word, groups = 32 // bits, parts.info(role).shape[1]
    first, last = part.start // in_word, -(-part.stop // in_word)
    words = integers_in(memoryview(parts.stored(role, first * groups, last * groups)), 8)
    values = looked_up(words.view(last - first, groups, 4), _table(bits)).flatten(2)
    start = part.start - first * in_word
    return values.transpose(1, 2).flatten(0, 1)[start : start + part.shape[0]]


def _group_of_columns(parts: Parts, part: Rectangle, path: str) -> torch.Tensor | None:
    """The group of every column; None where groups are neighbours, which is stored as -1."""
    info, count = parts.info("groups"), _groups(parts.info("scales"))
    groups = integers_in(memoryview(parts.stored("groups", 0, info.elements)), 32)
    if groups.min() < 0:
        return None
    if groups.max() >= count:
        raise CheckpointError(
            "columns of groups without scales",
            path=path,
            tensor=info.name,
            expected=f"groups below {count}",
            found=int(groups.max()),
        )
    return groups[part.first : part.last]


def _table(bits: int) -> torch.Tensor:
    return byte_table(tuple(float(code - (1 << bits - 1)) for code in range(1 << bits)))


def _words(count: int, bits: int) -> int:
    """How many int32 hold so many codes."""
    return -(-count * bits // 32)


def _groups(scales: TensorInfo) -> int:
    """How many groups of columns have scales of their own."""
    return max(scales.shape[1], 1) if len(scales.shape) > 1 else 1


def _number(source: Source, info: TensorInfo, place: int) -> int:
    """One element of a small tensor of integers."""
    return int(number_in(read_stored(source, info.name, place, place + 1), info.dtype))


def _said(config: Mapping[str, Any] | None, key: str) -> set[int]:
    """The values that a setting of weights has in the groups of a configuration."""
    settings = (config or {}).get("quantization_config")
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    schemes = groups.values() if isinstance(groups, dict) else ()
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    values = [one.get(key) for one in weights if isinstance(one, dict)]
    return {value for value in values if type(value) is int and value > 0}
