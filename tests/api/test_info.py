"""`info`: what a checkpoint is, from headers alone, against the libraries that wrote it."""

import json

import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from tests.models import MODELS, build
from tests.peft_adapters import CASES, load, make, tensors_in


@pytest.mark.parametrize("name", ["llama", "qwen3, tied", "qwen3-moe", "gpt2", "bert", "vit"])
def test_a_model_of_transformers(tmp_path, run, name):
    model = build(*MODELS[name])
    model.save_pretrained(tmp_path / "model", max_shard_size="60kB")
    found = monosoup_cli.info(tmp_path / "model")
    stored = tensors_in(tmp_path / "model")
    assert (found["kind"], found["library"]) == ("model", "transformers")
    assert found["model_type"] == model.config.model_type
    assert found["architectures"] == [type(model).__name__]
    assert (found["tensors"], found["parameters"]) == (len(stored), sum(t.numel() for t in stored.values()))
    assert found["dtypes"] == [{"dtype": "F32", "tensors": len(stored), "parameters": found["parameters"]}]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")}
    assert {one["name"]: one["bytes"] for one in found["files"]} == sizes
    assert found["bytes"] == sum(sizes.values())
    places: dict[int, list[str]] = {}
    for key, tensor in model.state_dict().items():
        places.setdefault(tensor.data_ptr(), []).append(key)
    tied = {key for keys in places.values() if len(keys) > 1 for key in keys if key not in stored}
    assert tied == found["ties"].keys()
    table = run("info", tmp_path / "model")
    assert table.code == 0
    assert model.config.model_type in table.out


def test_what_edit_would_change_is_what_it_changes(pair, run, tmp_path):
    found = monosoup_cli.info(pair.finetuned)["edit"]
    report = monosoup_cli.edit(*pair, tmp_path / "out")
    assert found["layers"] == report["summary"]["edited"]
    assert found["parameters"] == report["summary"]["parameters_edited"]
    assert found["core_seconds"] > 0


@pytest.mark.parametrize("name", ["linear", "patterns", "dora", "modules_to_save", "experts", "tokens"])
def test_an_adapter_of_peft(tmp_path, name):
    """Also where other commands need its base: then a note says so."""
    folders = make(name, tmp_path)
    found = monosoup_cli.info(folders.adapter)
    assert (found["kind"], found["library"]) == ("adapter", "peft")
    config = json.loads((folders.adapter / "adapter_config.json").read_text())
    stored = tensors_in(folders.adapter)
    assert found["parameters"] == sum(t.numel() for t in stored.values())
    if found["adapter"] is None:
        assert found["notes"][0].startswith("other commands refuse it: ")
        return
    assert found["adapter"]["base"] == config["base_model_name_or_path"]
    assert found["adapter"]["is_dora"] == bool(CASES[name][1].get("use_dora"))
    if not CASES[name][1].get("target_parameters"):
        ranks: dict[str, int] = {}
        for module in load(folders).modules():
            for rank in getattr(module, "r", {}).values() if hasattr(module, "lora_A") else ():
                ranks[str(rank)] = ranks.get(str(rank), 0) + 1
        assert found["adapter"]["ranks"] == ranks


def test_what_other_commands_would_say(tmp_path, run):
    """Notes where they note, and the refusal where they refuse."""
    codes = {"a.weight": torch.ones(4, 4), "b.qweight": torch.ones(2, 2).int()}
    save_file(codes, tmp_path / "codes.safetensors")
    result = run("info", tmp_path / "codes.safetensors")
    assert (result.code, "other commands refuse it: " in result.err) == (0, True)
    assert "edit " not in result.out
    torch.save({"state_dict": {"w.weight": torch.ones(3, 2)}, "epoch": 3}, tmp_path / "model.pt")
    found = monosoup_cli.info(tmp_path / "model.pt")
    assert found["formats"] == [".pt"]
    assert any("epoch" in note for note in found["notes"])
    assert (
        "no input has a state dict 'nope'" in run("info", tmp_path / "model.pt", "--state-dict", "nope").err
    )
    assert run("info", tmp_path / "model.pt", "--state-dict", "nope").code == 2
    missing = run("info", tmp_path / "none")
    assert (missing.code, "no such file or folder" in missing.err) == (1, True)


def test_a_repository_is_not_downloaded(hub, tmp_path, run):
    """Under a hundredth of its weights are sent."""
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    weights = {f"model.layers.{n}.weight": torch.randn(3000, 2000) for n in range(2)}
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    hub.add("org/model", tmp_path / "model")
    result = run("info", "org/model", "--format", "json")
    found = json.loads(result.out)
    nbytes = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert (found["tensors"], found["bytes"], len(found["revision"])) == (2, nbytes, 40)
    assert 0 < hub.bytes_sent() < nbytes / 100
    assert found["parameters"] == 2 * 3000 * 2000
