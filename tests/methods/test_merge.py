"""`merge`: LoRA adapters in their base, as peft merges them."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.methods import merge as merging
from monosoup_cli.report.opening import opening
from monosoup_cli.tensors import flat
from monosoup_cli.tensors.flat import FlatLayer
from tests.peft_adapters import CASES, load, make, merge, tensors_in
from tests.schema import assert_valid

OFTEN = {
    "linear",
    "dora",
    "bias, all",
    "modules_to_save",
    "tokens, tied",
    "experts",
    "bfloat16",
    "conv1d of gpt2",
}


def assert_near(found, expected):
    """To the last bit or two of what is stored."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted.to(found[name].dtype), rtol=3e-7, atol=1e-8, msg=name)


REFUSED = {"embedding, tied"}
KINDS = [
    pytest.param(name, marks=[] if name in OFTEN else pytest.mark.thorough)
    for name in CASES
    if name not in REFUSED
]


@pytest.mark.parametrize("name", KINDS)
def test_what_peft_merges(tmp_path, run, name):
    """Of every kind of adapter: peft's own merge, computed in float64."""
    folders = make(name, tmp_path)
    expected = merge(folders, tmp_path / "peft", torch.float64)
    result = run("merge", folders.base, folders.adapter, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    found = tensors_in(tmp_path / "out")
    assert_near(found, {name: expected[name] for name in found})
    assert found.keys() >= tensors_in(folders.base).keys()


def test_the_merged_model_computes_as_the_adapted_one(tmp_path, run):
    import transformers

    folders = make("linear", tmp_path)
    assert run("merge", folders.base, folders.adapter, "-o", tmp_path / "out").code == 0
    adapted = load(folders).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    ids = torch.arange(12).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "factors", "said"),
    [
        ((), (1, 1), "updates     2, added up, not averaged\n"),
        (
            ("--weights", "0.25,-2", "--scale", "0.5"),
            (0.125, -1),
            "updates     2, added up, not averaged, times 0.25, -2, all times 0.5\n",
        ),
    ],
)
def test_several_adapters_are_added_up(tmp_path, run, options, factors, said):
    adapters = [make("modules_to_save", tmp_path, seed) for seed in (1, 2)]
    base = tensors_in(adapters[0].base)
    expected = {name: tensor.double() for name, tensor in base.items()}
    for number, (folders, factor) in enumerate(zip(adapters, factors, strict=True)):
        for name, merged in merge(folders, tmp_path / f"peft-{number}", torch.float64).items():
            expected[name] = expected[name] + factor * (merged - base[name])
    paths = [folders.adapter for folders in adapters]
    result = run("merge", adapters[0].base, *paths, "-o", tmp_path / "out", *options)
    assert (result.code, said in result.err) == (0, True), result.err
    assert said in run("merge", adapters[0].base, *paths, "-o", tmp_path / "dry", *options, "--dry-run").out
    assert_near(tensors_in(tmp_path / "out"), expected)
    page = opening(json.loads((tmp_path / "out" / "monosoup_report.json").read_text()))
    kind = "weighted sum" if options else "sum"
    times = ", times 0.5" if options else ""
    assert page[0] == f"The {kind} of 2 LoRA adapters merged into base{times}."


def test_what_is_left_out_is_the_base_to_the_last_bit(tmp_path, run):
    folders = make("modules_to_save", tmp_path)
    (file,) = folders.base.glob("*.safetensors")
    base = load_file(file)
    base["model.norm.weight"][:3] = -0.0  # 0 times an update would lose the sign
    save_file(base, file, {"format": "pt"})
    patterns = ("--exclude", "*norm*", "--exclude", "*.0.*")
    assert run("merge", folders.base, folders.adapter, "-o", tmp_path / "out", *patterns).code == 0
    found = tensors_in(tmp_path / "out")
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, base[name])}
    assert changed == {
        "lm_head.weight",
        *(f"model.layers.1.{at}.weight" for at in ("self_attn.q_proj", "mlp.down_proj")),
    }
    assert torch.equal(found["model.norm.weight"].signbit(), base["model.norm.weight"].signbit())


