"""Refuse checkpoints of codes that no codec decodes: differences between codes mean nothing.

The tensors decide, by their dtypes and shapes and by what stands beside them. config.json names the method,
but may be left from before weights were decoded. The integers of ordinary models are counters, masks,
positions and tables of indices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.encodings.facts import Left
from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.header import BITS, FLOATING, TensorInfo
from monosoup_cli.sources.files import Files, metadata_of

__all__ = ["check_codes"]

SETTINGS = ("quantization", "quantization_config", "compression_config")
"""The keys of config.json that say how a model is quantised: of MLX, transformers and old sparseml."""
METHODS = {
    "GPTQ or AWQ": r"qweight|qzeros|g_idx",
    "bitsandbytes": r"absmax|quant_map|quant_state(?:\..+)?|SCB",
    "quanto": r"weight\._(?:data|scale|shift)(?:\._data)?",
    "torchao": r"_\w+_qdata",
    "": r"scale_weight|scaled_fp8|weight_scale|weight_scale_inv|weight_packed|\w+_proj_(?:blocks|scales)",
}
"""The ends of names that only these methods write, also where they store codes as floats."""
PAIRS = {
    "HQQ": ("W_q", "zero"),
    "SpQR": ("dense_weights", "row_offsets"),
    "VPTQ": ("indices", "centroids.weight"),
    "a sparse format": ("compressed", "bitmask"),
    "QuIP#": ("Qidxs", "SU"),
    "EXL3": ("trellis", "suh"),
}
"""Parts of one layer, by the methods that store them so."""
WRITTEN = re.compile(rf"(?:^|\.)(?:{'|'.join(f'({names})' for names in METHODS.values())})$")
LEAVES = re.compile(rf"(?:{'|'.join((*METHODS.values(), '_data|_scale|_shift'))})$")
"""What the last parts of such names are, but for those of a quant_state."""
SCALES = re.compile(r"scal|zero|biases|absmax|codebook|centroid|^[sz]$|_(?:sf|lut)$")
"""What the names of scales, offsets and codebooks have in their last part."""
INDICES = ("BOOL", "I64", "U64")
"""The dtypes that masks and indices have, and codes have not."""
CODES = BITS.keys() - {*FLOATING, *INDICES, "C64"}
CAST = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""The dtypes that may be of plain numbers too, which somebody cast."""
OF_A_MODEL = 2000
"""In a file of fewer bytes, what most of them are says nothing."""
MAX_SCALES = 64
"""With how many of one module's scales codes are compared; a layer has a few."""
UNQUANTISED = "edit the checkpoint that it was quantised from, and quantise the result"
DECODED_BY_MLX = f"{UNQUANTISED}; or decode it: mlx_lm.convert --hf-path OLD --mlx-path NEW --dequantize"


