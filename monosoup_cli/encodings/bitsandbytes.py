"""The 4-bit and 8-bit codes of bitsandbytes.

4 bits (nf4 or fp4): `X` has two codes in a byte, the first in the high bits, of the elements in order,
whatever its shape and dtype in the file. `X.quant_map` says what the codes stand for, `X.absmax` has a
scale for every block of elements, and `X.quant_state.bitsandbytes__nf4` the shape and the size of blocks as
JSON. Scales may be codes themselves: then `X.nested_quant_map` says what they stand for, `X.nested_absmax`
has a scale for every block of these, and the JSON an offset that is added. 8 bits: `X.weight` of int8, and
in `X.SCB` the largest magnitude of every row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from monosoup_cli.encodings.codec import Encoded, Parts, Rectangle, decoded_info
from monosoup_cli.encodings.facts import Left, check_shape, needed, stems
from monosoup_cli.encodings.packed import UNPACKING, byte_table
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.dtypes import number_in
from monosoup_cli.formats.header import TensorInfo, parse_json
from monosoup_cli.sources.read import read_stored
from monosoup_cli.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["Bitsandbytes4", "Bitsandbytes8"]

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
NESTED = (".nested_absmax", ".nested_quant_map")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
PER_CODE = 7.874015718698502e-3
"""What the library multiplies by in place of dividing by 127."""
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""The models with weights (in, out), which the library stores as (out, in)."""


@dataclass(frozen=True)
class _State:
    """What a quant_state says.

    Attributes:
        shape: The shape of the tensor.
        block: How many elements share a scale.
        nested_block: How many scales share a scale; None where they are no codes.
        offset: What is added to scales that are codes.
    """

    shape: tuple[int, ...]
    block: int
    nested_block: int | None
    offset: float


