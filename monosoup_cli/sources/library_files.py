"""The names that libraries and trainers give to files, where several rooms go by them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from monosoup_cli.formats.table import WEIGHTS

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CARD_NAME",
    "DENOISERS",
    "EVAL_RESULTS",
    "MAX_CARD_BYTES",
    "SHARD",
    "TRAINING_STATE",
    "is_training_state",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CARD_NAME = "README.md"
MAX_CARD_BYTES = 1 << 20
"""The longest model card that is read."""
EVAL_RESULTS = ".eval_results/monosoup.yaml"
"""Where the Hub reads the scores that `monosoup scores --into` writes."""
DENOISERS = ("transformer", "unet")
"""The parts of a diffusers pipeline that are usually fine-tuned."""
SHARD = re.compile(r"-\d{5,}-of-\d{5,}(?=\.|$)")
"""What the name of a shard has more than that of the whole."""
TRAINING_STATE = (
    *(f"{stem}{suffix}" for stem in ("optimizer", "scheduler", "lr_scheduler") for suffix in WEIGHTS),
    *(f"{stem}{suffix}" for stem in ("scaler", "training_args") for suffix in WEIGHTS),
    *("optimizer_[0-9]*", "scheduler_[0-9]*", "rng_state*", "random_states_*", "sampler*.bin"),
    *(f"*_optim_states{suffix}" for suffix in WEIGHTS),
)
"""Globs over the names of files that a trainer leaves beside the weights, in formats of weights."""


def is_training_state(name: str) -> bool:
    """Return whether a file has state of training instead of weights, by its name."""
    return any(fnmatchcase(name, glob) for glob in TRAINING_STATE)
