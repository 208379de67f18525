"""The codecs, and checkpoints as they are when they are decoded."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace

from monosoup_cli.encodings.bitsandbytes import Bitsandbytes4, Bitsandbytes8
from monosoup_cli.encodings.codec import Codec, Encoded
from monosoup_cli.encodings.evidence import check_codes
from monosoup_cli.encodings.facts import Left, check_strays
from monosoup_cli.encodings.fp8 import Fp8
from monosoup_cli.encodings.integers import Integers, PackedIntegers
from monosoup_cli.encodings.mxfp4 import Mxfp4, Mxfp4Experts
from monosoup_cli.encodings.nvfp4 import Nvfp4
from monosoup_cli.sources.derived import Derived, Made
from monosoup_cli.sources.files import Codes
from monosoup_cli.sources.source import Source

__all__ = ["decoded"]

CODECS: tuple[Codec, ...] = (
    Mxfp4Experts(),
    Mxfp4(),
    Nvfp4(),
    PackedIntegers(),
    Integers(),
    Bitsandbytes4(),
    Bitsandbytes8(),
    Fp8(),
)
"""Each sees what the ones before it left. Fp8 is the last: what are scales to others are floats to it."""

OF_ACTIVATIONS = re.compile(
    r"(^|[._])(input_scale(_ub)?|input_global_scale|(input|output|activation)_scale|scale_input|qscale_act"
    r"|(input|output)_zero_point|[qkv]_scale|kv_cache_scaling_factor|scaled_fp8|comfy_quant)$"
)
"""The names of what goes along with codes and not into weights: scales of activations and caches, markers."""


def decoded(source: Source) -> Source:
    """Read a checkpoint with the tensors that its codes stand for.

    Raises:
        CheckpointError: Codes and scales do not fit each other, or tensors are codes that no codec decodes.
    """
    found: dict[str, Encoded] = {}
    left = Left(source.tensors)
    for codec in CODECS:
        new = codec.find(left, source)
        found |= new
        for part in (part for encoded in new.values() for part in encoded.parts):
            left.pop(part, None)  # tensors may share a part
    with_scales = {name for name, encoded in found.items() if len(encoded.parts) > 1}
    modules = {name[: dot.start()] for name in with_scales for dot in re.finditer(r"\.|$", name)}
    of_activations = {leaf for leaf in left.leaves if OF_ACTIVATIONS.search(leaf)}  # none of them has a dot
    beside = {
        name
        for name in (source.tensors if of_activations else ())
        if name.rpartition(".")[2] in of_activations and _is_beside(name, modules)
    }
    for name in beside:
        left.pop(name, None)
        found.pop(name, None)
    with_scales -= beside
    check_strays(left, with_scales, source.path)
    cast = found.keys() - with_scales
    plain = left
    if cast:
        plain = Left({name: one for name, one in source.tensors.items() if name in left or name in cast})
    notes = check_codes(plain, source.files, is_decoded=bool(with_scales))
    if not found and not notes:
        return source
    homes = {encoded.parts[0]: name for name, encoded in found.items()}
    tensors: dict[str, str | Made] = {}
    for name in source.tensors:  # in the order of the files
        if name in homes:
            tensors[homes[name]] = found[homes[name]]
        elif name in left:
            tensors[name] = name
    codes = {name: Codes(encoded.parts[0], encoded.words) for name, encoded in found.items()}
    files = replace(source.files, notes=(*source.files.notes, *notes), decoded=codes)
    return Derived(source, tensors, files)


def _is_beside(name: str, modules: Container[str]) -> bool:
    """Whether a tensor belongs to a module in which something is decoded, or marks the whole file."""
    module, _, _ = name.rpartition(".")
    return (
        module in modules or name in ("scaled_fp8", "comfy_quant") or OF_ACTIVATIONS.sub("", name) in modules
    )
