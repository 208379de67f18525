"""Hints about dense weights that are stored in another form."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from tests.hints.table import Trial, follows
from tests.models import MODELS, build, step


@follows("layouts/way.py", "--exclude leaves such tensors as they are")
def gate_and_up_that_are_unrelated(at: Trial) -> None:
    mlp = "model.layers.{}.mlp"
    weights = {mlp.format(n) + ".down_proj.weight": torch.randn(16, 24) for n in range(2)}
    fused = {mlp.format(n) + ".gate_up_proj.weight": torch.randn(48, 16) for n in range(2)}
    apart = {
        f"{mlp.format(n)}.{part}.weight": torch.randn(24, 16)
        for n in range(2)
        for part in ("gate_proj", "up_proj")
    }
    base, tuned = at.tmp / "base.safetensors", at.tmp / "tuned.safetensors"
    save_file({**weights, **apart}, base)
    save_file({**{name: one + 0.01 for name, one in weights.items()}, **fused}, tuned)
    at.refused("edit", base, tuned, "-o", at.out)
    at.works("edit", base, tuned, "-o", at.out, "--exclude", "*gate_up_proj*")


@follows("pipeline/kinship.py", "are as large as the weights, by")
def one_kind_that_is_unrelated(at: Trial) -> None:
    """The name is a pattern that --exclude takes."""
    made = torch.Generator().manual_seed(0)
    for path in (at.base, at.finetuned):
        unlike = {f"layers.{n}.qkv.weight": torch.randn(8, 8, generator=made) for n in range(2)}
        save_file({f"layers.{n}.out.weight": torch.ones(8, 8) for n in range(3)} | unlike, path)
    at.noted(*at.edit)
    pattern = at.blanks[0].split("'")[1]
    assert "as large as the weights" not in at.loads(*at.edit, "--exclude", pattern, "--overwrite").err


@follows("layouts/fused.py", "give the folder that has it")
def fused_weights_without_a_configuration(at: Trial) -> None:
    kind, options = MODELS["qwen3-moe"]
    model = build(kind, options)
    for name in ("base", "ft"):
        model.save_pretrained(at.tmp / name, save_original_format=False)
        step(model)
    files = [at.tmp / name / "model.safetensors" for name in ("base", "ft")]
    at.refused("edit", *files, "-o", at.out, "--split-fused")
    at.loads("edit", at.tmp / "base", at.tmp / "ft", "-o", at.out, "--split-fused")
