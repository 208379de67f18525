"""`transplant`: an update that is added to another model."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import monosoup_cli
from tests.models import MODELS, build, step
from tests.peft_adapters import make, merge, tensors_in
from tests.schema import assert_valid


def weights(seed, base=None, size=0.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"block.0.weight": (9, 7), "block.0.bias": (9,), "block.1.weight": (4, 3, 2)}
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return noise if base is None else {name: base[name] + size * noise[name] for name in base}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A base, two fine-tunes of it, and another base."""
    monkeypatch.chdir(tmp_path)
    base = weights(0)
    made = {
        "base": base,
        "one": weights(1, base, 0.1),
        "two": weights(2, base, 0.2),
        "onto": weights(3, base, 0.5),
    }
    for name, tensors in made.items():
        save_file(tensors, f"{name}.safetensors", {"format": "pt"})
    return {name: {key: tensor.double() for key, tensor in tensors.items()} for name, tensors in made.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("finetuned", "scale", "scales"),
    [
        (["one"], None, [1]),
        (["one"], "-0.5", [-0.5]),
        (["one", "two"], "0.3", [0.3, 0.3]),
        (["one", "two"], "2,-1", [2, -1]),
    ],
)
def test_the_formula(models, run, finetuned, scale, scales, dtype):
    words = [f"{name}.safetensors" for name in ("base", *finetuned, "onto")]
    options = [] if scale is None else [f"--scale={scale}"]
    result = run("transplant", *words, "-o", "out.safetensors", "--dtype", dtype, *options)
    assert result.code == 0, result.err
    for name, found in load_file("out.safetensors").items():
        update = sum(
            s * (models[one][name] - models["base"][name]) for s, one in zip(scales, finetuned, strict=True)
        )
        expected = (models["onto"][name] + update).to(getattr(torch, dtype))
        assert torch.equal(found, expected), name


def test_what_is_measured(models, run):
    assert (
        run(
            "transplant",
            "base.safetensors",
            "one.safetensors",
            "onto.safetensors",
            "-o",
            "out",
            "--scale",
            "3",
        ).code
        == 0
    )
    report = json.loads(Path("out/monosoup_report.json").read_text())
    assert_valid(report)
    assert [(one["role"], one["source"]) for one in report["inputs"]] == [
        ("base", "base.safetensors"),
        ("onto", "onto.safetensors"),
        ("finetuned", "one.safetensors"),
    ]
    assert report["arguments"]["finetuned"] == ["one.safetensors"]
    for layer in report["layers"]:
        base, one, onto = (models[role][layer["name"]].flatten() for role in ("base", "one", "onto"))
        update, distance = 3 * (one - base), onto - base
        assert math.isclose(layer["relative_update"], update.norm() / base.norm(), rel_tol=1e-12)
        assert math.isclose(layer["base_distance"], distance.norm() / base.norm(), rel_tol=1e-12)
        assert math.isclose(layer["overlap"], torch.cosine_similarity(update, distance, dim=0), rel_tol=1e-9)


def test_what_did_not_change_or_is_left_out_is_that_of_onto(models, run):
    """To the last bit, also where the bases are far apart and zeros have signs."""
    onto = {name: tensor.float() for name, tensor in models["onto"].items()}
    onto["block.0.weight"] *= 1e-12
    onto["block.0.bias"][:4] = -0.0
    save_file(onto, "onto.safetensors", {"format": "pt"})
    one = {name: tensor.float() for name, tensor in models["one"].items()}
    one["block.0.weight"] = models["base"]["block.0.weight"].float()
    save_file(one, "one.safetensors", {"format": "pt"})
    words = ("base.safetensors", "one.safetensors", "onto.safetensors", "-o", "out", "--exclude", "*bias")
    assert run("transplant", *words).code == 0
    found = load_file("out/model.safetensors")
    for name in ("block.0.weight", "block.0.bias"):
        assert torch.equal(found[name].view(torch.int32), onto[name].view(torch.int32))
    assert_valid(json.loads(Path("out/monosoup_report.json").read_text()))
    reasons = {
        layer["name"]: layer["reason"]
        for layer in json.loads(Path("out/monosoup_report.json").read_text())["layers"]
    }
    assert reasons == {"block.0.weight": "unchanged", "block.0.bias": "excluded", "block.1.weight": None}