def check_codes(tensors: Left, files: Files, *, is_decoded: bool) -> Sequence[str]:
    """Look for signs that tensors are codes.

    Args:
        tensors: The tensors that are left when all known codes are decoded.
        files: The files that they are from.
        is_decoded: Whether any were decoded.

    Returns:
        What the user should know, in words.

    Raises:
        CheckpointError: The tensors are codes.
    """
    settings = _settings(files.config or {})
    keys = " and ".join(settings)
    for name, method, sign in _signs(tensors, is_configured=bool(settings), is_decoded=is_decoded):
        by = _method(settings, files) or method
        sign = f"config.json has {keys}" if keys else sign
        raise CheckpointError(
            f"the checkpoint is quantised{by and f' by {by}'}{sign and f' ({sign})'}: differences between"
            " codes mean nothing",
            path=files.place.source,
            tensor=name,
            hint=DECODED_BY_MLX if by == "MLX" else UNQUANTISED,
        )
    if not settings or is_decoded:
        return []
    return [
        f"config.json has {keys}, but the weights are not quantised; remove {keys} from the output's"
        " config.json before loading it"
    ]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration, or one of its parts, says about quantisation, by its key."""
    parts = {"": config} | {f"{key}.": part for key, part in config.items() if isinstance(part, dict)}
    return {
        f"{prefix}{key}": part[key]
        for prefix, part in parts.items()
        if prefix.removesuffix(".") not in SETTINGS
        for key in SETTINGS
        if part.get(key)
    }


def _method(settings: Mapping[str, Any], files: Files) -> str:
    """The method that made the codes, as config.json or a header says."""
    methods = [one.get("quant_method") for one in settings.values() if isinstance(one, dict)]
    is_mlx = "quantization" in settings or metadata_of(files).get("format") == "mlx"
    return next((crop(one) for one in methods if isinstance(one, str)), "MLX" if is_mlx else "")


def _signs(tensors: Left, *, is_configured: bool, is_decoded: bool) -> Iterator[tuple[str, str, str]]:
    """Find codes: a tensor, the method that gives it its name, and what else shows that it is codes."""
    for method, (one, other) in PAIRS.items():
        for name in tensors if one in tensors.leaves else ():
            if name.endswith(f".{one}") and f"{name.removesuffix(one)}{other}" in tensors:
                yield name, method, f"{one} beside {other}"
    may_be_written = any(LEAVES.match(leaf) for leaf in tensors.leaves)
    for name in tensors if may_be_written or any("quant_state." in name for name in tensors) else ():
        if written := WRITTEN.search(name):
            assert written.lastindex is not None
            yield name, list(METHODS)[written.lastindex - 1], ""
    codes = [tensor for tensor in tensors.values() if _may_be_codes(tensor)]
    scales = defaultdict(list)
    for tensor in tensors.values() if codes else ():
        module, leaf = _split(tensor.name)
        if SCALES.search(leaf) and (tensor.dtype in FLOATING or tensor.dtype in CODES):
            scales[module].append(tensor)
    for tensor in codes:
        for scale in (*scales[_split(tensor.name)[0]][:MAX_SCALES], *scales[tensor.name]):
            if _is_scale_of(scale, tensor):
                yield tensor.name, "", f"{tensor.dtype} with scales in {crop(repr(scale.name))}"
    numbers = [tensor for tensor in codes if tensor.dtype not in CAST]
    for tensor in numbers:
        if _split(tensor.name)[1] == "weight":
            yield tensor.name, "", f"{tensor.dtype} in place of weights"
    if is_configured and codes:
        yield codes[0].name, "", ""
    count = sum(tensor.nbytes for tensor in numbers)  # several codes may be packed in a number
    if count <= OF_A_MODEL or is_decoded:
        return
    if count > sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype in (*FLOATING, *CAST)):
        yield max(numbers, key=lambda tensor: tensor.elements).name, "", "most of its numbers are integers"


def _may_be_codes(tensor: TensorInfo) -> bool:
    """Whether a tensor has the dtype and the shape of codes.

    Masks and positions are the same for every element of a batch and every head, so they start with a 1.
    """
    return tensor.dtype in CODES and max(tensor.shape[:-1][:2], default=1) > 1


def _is_scale_of(scale: TensorInfo, codes: TensorInfo) -> bool:
    """Whether a tensor of the same module has the name or the shape that scales of these codes have."""
    if scale.dtype == codes.dtype or scale.elements >= codes.elements:
        return False
    (module, leaf), own = _split(scale.name), _split(codes.name)[1]
    if module == codes.name or own in leaf:
        return True
    ends = [(scale.shape[end], codes.shape[end]) for end in (0, -1) if scale.shape]
    ends = [(one, of) for one, of in ends if one > 1 and of > 0]
    is_grid = len(scale.shape) > 1 and len(ends) == 2 and all(of % one == 0 for one, of in ends)
    return is_grid or any(one % of == 0 for one, of in ends if of > 1)


def _split(name: str) -> tuple[str, str]:
    """The module of a tensor, and what the module calls it."""
    module, _, leaf = name.rpartition(".")
    return module, leaf
