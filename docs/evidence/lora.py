"""Sentiment with LoRA adapters: the same base and data as `text`; the base and its head are frozen."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from docs.evidence.study import Recipe
from docs.evidence.text import Scorer, SentenceClassifier, make_base, train

__all__ = ["Scorer", "fine_tune", "make_base"]

RECIPES = {"gentle": Recipe(5e-4, 2), "usual": Recipe(2e-3, 3), "overtrained": Recipe(5e-3, 6)}

LAYERS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def fine_tune(seed: int, recipe: str, base: Path, path: Path) -> None:
    """An adapter of rank 8 in the folder beside `path`, and what it makes of the base in `path`."""
    model = SentenceClassifier()
    model.load_state_dict(load_file(base))
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS))
    train(adapted, seed, RECIPES[recipe])
    adapted.save_pretrained(path.with_suffix(""))
    save_file(adapted.merge_and_unload().state_dict(), path)
