"""Renames that are suggested: whoever follows the message has every tensor that could match."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

WIDTH = 8
TOWER = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight")


def tower(prefix, extra=(), layers=6):
    """The names of a stack of layers, in many layers as in few."""
    return [f"{prefix}{n}.{name}" for n in range(layers) for name in TOWER] + [*extra]


LLAVA_OLD = [
    *tower("language_model.model.layers.", ["language_model.model.embed_tokens.weight"]),
    "language_model.lm_head.weight",
    *tower("vision_tower.vision_model.encoder.layers.", layers=3),
    "multi_modal_projector.linear_1.weight",
]
LLAVA_NEW = [
    *tower("model.language_model.layers.", ["model.language_model.embed_tokens.weight"]),
    "lm_head.weight",
    *tower("model.vision_tower.vision_model.encoder.layers.", layers=3),
    "model.multi_modal_projector.linear_1.weight",
]
QWEN_OLD = [
    *tower("model.layers.", ["model.embed_tokens.weight"]),
    "lm_head.weight",
    *tower("visual.blocks.", ["visual.merger.mlp.0.weight"]),
]
QWEN_NEW = [
    *tower("model.language_model.layers.", ["model.language_model.embed_tokens.weight"]),
    "lm_head.weight",
    *tower("model.visual.blocks.", ["model.visual.merger.mlp.0.weight"]),
]
OMNI = [
    *tower("thinker.model.layers.", ["thinker.model.embed_tokens.weight"]),
    "thinker.lm_head.weight",
    *tower("thinker.visual.blocks.", ["thinker.visual.merger.mlp.0.weight"]),
]
HEAD_ONLY = [*LLAVA_NEW[:-5], "language_model.lm_head.weight", *LLAVA_NEW[-5:]]
HEAD_ONLY.remove("lm_head.weight")
INNER = [name.replace("self_attn", "attention") for name in LLAVA_NEW]


def with_unknown(names):
    """The same under names that no library has."""
    return [name.replace("language_model", "llm") for name in names]


RECOGNISED = {
    "llava, old base": (LLAVA_OLD, LLAVA_NEW),
    "llava, new base": (LLAVA_NEW, LLAVA_OLD),
    "qwen, old base": (QWEN_OLD, QWEN_NEW),
    "qwen, new base": (QWEN_NEW, QWEN_OLD),
    "the head alone": (HEAD_ONLY, LLAVA_NEW),
}
SITUATIONS = {
    **{name: tuple(map(with_unknown, names)) for name, names in RECOGNISED.items()},
    "qwen in omni": (OMNI, QWEN_NEW),
    "omni over qwen": (QWEN_OLD, OMNI),
    "two families": (
        LLAVA_OLD,
        [name.replace("vision_tower.vision_model.encoder", "eye") for name in LLAVA_NEW],
    ),
    "inside of every layer": (INNER, LLAVA_NEW),
    "the text model alone": (tower("transformer.h.", ["lm_head.weight"]), LLAVA_OLD),
}


def write(path, names, seed):
    """Every name in a layer has a shape of its own, and all layers have the same."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (WIDTH, 2 + number) for number, name in enumerate(TOWER)}
    tensors = {}
    for name in names:
        shape = next((shape for end, shape in shapes.items() if end.split(".")[-2] in name), (16, WIDTH))
        tensors[name] = torch.randn(shape, generator=generator)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("situation", RECOGNISED)
def test_where_parts_are_recognised_no_rename_is_needed(run, tmp_path, situation):
    base, finetuned = RECOGNISED[situation]
    paths = [write(tmp_path / "base.safetensors", base, 0), write(tmp_path / "ft.safetensors", finetuned, 1)]
    result = run("edit", *paths, "-o", tmp_path / "out.safetensors")
    assert result.code == 0
    assert "--rename" not in result.err
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert {layer["action"] for layer in report["layers"]} == {"edited"}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("command", ["edit", "soup"])
def test_after_the_suggested_renames_nothing_that_could_match_is_left(run, tmp_path, situation, command):
    base, finetuned = SITUATIONS[situation]
    paths = [write(tmp_path / "base.safetensors", base, 0), write(tmp_path / "ft.safetensors", finetuned, 1)]
    words = ("edit", *paths) if command == "edit" else ("soup", *reversed(paths))
    words = (*words, "-o", tmp_path / "out.safetensors")
    hints = re.findall(r"--rename \S+", run(*words).err)
    renames = [word.strip(",;") for hint in hints for word in hint.split()]
    assert renames
    is_whole = len(base) == len(finetuned)
    result = run(*words, *renames, "--overwrite")
    assert result.code == (0 if command == "edit" or is_whole else 1), result.err
    assert "--rename" not in result.err
    assert ("only in the base" in result.err) is False
    if command == "edit":
        report = json.loads((tmp_path / "out.report.json").read_text())
        new = [layer["name"] for layer in report["layers"] if layer["reason"] == "not_in_base"]
        assert len(new) == len(finetuned) - len(base)


def test_heads_that_only_look_alike_are_not_suggested(run, tmp_path):
    stack = tower("roberta.encoder.layer.")
    base = write(tmp_path / "base.safetensors", [*stack, "lm_head.dense.weight", "lm_head.decoder.weight"], 0)
    heads = ["classifier.dense.weight", "classifier.out_proj.weight"]
    finetuned = write(tmp_path / "ft.safetensors", [*stack, *heads], 1)
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert result.code == 0
    assert "not in the base, and kept as fine-tuned: 2 tensors: classifier.dense" in result.err
    assert "--rename" not in result.err
