"""Hints about checkpoints that libraries and merges leave behind."""

from __future__ import annotations

import re
import shlex
import shutil

import torch
from safetensors.torch import load_file, save_file

from tests import peft_adapters
from tests.hints.table import Trial, follows


@follows("pipeline/notices.py", "is an adapter, and carried but not merged")
def an_adapter_beside_the_model(at: Trial) -> None:
    """As verl's merger writes it: the model is the base itself, and what was trained is in the adapter."""
    made = peft_adapters.make("linear", at.tmp)
    model = at.tmp / "a model"
    shutil.copytree(made.base, model)
    shutil.copytree(made.adapter, model / "lora_adapter")
    at.noted("edit", made.base, model, "-o", at.out)
    (place,) = re.findall("pass (.*) as FINETUNED", at.hint)
    result = at.loads("edit", made.base, *shlex.split(place), "-o", at.out, "--overwrite")
    assert "nothing was edited" not in result.err


@follows("tensors/plan.py", "rows are other places of the image there")
def positions_in_two_sizes_of_an_image(at: Trial) -> None:
    for path, rows in ((at.base, 17), (at.finetuned, 37)):
        save_file({"w": torch.randn(4, 4), "pos_embed": torch.randn(rows, 4)}, path)
    at.refused(*at.edit, "--on-mismatch", "overlap")
    at.loads(*at.edit, "--on-mismatch", "overlap", *at.options(), "pos_embed")
    assert torch.equal(
        load_file(at.out / "model.safetensors")["pos_embed"], load_file(at.finetuned)["pos_embed"]
    )