def test_a_real_model_of_onto_with_its_files(tmp_path, run):
    """The layout and side files are those of ONTO, and the output loads."""
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "base")
    step(model)
    model.save_pretrained(tmp_path / "ft")
    other = build(*MODELS["llama"])
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.mul_(1.01)
    other.save_pretrained(tmp_path / "instruct", max_shard_size="20kB")
    (tmp_path / "instruct" / "tokenizer_config.json").write_text('{"chat_template": "hi"}')
    paths = [tmp_path / name for name in ("base", "ft", "instruct")]
    assert run("transplant", *paths, "-o", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in paths[2].iterdir()} <= names
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(info.values())


def test_an_adapter_of_one_base_is_added_to_another(tmp_path, run):
    folders = make("linear", tmp_path)
    base = tensors_in(folders.base)
    merged = merge(folders, tmp_path / "peft", torch.float64)
    onto = {name: tensor * 1.1 for name, tensor in base.items()}
    save_file(onto, tmp_path / "onto.safetensors", {"format": "pt"})
    words = (folders.base, folders.adapter, tmp_path / "onto.safetensors", "-o", tmp_path / "out.safetensors")
    planned = json.loads(run("transplant", *words, "--dry-run", "--format", "json").out)
    report = json.loads(run("transplant", *words, "--format", "json").out)
    reasons = [{one["name"]: one["reason"] for one in each["layers"]} for each in (planned, report)]
    assert reasons[0] == reasons[1]
    assert {*reasons[0].values()} == {"unchanged", None}
    for name, found in load_file(tmp_path / "out.safetensors").items():
        expected = onto[name].double() + merged[name] - base[name].double()
        torch.testing.assert_close(found, expected.float(), rtol=3e-7, atol=1e-8)


def test_what_transplant_refuses(models, run):
    words = ("transplant", "base.safetensors", "one.safetensors", "onto.safetensors", "-o", "out")
    refused = run(*words, "--scale", "1,2")
    assert "--scale needs one number, or one for each checkpoint: expected 1 of them, found 2" in refused.err
    with pytest.raises(monosoup_cli.errors.UsageError, match="scale must be finite"):
        monosoup_cli.transplant(
            "base.safetensors", "one.safetensors", "onto.safetensors", "out", scale=math.inf
        )


def test_a_tensor_that_only_one_of_them_has(models, run):
    """The message calls them by their arguments, and its hint works."""
    onto = load_file("onto.safetensors") | {"head.weight": torch.ones(2, 2)}
    save_file(onto, "more.safetensors", {"format": "pt"})
    words = (
        "transplant",
        "base.safetensors",
        "one.safetensors",
        "two.safetensors",
        "more.safetensors",
        "-o",
        "out",
    )
    refused = run(*words)
    problem = "of ONTO and FINETUNED number 1, only ONTO has it; --exclude leaves such tensors as in ONTO"
    assert problem in refused.err
    assert run(*words, "--exclude", "head*").code == 0
    assert torch.equal(load_file("out/model.safetensors")["head.weight"], torch.ones(2, 2))
    save_file(onto, "one.safetensors", {"format": "pt"})
    refused = run("transplant", "base.safetensors", "one.safetensors", "onto.safetensors", "-o", "x")
    assert "only FINETUNED has it; --exclude drops such tensors" in refused.err
    words = ("transplant", "base.safetensors", "one.safetensors", "onto.safetensors", "-o", "x")
    assert "note: not in ONTO, and not written: 1 tensor: head." in run(*words, "--exclude", "head*").err
