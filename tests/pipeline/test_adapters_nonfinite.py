"""NaN and overflow where an adapter makes the update: what is named is where it comes from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

MODULE, FLOAT64 = "model.layers.0.mlp.up_proj", torch.float64


def write_float64_pair(tmp_path, a, b, base):
    """A base and an adapter for one matrix, in float64."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    save_file({f"{MODULE}.weight": base}, tmp_path / "base" / "model.safetensors")
    factors = {f"base_model.model.{MODULE}.lora_{key}.weight": of for key, of in (("A", a), ("B", b))}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": len(a), "lora_alpha": len(a), "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "base", tmp_path / "adapter"


@pytest.mark.parametrize("command", ["edit", "inspect-spectrum"])
@pytest.mark.parametrize("size", [0.0, 1.0], ids=["no update", "an update"])
def test_nan_in_the_base_of_an_adapter_is_refused_as_the_bases(run, tmp_path, command, size):
    base = torch.ones(32, 32, dtype=FLOAT64)
    base[3, 5] = torch.nan
    a, b = (torch.full(shape, size, dtype=FLOAT64) for shape in ((2, 32), (32, 2)))
    base, adapter = write_float64_pair(tmp_path, a, b, base)
    result = run(command, base, adapter, *([] if command != "edit" else ["-o", tmp_path / "out"]))
    assert result.code == 1
    assert f"{base}: tensor '{MODULE}.weight': holds NaN or Inf" in result.err


def test_finite_factors_whose_product_overflows_are_not_called_nan(run, tmp_path):
    a, b = (torch.full(shape, 1e200, dtype=FLOAT64) for shape in ((2, 32), (32, 2)))
    base, adapter = write_float64_pair(tmp_path, a, b, torch.ones(32, 32, dtype=FLOAT64))
    result = run("edit", base, adapter, "-o", tmp_path / "out")
    assert (result.code, "NaN" in result.err) == (1, False)
    assert "overflows" in result.err


@pytest.mark.parametrize("form", [(), ("--as-adapter",)], ids=["merged", "as an adapter"])
def test_an_excluded_layer_of_an_adapter_may_hold_nan(run, tmp_path, form):
    """In the base, whose tensor is merged, and in a factor, which is copied."""
    base = torch.ones(32, 32, dtype=FLOAT64)
    base[3, 5] = torch.nan
    a, b = (torch.full(shape, 0.5, dtype=FLOAT64) for shape in ((2, 32), (32, 2)))
    a[0, 7] = torch.nan
    folder, adapter = write_float64_pair(tmp_path, a, b, base)
    other = MODULE.replace("0", "1")
    for path in (folder / "model.safetensors", adapter / "adapter_model.safetensors"):
        tensors = load_file(path)
        tensors |= {name.replace(MODULE, other): t.nan_to_num(0.25) for name, t in tensors.items()}
        save_file(tensors, path)
    words = ("edit", folder, adapter, "-o", tmp_path / "out", *form)
    assert "holds NaN or Inf" in run(*words).err
    result = run(*words, "--exclude", f"{MODULE}*")
    assert result.code == 0, result.err
    (written,) = (tmp_path / "out").glob("*.safetensors")
    tensors = load_file(written)
    assert {name for name, t in tensors.items() if t.isnan().any()} == (
        {f"base_model.model.{MODULE}.lora_A.weight"} if form else {f"{MODULE}.weight"}
    )
