"""Folders with the weights of two libraries, formats or kinds: which were taken is said, or none are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

NAME = "layers.0.weight"
DIFFUSERS, TRANSFORMERS = {"_class_name": "UNet2DModel"}, {"model_type": "llama"}
MODEL, DIFFUSION = "model.safetensors", "diffusion_pytorch_model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(path, value):
    weights = {NAME: torch.full((6, 5), float(value))}
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)


@pytest.fixture
def edited(run, tmp_path):
    """Runs soup on a folder of these files, and returns the result and the value of the weights taken."""

    def edited(*names, **configs):
        folder = tmp_path / "in"
        folder.mkdir()
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(exist_ok=True)
            write(folder / name, number)
        for name, content in configs.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        write(tmp_path / MODEL, 100)
        result = run("wise", tmp_path / MODEL, folder, "-o", tmp_path / "out.safetensors", "--alpha", "1")
        if result.code:
            return result, None
        return result, int(load_file(tmp_path / "out.safetensors")[NAME][0, 0])

    return edited


@pytest.mark.parametrize(
    ("names", "configs", "taken"),
    [
        ([MODEL, DIFFUSION], {"config": DIFFUSERS}, DIFFUSION),
        ([MODEL, DIFFUSION], {"config": TRANSFORMERS}, MODEL),
        ([DIFFUSION, "pytorch_model.bin"], {}, DIFFUSION),
        ([MODEL, "pytorch_model.bin"], {}, MODEL),
        (["pytorch_model.bin", "diffusion_pytorch_model.bin"], {"config": TRANSFORMERS}, "pytorch_model.bin"),
        ([MODEL, "consolidated.safetensors"], {}, MODEL),
        (["consolidated.safetensors", "weights.safetensors"], {}, "weights.safetensors"),
        ([MODEL, "open_clip_model.safetensors"], {}, MODEL),
        (
            ["sd.safetensors", "unet/diffusion_pytorch_model.safetensors"],
            {"model_index": {"unet": ["diffusers", "UNet"]}},
            "sd.safetensors",
        ),
    ],
)
def test_what_is_read_and_what_beside_it_is_not_are_said(edited, tmp_path, names, configs, taken):
    result, value = edited(*names, **configs)
    assert result.code == 0, result.err
    assert value == names.index(taken)
    other = next(name for name in names if name != taken)
    other = "unet/" if "/" in other else other
    folder = tmp_path / "in"
    assert f"note: {folder}: {taken} is read; beside it, and not read: {other}\n" in result.err


@pytest.mark.parametrize("configs", [{}, {"config": {}}, {"config": {**DIFFUSERS, **TRANSFORMERS}}])
def test_where_nothing_says_whose_folder_it_is_it_is_refused(edited, configs):
    result, _ = edited(MODEL, DIFFUSION, **configs)
    assert result.code == 1
    assert "more than one file of weights in this folder" in result.err


@pytest.mark.parametrize(
    "extra", [[], ["consolidated.safetensors"], ["consolidated-00001-of-00001.safetensors"]]
)
def test_mistrals_own_files_beside_the_shards_of_transformers(edited, tmp_path, extra):
    index = {"weight_map": {NAME: SHARDS[0]}}
    indexes = {"model.safetensors.index": index}
    if extra and "-of-" in extra[0]:
        indexes["consolidated.safetensors.index"] = {"weight_map": {NAME: extra[0]}}
    result, value = edited(SHARDS[0], *extra, **indexes)
    assert (result.code, value) == (0, 0), result.err
    assert ("beside it, and not read: consolidated.safetensors" in result.err) == bool(extra)


@pytest.mark.parametrize(
    "names", [[MODEL], ["consolidated.safetensors"], [MODEL, "optimizer.bin", "rng_state.pth"]]
)
def test_nothing_is_said_where_there_is_no_choice(edited, names):
    result, value = edited(*names)
    assert (result.code, value) == (0, 0), result.err
    assert "is read" not in result.err


def test_an_adapter_is_taken_from_beside_a_whole_model(run, tmp_path):
    write(tmp_path / MODEL, 1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write(adapter / MODEL, 7)
    factors = {"A": torch.ones(2, 5), "B": torch.ones(6, 2)}
    names = {f"base_model.model.layers.0.lora_{key}.weight": of for key, of in factors.items()}
    save_file(names, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    result = run("wise", tmp_path / MODEL, adapter, "-o", tmp_path / "out.safetensors", "--alpha", "1")
    assert result.code == 0, result.err
    note = f"note: {adapter}: adapter_model.safetensors is read; beside it, and not read: {MODEL}"
    assert note in result.err
    assert load_file(tmp_path / "out.safetensors")[NAME].eq(3).all()
