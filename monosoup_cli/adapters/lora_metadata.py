"""The configuration that diffusers writes into the metadata of a LoRA file."""

from __future__ import annotations

import re
from typing import Any

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.header import parse_json
from monosoup_cli.sources.files import metadata_of
from monosoup_cli.sources.source import Source

__all__ = ["METADATA", "noted_config"]

METADATA = "lora_adapter_metadata"
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The initializations that leave the base unchanged."""
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
PLAIN = re.compile(r"\^?(\w|\\?\.|-){1,500}\$?")
"""Patterns that are fast to match with any name."""
MAX_PATTERNS = 4096


def noted_config(own: Source, part: str) -> dict[str, Any]:
    """Read the configuration of a part of the pipeline from the file's metadata.

    Returns:
        The configuration, with its alpha_pattern compiled; empty if there is none.

    Raises:
        CheckpointError: The configuration is malformed, or describes more than LoRA.
    """
    text = metadata_of(own.files).get(METADATA)
    if text is None:
        return {}
    noted = parse_json(text.encode(), own.path, METADATA, is_strict=False)
    if not isinstance(noted, dict):
        raise CheckpointError(f"{METADATA} is not a JSON object", path=own.path)
    prefix = f"{part}." if part else ""
    config = {name.removeprefix(prefix): value for name, value in noted.items() if name.startswith(prefix)}
    if not config:
        return {}
    variants = [name for name in VARIANTS if config.get(name)]
    if config.get("peft_type", "LORA") != "LORA":
        variants.append("peft_type")
    if config.get("init_lora_weights") not in INITIALISATIONS:
        variants.append("init_lora_weights")
    if variants:
        raise CheckpointError(
            f"{METADATA} describes more than LoRA",
            path=own.path,
            found=crop(f"{variants[0]} {config[variants[0]]!r}"),
            hint="merge it with the program that made it",
        )
    return {**config, "alpha_pattern": _compile(config.get("alpha_pattern") or {}, own.path)}


def _compile(patterns: Any, path: str) -> dict[re.Pattern[str], Any]:
    """Compile patterns as peft does, which matches them with the ends of module names."""
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise CheckpointError(
            f"alpha_pattern in {METADATA} is not a JSON object of at most {MAX_PATTERNS:,} entries", path=path
        )
    for pattern in patterns:
        if not PLAIN.fullmatch(pattern):
            raise CheckpointError(
                f"alpha_pattern in {METADATA} has a pattern that is not supported",
                path=path,
                expected="names of modules",
                found=crop(repr(pattern)),
            )
    return {re.compile(rf"(.*\.)?({pattern})$"): alpha for pattern, alpha in patterns.items()}