class Bitsandbytes4:
    """nf4 and fp4."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the tensors with a quant_state, and refuse what belongs to one that is not there."""
        path, found = source.path, {}
        for name, part in stems(tensors, *STATES, ".absmax", ".quant_map", *NESTED).items():
            _check_orientation(source, part)
            ending = next((end for end in STATES if f"{name}{end}" in tensors), STATES[0])
            state_name = f"{name}{ending}"
            state = _state(source, needed(tensors, path, state_name, part, "U8"))
            codes = needed(tensors, path, name, part)
            elements = math.prod(state.shape)
            blocks = -(-elements // state.block)
            if codes.nbytes != -(-elements // 2):
                raise CheckpointError(
                    f"the codes do not fit the shape {list(state.shape)}",
                    path=path,
                    tensor=name,
                    expected=f"{-(-elements // 2):,} bytes",
                    found=f"{codes.nbytes:,}",
                )
            names = {"codes": name, "state": state_name}
            wanted = [("map", "quant_map", 16), ("scales", "absmax", blocks)]
            if state.nested_block:
                wanted += [
                    ("nested map", "nested_quant_map", 256),
                    ("nested scales", "nested_absmax", -(-blocks // state.nested_block)),
                ]
            for role, end, size in wanted:
                dtype = "U8" if role == "scales" and state.nested_block else "F32"
                check_shape(path, needed(tensors, path, f"{name}.{end}", part, dtype), (size,))
                names[role] = f"{name}.{end}"
            found[name] = Encoded(
                decoded_info(name, state.shape),
                names,
                partial(_decode, state=state),
                held=UNPACKING + 4 * -(-blocks // (state.nested_block or blocks)),
                words=f"bitsandbytes' {ending[-3:]}",
            )
        return found


def _state(source: Source, info: TensorInfo) -> _State:
    """Read a quant_state.

    Raises:
        CheckpointError: It is no JSON, or lacks what is needed.
    """
    text = bytes(read_stored(source, info.name, 0, info.elements))
    found: Any = parse_json(text, source.path, f"tensor {info.name!r}", is_strict=False)
    said: dict[str, Any] = found if isinstance(found, dict) else {}
    shape, block = said.get("shape"), said.get("blocksize")
    nested_block, offset = said.get("nested_blocksize"), said.get("nested_offset")
    is_shape = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    are_sizes = block in BLOCK_SIZES and nested_block in (None, *BLOCK_SIZES)
    if not (is_shape and are_sizes and (nested_block is None or isinstance(offset, int | float))):
        raise CheckpointError(
            "the quant_state has no shape, or sizes of blocks that bitsandbytes does not have",
            path=source.path,
            tensor=info.name,
            found=repr(found)[:120],
        )
    return _State(tuple(said["shape"]), said["blocksize"], nested_block, offset or 0.0)


def _decode(parts: Parts, part: Rectangle, state: _State) -> torch.Tensor:
    """Decode the blocks that the rectangle is in. They may begin and end in the middle of rows."""
    width, block = (1, *state.shape)[-1], state.block
    start = part.start * width + part.first
    stop = start + part.shape[0] * part.shape[1]
    first, last = start // block, -(-stop // block)
    begin, end = first * block, min(last * block, math.prod(state.shape))
    table = byte_table(tuple(parts.whole("map").tolist()), is_high_first=True)
    values, scales = parts.unpacked("codes", begin, end, table), _scales(parts, first, last, state)
    whole = len(values) // block
    values[: whole * block].view(whole, block).mul_(scales[:whole, None])
    values[whole * block :].mul_(scales[-1])
    return values[start - begin : stop - begin].view(part.shape)


def _scales(parts: Parts, first: int, last: int, state: _State) -> torch.Tensor:
    """The scales of some blocks."""
    import torch

    if not state.nested_block:
        return parts.values("scales", first, last)
    scales = parts.unpacked("scales", first, last, parts.whole("nested map")[:, None])
    scales.mul_(parts.whole("nested scales")[torch.arange(first, last) // state.nested_block])
    return scales.add_(state.offset)


class Bitsandbytes8:
    """LLM.int8()."""

    def find(self, tensors: Left, source: Source) -> Mapping[str, Encoded]:
        """Find the tensors `SCB`, each of which belongs to a `weight`."""
        found = {}
        for stem, name in stems(tensors, ".SCB").items():
            _check_orientation(source, name)
            scales = needed(tensors, source.path, name, name, "F32")
            codes = needed(tensors, source.path, f"{stem}.weight", name, "I8")
            rows, columns = (*codes.shape, 0, 0)[:2]
            check_shape(source.path, codes, (rows, columns))
            check_shape(source.path, scales, (rows,))
            names = {"codes": codes.name, "scales": name}
            layout = tensors.get(f"{stem}.weight_format")
            if layout is not None:
                check_shape(source.path, layout, ())
                number = int(number_in(read_stored(source, layout.name, 0, 1), layout.dtype))
                if number:
                    raise CheckpointError(
                        "codes in an order of a card's, which bitsandbytes no longer reads",
                        path=source.path,
                        tensor=layout.name,
                        expected="0, rows",
                        found=number,
                    )
                names["format"] = layout.name
            found[codes.name] = Encoded(
                decoded_info(codes.name, codes.shape),
                names,
                _decode_rows,
                held=UNPACKING,
                words="bitsandbytes' int8",
            )
        return found


def _decode_rows(parts: Parts, part: Rectangle) -> torch.Tensor:
    start = part.start * parts.info("codes").shape[1] + part.first
    codes = parts.values("codes", start, start + part.shape[0] * part.shape[1]).view(part.shape)
    return codes.mul_(parts.values("scales", part.start, part.stop)[:, None]).mul_(PER_CODE)


def _check_orientation(source: Source, name: str) -> None:
    """Raise CheckpointError for models whose weights the library transposes before it encodes them."""
    model = (source.files.config or {}).get("model_type")
    if model in TRANSPOSED:
        raise CheckpointError(
            f"bitsandbytes has transposed the weights of this model ({model}), which cannot be undone here",
            path=source.path,
            tensor=name,
        )
