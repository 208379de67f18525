"""Experts in two forms: with the base in one and the fine-tune in the other, nothing changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import oracle
from tests.layouts.experts import BY_HAND, FAMILIES, make, rewrite


@pytest.fixture(scope="module", params=[*FAMILIES, "gpt-oss, fused"])
def model(request, tmp_path_factory):
    """The family, the class and the folder of a model."""
    folder = tmp_path_factory.mktemp("model")
    return request.param, make(request.param, folder), folder


def written(folder):
    return (folder / "model.safetensors").read_bytes()


def checked(out, base, finetuned):
    """Compare every edited matrix with the oracle's, and every other tensor with the fine-tune's."""
    found, old, new = (load_file(one / "model.safetensors") for one in (out, base, finetuned))
    layers = json.loads((out / "monosoup_report.json").read_text())["layers"]
    experts = 0
    for layer in layers:
        name = layer["name"]
        if layer["action"] == "kept":
            assert found[name].equal(new[name])
            continue
        count = len(layer["slices"]) if "slices" in layer else 1
        parts = [one[name].double().numpy() for one in (old, new)]
        parts = [one.reshape(count, one.shape[0] if count == 1 else one.shape[1], -1) for one in parts]
        edited = np.stack([oracle.edit(*pair)[0] for pair in zip(*parts, strict=True)])
        oracle.assert_weights_equal(found[name], edited.reshape(found[name].shape))
        experts += "expert" in name or "input_linear" in name
    assert experts


@pytest.mark.parametrize(("form", "other"), [("one", "two"), ("two", "one")])
def test_the_form_of_the_base_makes_no_difference(model, form, other, run, tmp_path):
    family, kind, folder = model
    command = ("edit", folder / f"base-{other}", folder / f"ft-{form}")
    same, out = tmp_path / "same", tmp_path / "out"
    assert run("edit", folder / f"base-{form}", folder / f"ft-{form}", "-o", same).code == 0
    result = run(*command, "-o", out)
    assert result.code == 0
    assert "not in the base" not in result.err
    assert "only in the base" not in result.err
    assert written(out) == written(same)
    checked(out, folder / f"base-{form}", folder / f"ft-{form}")
    if form == "one" or family not in BY_HAND:
        said = kind.from_pretrained(out, output_loading_info=True)[1]
        assert not said["missing_keys"]
        assert not [key for key in said["unexpected_keys"] if not key.startswith("mtp.")]
        assert not said["mismatched_keys"]
    report = json.loads((out / "monosoup_report.json").read_text())
    read_as = next(one["read_as"] for one in report["inputs"] if one["role"] == "base")
    assert read_as
    assert all(f"names are read {words}\n" in result.err for words in read_as)


def test_parts_edited_each_for_itself(model, run, tmp_path):
    """With --split-fused the form does not matter, whichever the base has."""
    family, kind, folder = model
    for form in ("one", "two"):
        for base in ("one", "two"):
            out = tmp_path / f"{base}-{form}"
            result = run("edit", folder / f"base-{base}", folder / f"ft-{form}", "-o", out, "--split-fused")
            assert result.code == 0, result.err
        assert written(out) == written(tmp_path / f"one-{form}")
    other = tmp_path / "other"
    kind.from_pretrained(tmp_path / "one-one").save_pretrained(other, save_original_format=False)
    if family in BY_HAND:
        rewrite(other, BY_HAND[family])
    one, two, expected = (
        load_file(path / "model.safetensors") for path in (tmp_path / "one-one", tmp_path / "one-two", other)
    )
    expected |= {name: tensor for name, tensor in one.items() if name.startswith("mtp.")}
    assert two.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
