"""Refuse checkpoints of codes that no codec decodes: differences between codes mean nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import BITS, TensorInfo
from monosoup_cli.sources.files import Files

__all__ = ["check_codes"]

QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|absmax|quant_map|quant_state(\..+)?|SCB|scale_weight|scaled_fp8"
    r"|weight_scale|weight_scale_inv|weight_packed|\w+_proj_(blocks|scales))$"
)
"""The ends of tensor names that GPTQ, AWQ, bitsandbytes, fp8, compressed-tensors and mxfp4 write."""
QUANTISED_ON_LOADING = ("bitsandbytes", "torchao", "quanto", "hqq", "eetq", "fbgemm_fp8", "higgs")
"""The methods whose config may stand beside plain weights: transformers quantises them when it loads them."""
PLAIN_WEIGHTS = (
    "config.json has quantization_config, but the weights are not quantised: remove it from the output's"
    " config.json to load them as they are"
)
UNQUANTISED = "edit the checkpoint that it was quantised from, and quantise the result"


def check_codes(tensors: Mapping[str, TensorInfo], files: Files, *, is_decoded: bool) -> Sequence[str]:
    """Look for signs that tensors are codes.

    Args:
        tensors: The tensors that are left when all known codes are decoded.
        files: The files that they are from.
        is_decoded: Whether any were decoded.

    Returns:
        What the user should know, in words.

    Raises:
        CheckpointError: The tensors are codes, or config.json says so.
    """
    for name in tensors:
        if QUANTISED.search(name):
            raise _refusal(files, name)
    settings = (files.config or {}).get("quantization_config")
    if not settings or is_decoded:
        return []
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in QUANTISED_ON_LOADING:
        raise _refusal_of_config(files, method)
    codes = next((one for one in tensors.values() if BITS[one.dtype] <= 8), None)
    if codes is not None:
        raise _refusal(files, codes.name)
    return [PLAIN_WEIGHTS]


def _refusal(files: Files, tensor: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint is quantised: differences between codes mean nothing",
        path=files.place.source,
        tensor=tensor,
        hint=UNQUANTISED,
    )


def _refusal_of_config(files: Files, method: Any) -> CheckpointError:
    folder = files.place.folder
    path = files.place.source if folder is None else folder.shown(f"{files.place.inner}config.json")
    return CheckpointError(
        f"the checkpoint is quantised{f' by {method}' if isinstance(method, str) else ''} (config.json has"
        " quantization_config): differences between codes mean nothing",
        path=path,
        hint=UNQUANTISED,
    )
