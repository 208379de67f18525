"""The codecs, and checkpoints as they are when they are decoded."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from functools import lru_cache

from monosoup_cli.encodings.bitsandbytes import Bitsandbytes4, Bitsandbytes8
from monosoup_cli.encodings.codec import Codec, Encoded
from monosoup_cli.encodings.evidence import check_codes
from monosoup_cli.encodings.facts import check_strays
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
    left = dict(source.tensors)
    for codec in CODECS:
        new = codec.find(left, source)
        found |= new
        for part in (part for encoded in new.values() for part in encoded.parts):
            left.pop(part, None)  # tensors may share a part
    with_scales = {name for name, encoded in found.items() if len(encoded.parts) > 1}
    modules = {name[: dot.start()] for name in with_scales for dot in re.finditer(r"\.|$", name)}
    beside = {
        name
        for name in source.tensors
        if _is_of_activations(name.rpartition(".")[2]) and _is_beside(name, modules)
    }
    left = {name: info for name, info in left.items() if name not in beside}
    found = {name: encoded for name, encoded in found.items() if name not in beside}
    with_scales -= beside
    check_strays(left, with_scales, source.path)
    homes = {encoded.parts[0]: name for name, encoded in found.items()}
    tensors: dict[str, str | Made] = {}
    for name in source.tensors:  # in the order of the files
        if name in homes:
            tensors[homes[name]] = found[homes[name]]
        elif name in left:
            tensors[name] = name
    stored = source.tensors.items()
    rest = {name: info for name, info in stored if name in tensors and name not in with_scales}
    notes = check_codes(rest, source.files, is_decoded=bool(with_scales))
    if not found and not notes:
        return source
    codes = {name: Codes(encoded.parts[0], encoded.words) for name, encoded in found.items()}
    files = replace(source.files, notes=(*source.files.notes, *notes), decoded=codes)
    return Derived(source, tensors, files)


@lru_cache(maxsize=1 << 10)
def _is_of_activations(leaf: str) -> bool:
    """Whether the last part of a name is one of OF_ACTIVATIONS, of which none has a dot."""
    return OF_ACTIVATIONS.search(leaf) is not None


def _is_beside(name: str, modules: Container[str]) -> bool:
    """Whether a tensor belongs to a module in which something is decoded, or marks the whole file."""
    module, _, _ = name.rpartition(".")
    return (
        module in modules or name in ("scaled_fp8", "comfy_quant") or OF_ACTIVATIONS.sub("", name) in modules
    )
