"""Hints about experts that are stored in another form."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from tests.hints.table import Trial, follows
from tests.models import MODELS, build, step


def two_forms(at: Trial) -> type:
    """A model with packed experts as the base, and a step of it with experts one by one."""
    kind, options = MODELS["mixtral"]
    model = build(kind, options)
    model.save_pretrained(at.tmp / "model", save_original_format=False)
    step(model).save_pretrained(at.tmp / "ft")
    return type(model)


@follows("layouts/way.py", "to store them alike, load each with transformers")
def experts_that_are_unrelated(at: Trial) -> None:
    kind = two_forms(at)
    path = at.tmp / "model" / "model.safetensors"
    noise = {
        name: torch.randn(one.shape) if "experts" in name else one for name, one in load_file(path).items()
    }
    save_file(noise, path, {"format": "pt"})
    at.refused("edit", at.tmp / "model", at.tmp / "ft", "-o", at.out)
    alike = [at.tmp / f"{name}-alike" for name in ("model", "ft")]
    for new in alike:
        folder = new.with_name(new.name.removesuffix("-alike"))
        kind.from_pretrained(folder).save_pretrained(new, save_original_format=False)
    at.loads("edit", *alike, "-o", at.out)


@follows("layouts/match.py", "download or copy it again")
def a_missing_expert(at: Trial) -> None:
    two_forms(at)
    path = at.tmp / "ft" / "model.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    del weights["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(weights, path, {"format": "pt"})
    at.refused("edit", at.tmp / "model", at.tmp / "ft", "-o", at.out)
    path.write_bytes(whole)
    at.loads("edit", at.tmp / "model", at.tmp / "ft", "-o", at.out)