def test_the_card_and_the_report_say_merged(tmp_path, run):
    folders = make("linear", tmp_path)
    out = tmp_path / "out"
    result = run("merge", folders.base, folders.adapter, "-o", out, "--scale", "0.5")
    assert "merged" in (out / "README.md").read_text()
    assert "monosoup merge base adapter-1 --scale 0.5 -o out" in (out / "README.md").read_text()
    assert "monosoup2026" not in (out / "README.md").read_text()
    report = json.loads((out / "monosoup_report.json").read_text())
    assert_valid(report)
    assert [one["role"] for one in report["inputs"]] == ["base", "finetuned"]
    assert report["summary"]["edited"] == 4, result.out
    again = monosoup_cli.merge(folders.base, folders.adapter, tmp_path / "again", scale=0.5)
    assert again["output"]["files"][0]["sha256"] == report["output"]["files"][0]["sha256"]
    (out / "README.md").unlink()
    shutil.rmtree(out)


def test_what_merge_refuses(tmp_path, run, pair):
    folders = make("linear", tmp_path)
    refused = run("merge", pair.base, pair.finetuned, "-o", tmp_path / "out")
    assert refused.code == 2
    assert f"{pair.finetuned}: merge takes LoRA adapters, and this is a whole checkpoint; `" in refused.err
    for words, problem in {
        ("--weights", "1,2"): "--weights needs one number for each adapter: expected 1 of them, found 2",
        ("--weights", "a"): "--weights must be numbers separated by commas: found 'a'",
        ("--scale", "nan"): "--scale must be finite",
    }.items():
        refused = run("merge", folders.base, folders.adapter, "-o", tmp_path / "out", *words)
        assert problem in refused.err
    assert not (tmp_path / "out").exists()


def nan_in(file, name):
    tensors = load_file(file)
    key = next(key for key in tensors if name in key)
    tensors[key][0, 1] = math.nan
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("options", [(), ("--scale", "0.25")])
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_what_is_kept_for_nan_is_the_base(tmp_path, run, where, options):
    """Bit for bit, NaN of its own included; no NaN of an adapter comes in."""
    folders = make("linear", tmp_path)
    folder = folders.base if where == "base" else folders.adapter
    (file,) = folder.glob("*.safetensors")
    nan_in(file, "0.self_attn.q_proj")
    base = tensors_in(folders.base)
    name = "model.layers.0.self_attn.q_proj.weight"
    for number, kept in enumerate((("--on-nonfinite", "keep"), ("--exclude", name))):
        out = tmp_path / f"out-{number}"
        assert run("merge", folders.base, folders.adapter, "-o", out, *kept, *options).code == 0
        found = tensors_in(out)
        assert torch.equal(found[name].view(torch.int32), base[name].view(torch.int32))
        assert not torch.equal(
            found["model.layers.1.self_attn.q_proj.weight"], base["model.layers.1.self_attn.q_proj.weight"]
        )
    refused = run("merge", folders.base, folders.adapter, "-o", tmp_path / "x", *options)
    assert refused.code == 1
    assert f"{folder}: tensor '" in refused.err
    assert "NaN" in refused.err


def test_ranges_of_a_stack_are_no_whole_experts(monkeypatch, tmp_path, run):
    """What a worker holds does not grow with the matrices of a stack."""
    folders = make("experts", tmp_path)
    sizes = []
    read = FlatLayer.taken_as_moved

    def noted(self, start, stop):
        sizes.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(flat, "FLAT_ELEMENTS", 100)
    monkeypatch.setattr(merging, "FLAT_ELEMENTS", 100)
    monkeypatch.setattr(FlatLayer, "taken_as_moved", noted)
    assert run("merge", folders.base, folders.adapter, "-o", tmp_path / "out").code == 0
    assert max(sizes) <= 100
