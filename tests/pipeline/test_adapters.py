"""Adapters as fine-tuned checkpoints of every command, against what peft makes of the same files."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests import oracle
from tests.models import build
from tests.peft_adapters import CASES, MODELS, Folders, make, merge, tensors_in
from tests.schema import assert_valid

EXACT = ("k", "rank")
TO_1E_6 = ("rho", "cos_alpha", "lambda_high", "lambda_low", "energy_high", "equivalent_alpha", "anisotropy")


UNMERGED = ("embedding, tied",)
"""Cases that change one use of weights that the base ties, which no merged checkpoint can hold."""
MERGED = [name for name in CASES if name not in UNMERGED]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SEVERAL = [
    "linear",
    "conv1d of gpt2",
    "convolution, 2-d",
    "dora",
    "lora_bias",
    "modules_to_save",
    "tokens",
    "experts",
]


def on_devices(names):
    """Every case on the CPU, and those of SEVERAL on a card, too."""
    on_a_card = [pytest.param(name, "cuda", marks=pytest.mark.cuda) for name in names if name in SEVERAL]
    return pytest.mark.parametrize(("name", "device"), [*((name, "cpu") for name in names), *on_a_card])


class Made(NamedTuple):
    """The folders of a case, and what peft merges of it in float32 and in float64."""

    name: str
    folders: Folders
    base: dict[str, torch.Tensor]
    merged: dict[str, torch.Tensor]
    exact: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made_of(tmp_path_factory):
    made = {}

    def made_of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("case")
            folders = make(name, folder)
            merged = merge(folders, folder / "merged")
            exact = merge(folders, folder / "exact", torch.float64)
            made[name] = Made(name, folders, tensors_in(folders.base), merged, exact)
        return made[name]

    return made_of


@pytest.fixture(params=MERGED)
def made(request, made_of):
    return made_of(request.param)


@pytest.fixture(scope="module")
def wide_of(tmp_path_factory):
    """A base of float64, two adapters of it, and the folders of what peft merges of them."""
    made = {}

    def wide_of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("wide")
            folders = [make(name, folder, seed, torch.float64) for seed in (1, 2)]
            merged = [folder / "merged-1", folder / "merged-2"]
            for each, path in zip(folders, merged, strict=True):
                merge(each, path, torch.float64)
            made[name] = folders[0].base, [each.adapter for each in folders], merged
        return made[name]

    return wide_of


def done(result):
    assert result.code == 0, result.err
    return result


def report_of(out):
    report = json.loads((out / "monosoup_report.json").read_text("utf-8"))
    assert_valid(report)
    return report


def matrices_of(name, *tensors):
    """(index of a slice or None, the tensors in float64 as matrices), for each matrix."""
    wide = [t.double() for t in tensors]
    if "experts" in name and wide[0].ndim == 3:
        return [(number, *(t[number].numpy() for t in wide)) for number in range(len(wide[0]))]
    return [(None, *(t.reshape(len(t), -1).numpy() for t in wide))]


def assert_near(found, expected, tolerance):
    """As a whole and at its largest element."""
    difference = found.double() - expected.double()
    assert difference.norm() <= tolerance * expected.double().norm()
    assert difference.abs().max() <= tolerance * expected.double().abs().max()


def assert_edited(found, base, exact, tolerance=None):
    """Every matrix that the adapter changes is the oracle's; vectors are as merged, the rest the base's."""
    assert found.keys() == base.keys() == exact.keys()
    for name, before in base.items():
        assert found[name].dtype == before.dtype
        if torch.equal(before.double(), exact[name]):
            assert torch.equal(found[name], before), name
        elif before.ndim < 2:
            assert_near(found[name], exact[name], tolerance or 1e-6)
        else:
            for number, first, second in matrices_of(name, before, exact[name]):
                expected, _ = oracle.edit(first, second)
                values = (found[name] if number is None else found[name][number]).reshape(first.shape)
                if tolerance:
                    assert_near(values, torch.from_numpy(expected), tolerance)
                else:
                    oracle.assert_weights_equal(values, expected)


def test_a_merged_adapter_is_what_peft_merges(run, tmp_path, made):
    done(run("wise", *made.folders, "--alpha", 1, "-o", tmp_path / "out"))
    found = tensors_in(tmp_path / "out")
    assert found.keys() == made.merged.keys()
    for name, expected in made.merged.items():
        assert found[name].dtype == expected.dtype
        assert_near(found[name], expected, 1e-6)


@on_devices(MERGED)
def test_an_edited_adapter_is_the_oracles(run, tmp_path, made_of, name, device):
    made, out = made_of(name), tmp_path / "out"
    done(run("edit", *made.folders, "-o", out, "--device", device))
    assert_edited(tensors_in(out), made.base, made.exact)
    layers = {layer["name"]: layer for layer in report_of(out)["layers"]}
    for name, before in made.base.items():
        if before.ndim > 1 and not name.endswith("_bias"):  # experts have a vector each in these
            is_still = torch.equal(before.double(), made.exact[name])
            wanted = ("kept", "unchanged") if is_still else ("edited", None)
            assert (layers[name]["action"], layers[name]["reason"]) == wanted, name


def test_what_is_made_of_an_adapter_loads(run, tmp_path, made):
    out = tmp_path / "out"
    done(run("edit", *made.folders, "-o", out))
    assert not [*out.glob("adapter*")]
    config = transformers.AutoConfig.from_pretrained(out, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])
    loaded, info = kind.from_pretrained(out, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    loaded.save_pretrained(tmp_path / "again", save_original_format=False)
    found = tensors_in(out)
    again = tensors_in(tmp_path / "again")
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in again.items())


def assert_same_layers(found, expected):
    assert [layer["name"] for layer in found] == [layer["name"] for layer in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one["action"], one["reason"]) == (other["action"], other["reason"]), one["name"]
        for row, wanted in zip(with_slices(one), with_slices(other), strict=True):
            assert [row.get(name) for name in EXACT] == [wanted.get(name) for name in EXACT]
            for name in TO_1E_6:
                value = wanted.get(name)
                assert row.get(name) == (value and pytest.approx(value, rel=0, abs=1e-6)), (one["name"], name)


def with_slices(layer):
    return [layer, *(layer.get("slices") or [])]


@pytest.mark.parametrize("name", MERGED)
def test_editing_an_adapter_is_editing_the_merged_model(run, tmp_path, wide_of, name):
    base, adapters, merged = wide_of(name)
    for finetuned, out in ((adapters[0], "adapter"), (merged[0], "merged")):
        done(run("edit", base, finetuned, "-o", tmp_path / out))
    reports = [report_of(tmp_path / out) for out in ("adapter", "merged")]
    assert_same_layers(*(report["layers"] for report in reports))
    found, expected = (tensors_in(tmp_path / out) for out in ("adapter", "merged"))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert_near(found[name], weights, 1e-5)


@on_devices(SEVERAL)
@pytest.mark.parametrize(
    ("command", "count", "options"),
    [
        ("edit", 2, []),
        ("edit", 1, ["--energy", 0.8, "--wise", 0.5]),
        ("edit", 1, ["--weighting", "high"]),
        ("stock", 2, []),
        ("stock", 2, ["--granularity", "filter"]),
        ("soup", 2, []),
        ("soup", 2, ["--weights", "3,1"]),
        ("sfgs", 2, ["--threshold", -1]),
        ("wise", 1, ["--alpha", 0.3]),
        ("lines", 1, ["--alpha", 0.5, "--beta", 0.3]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_every_command_reads_adapters(run, tmp_path, wide_of, name, device, command, count, options):
    base, adapters, merged = wide_of(name)
    options = [*options, "--device", device]
    first = ["--base", base] if command == "soup" else [base]
    done(run(command, *first, *adapters[:count], "-o", tmp_path / "adapter", *options))
    first = [] if command == "soup" else [base]
    done(run(command, *first, *merged[:count], "-o", tmp_path / "merged", *options))
    found, expected = (tensors_in(tmp_path / out) for out in ("adapter", "merged"))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert found[name].dtype == weights.dtype == torch.float64
        assert_near(found[name], weights, 1e-9)
    reports = [report_of(tmp_path / out) for out in ("adapter", "merged")]
    if command == "sfgs":
        found, expected = (report["selection"]["similarity"] for report in reports)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("count", [1, 2])
def test_the_spectra_of_adapters(run, wide_of, name, count):
    base, adapters, merged = wide_of(name)
    found, expected = (
        json.loads(done(run("inspect-spectrum", base, *paths[:count], "--format", "json", "--values")).out)
        for paths in (adapters, merged)
    )
    assert_same_layers(found["layers"], expected["layers"])
    for one, other in zip(found["layers"], expected["layers"], strict=True):
        for row, wanted in zip(with_slices(one), with_slices(other), strict=True):
            if wanted.get("singular_values"):
                sigma = np.array(wanted["singular_values"])
                np.testing.assert_allclose(row["singular_values"], sigma, rtol=0, atol=1e-9 * sigma[0])


def test_an_adapter_and_a_full_checkpoint_together(run, tmp_path, wide_of):
    base, adapters, merged = wide_of("linear")
    done(run("edit", base, adapters[0], merged[1], "-o", tmp_path / "mixed"))
    done(run("edit", base, *merged, "-o", tmp_path / "merged"))
    found, expected = (tensors_in(tmp_path / out) for out in ("mixed", "merged"))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert_near(found[name], weights, 1e-9)


RANKS = {
    "linear": {"": (4, 7 / 4)},
    "rslora": {"": (4, 7 / 2)},
    "patterns": {
        "layers.0.self_attn.q_proj": (2, 7 / 2),
        "layers.1.self_attn.q_proj": (2, 32 / 2),
        "layers.0.mlp.down_proj": (4, 3 / 4),
        "layers.1.mlp.down_proj": (6, 7 / 6),
    },
    "embedding": {"": (4, 7 / 4)},
    "convolution, 2-d": {"": (4, 7 / 4)},
    "experts": {"": (4, 7 / 4)},
    "dora": {},
    "modules_to_save": {"q_proj": (4, 7 / 4), "down_proj": (4, 7 / 4)},
    "tokens": {"q_proj": (4, 7 / 4), "down_proj": (4, 7 / 4)},
}
"""Words of the names of layers, and the rank and scale of their updates."""


@pytest.mark.parametrize("name", RANKS)
def test_the_report_says_rank_and_scale(run, tmp_path, made_of, name):
    made = made_of(name)
    done(run("edit", *made.folders, "-o", tmp_path / "out"))
    edited = [layer for layer in report_of(tmp_path / "out")["layers"] if layer["action"] == "edited"]
    assert edited
    for layer in edited:
        wanted = [value for word, value in RANKS[name].items() if word in layer["name"]]
        rank, scale = wanted[0] if wanted else (None, None)
        assert layer.get("adapter_rank") == rank, layer["name"]
        assert layer.get("adapter_scale") == (scale and pytest.approx(scale, rel=1e-12)), layer["name"]
        if rank is not None and rank > 2:  # split within it: all else would be no edit
            assert all(part["k"] < rank and part["cos_alpha"] > 0.01 for part in layer.get("slices", [layer]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "dora", "lora_bias", "modules_to_save", "tokens"])
def test_the_output_has_the_dtype_of_the_base(run, tmp_path, name, dtype):
    folders = make(name, tmp_path, dtype=dtype)
    base, exact = tensors_in(folders.base), merge(folders, tmp_path / "exact", torch.float64)
    done(run("wise", *folders, "--alpha", 1, "-o", tmp_path / "merged"))
    found = tensors_in(tmp_path / "merged")
    for key, weights in exact.items():
        assert found[key].dtype == dtype
        oracle.assert_weights_equal(found[key].reshape(-1), weights.reshape(-1).numpy())
    done(run("edit", *folders, "-o", tmp_path / "edited"))
    for key, edited in tensors_in(tmp_path / "edited").items():
        assert edited.dtype == dtype
        if not torch.equal(base[key].double(), exact[key]) and edited.ndim > 1:
            expected, _ = oracle.edit(base[key].double().numpy(), exact[key].numpy())
            oracle.assert_weights_equal(edited, expected)


def test_the_files_are_laid_out_as_the_bases(run, tmp_path, made_of):
    made = made_of("linear")
    kind = transformers.LlamaForCausalLM.from_pretrained(made.folders.base, local_files_only=True)
    kind.save_pretrained(tmp_path / "base", max_shard_size="20kB")
    done(run("edit", tmp_path / "base", made.folders.adapter, "-o", tmp_path / "out"))
    names = [{path.name for path in (tmp_path / name).glob("model*")} for name in ("base", "out")]
    assert names[0] == names[1]
    assert len(names[0]) > 2
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
    assert_edited(tensors_in(tmp_path / "out"), made.base, made.exact)


@pytest.mark.parametrize("kind", ["qwen3-moe", "mixtral"])
def test_a_base_whose_experts_are_one_by_one_is_refused(run, tmp_path, kind):
    """In memory they are one tensor, whose updates have other spectra than those of its parts."""
    adapted = make("experts" if kind == "qwen3-moe" else "experts of mixtral", tmp_path)
    build(*MODELS[kind]).save_pretrained(tmp_path / "hub")
    result = run("edit", tmp_path / "hub", adapted.adapter, "-o", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "save_original_format=False" in result.err
    assert not (tmp_path / "out").exists()


def test_files_in_place_of_folders(run, tmp_path, made_of):
    made = made_of("linear")
    out = tmp_path / "out.safetensors"
    done(run("edit", made.folders.base / "model.safetensors", made.folders.adapter, "-o", out))
    assert_edited(load_file(out), made.base, made.exact)


NO_LORA = [name for name in CASES if name.startswith("dora")]
"""Cases whose edited updates no LoRA adapter holds."""
AS_ADAPTERS = [name for name in CASES if name not in NO_LORA]


@on_devices(AS_ADAPTERS)
def test_an_edited_adapter_that_peft_loads(run, tmp_path, made_of, name, device):
    made = made_of(name)
    base, adapter = made.folders
    out = tmp_path / "out"
    done(run("edit", base, adapter, "-o", out, "--as-adapter", "--dtype", "float32", "--device", device))
    found = merge(Folders(base, out), tmp_path / "merged", torch.float64)
    assert_edited({key: t.to(made.base[key].dtype) for key, t in found.items()}, made.base, made.exact, 1e-5)
    assert_same_adapter(out, adapter, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_edited_adapter_has_the_dtype_that_it_had(run, tmp_path, made_of, dtype):
    name = {torch.bfloat16: "bfloat16", torch.float32: "linear"}[dtype]
    base, adapter = made_of(name).folders
    done(run("edit", base, adapter, "-o", tmp_path / "out", "--as-adapter"))
    assert_same_adapter(tmp_path / "out", adapter, dtype)


@pytest.mark.parametrize("name", NO_LORA)
def test_what_no_adapter_holds_is_refused(run, tmp_path, made_of, name):
    base, adapter = made_of(name).folders
    result = run("edit", base, adapter, "-o", tmp_path / "out", "--as-adapter")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "without --as-adapter it is merged" in result.err
    assert not (tmp_path / "out").exists()


def assert_same_adapter(out, adapter, dtype):
    """The same keys, shapes and configuration, but for the order of names in it."""
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (out, adapter)]
    for config in configs:
        for name, value in config.items():
            if isinstance(value, list):
                config[name] = sorted(value)
    assert configs[0] == configs[1]
    found, expected = tensors_in(out), tensors_in(adapter)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    assert {t.dtype for t in found.values()} == {dtype}


NEED_A_BASE = {
    *(name for name in CASES if "modules_to_save" in name or "tokens" in name),
    "experts, patterns",
}
"""For an edit of what replaces a matrix; and to tell apart parameters of one module that differ in rank."""


@on_devices([name for name in AS_ADAPTERS if name not in NEED_A_BASE])
def test_an_adapter_edited_without_its_base(run, tmp_path, made_of, name, device):
    base, adapter = made_of(name).folders
    merged = []
    for first, out in ((base, tmp_path / "with"), ("-", tmp_path / "without")):
        done(run("edit", first, adapter, "-o", out, "--as-adapter", "--dtype", "float32", "--device", device))
        assert_same_adapter(out, adapter, torch.float32)
        merged.append(merge(Folders(base, out), tmp_path / f"merged-{out.name}", torch.float64))
    for key, weights in merged[0].items():
        assert_near(merged[1][key], weights, 1e-6)


def test_the_edited_adapter_is_balanced_and_keeps_what_is_no_matrix(run, tmp_path, made_of):
    """B and A are of one norm each; biases are the input's bit for bit."""
    base, adapter = made_of("bias, all").folders
    done(run("edit", base, adapter, "-o", tmp_path / "out", "--as-adapter"))
    before, after = tensors_in(adapter), tensors_in(tmp_path / "out")
    for name, weights in after.items():
        if "lora_" not in name:
            assert torch.equal(weights, before[name])
        elif "lora_A" in name:
            norms = [float(t.double().norm()) for t in (weights, after[name.replace("lora_A", "lora_B")])]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("option", "value"), [("energy", 0.8), ("rank", 2), ("weighting", "low")])
def test_the_options_of_edit_hold_for_adapters_too(run, tmp_path, made_of, option, value, device):
    made = made_of("linear")
    words, options = [*made.folders, "--as-adapter", "--device", device], [f"--{option}", value]
    base, out = made.folders.base, tmp_path / "out"
    done(run("edit", *words, "-o", out, *options))
    found = merge(Folders(base, tmp_path / "out"), tmp_path / "merged", torch.float64)
    for key, before in made.base.items():
        if before.ndim > 1:
            expected, _ = oracle.edit(before.double().numpy(), made.exact[key].numpy(), **{option: value})
            assert_near(found[key], torch.from_numpy(expected), 1e-5)
