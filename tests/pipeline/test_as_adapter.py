"""Adapters that are written: from whole fine-tunes, and with the promises that hold for every output."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests import oracle
from tests.conftest import everything_in
from tests.hub import Hub
from tests.models import MODELS, build, unet_pipeline
from tests.peft_adapters import tensors_in
from tests.schema import assert_valid

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
RANK = 6
LAYERS = 400


@pytest.fixture(scope="module")
def tuned_of(tmp_path_factory):
    """The folders of a tiny model and of a fine-tune, all of whose tensors have moved."""
    made = {}

    def tuned_of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("tuned")
            model, noise = build(*MODELS[kind]), torch.Generator().manual_seed(3)
            model.save_pretrained(folder / "base", save_original_format=False)
            with torch.no_grad():
                for weights in model.parameters():
                    weights += 0.05 * torch.randn(weights.shape, generator=noise)
            model.save_pretrained(folder / "tuned", save_original_format=False)
            made[kind] = folder / "base", folder / "tuned"
        return made[kind]

    return tuned_of


def merged_by_peft(base, adapter, folder):
    """What peft makes of an adapter over its base; warnings of tensors that are missing are errors."""
    config = json.loads((base / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        model = getattr(transformers, config["architectures"][0]).from_pretrained(base)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder, save_original_format=False)
    return tensors_in(folder)


def done(result):
    assert result.code == 0, result.err
    return result


def report_of(folder):
    report = json.loads((folder / "monosoup_report.json").read_text())
    assert_valid(report)
    return report


def as_matrix(tensor):
    return tensor.double().flatten(1).numpy()


KINDS_OF_MODELS = ["llama", "gpt2", "bert", "t5", "clip", "whisper", "convnext", "qwen3-moe"]


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        *((kind, "cpu") for kind in KINDS_OF_MODELS),
        *(pytest.param(kind, "cuda", marks=pytest.mark.cuda) for kind in ("llama", "convnext")),
    ],
)
def test_a_whole_fine_tune_as_an_adapter(run, tmp_path, tuned_of, kind, device):
    """Factors have the error of the truncated float64 decomposition; vectors that moved are carried, or
    named in a note."""
    base, tuned = tuned_of(kind)
    out = tmp_path / "out"
    words = ["edit", base, tuned, "-o", out, "--as-adapter", "--adapter-rank", RANK, "--device", device]
    result = done(run(*words))
    merged, before = merged_by_peft(base, out, tmp_path / "m"), tensors_in(base)
    done(run("edit", base, tuned, "-o", tmp_path / "whole"))
    after, whole = tensors_in(tuned), tensors_in(tmp_path / "whole")
    edited, carried = 0, 0
    for layer in report_of(out)["layers"]:
        name = layer["name"]
        if "adapter_error" in layer:
            edited += 1
            weights, measures = oracle.edit(as_matrix(before[name]), as_matrix(after[name]))
            update = weights - as_matrix(before[name])
            oracle.assert_measures_equal(layer, measures)
            sigma = np.linalg.svd(update, compute_uv=False)
            least = np.linalg.norm(sigma[RANK:])
            assert abs(layer["adapter_error"] - least / np.linalg.norm(sigma)) <= 1e-9
            error = np.linalg.norm(as_matrix(merged[name]) - weights)
            # a float32 rounding of each weight beside it
            assert error <= math.hypot(least * (1 + 1e-5), 1e-7 * np.linalg.norm(weights))
        elif torch.equal(merged[name], whole[name]):
            carried += 1
        else:  # what no adapter can hold is the base's
            assert torch.equal(merged[name], before[name]), name
            assert "no LoRA adapter can hold" in result.err
    assert edited >= 8
    assert carried >= 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_fine_tune_at_an_energy(run, tmp_path, tuned_of, device):
    base, tuned = tuned_of("llama")
    out = tmp_path / "out"
    done(run("edit", base, tuned, "-o", out, "--as-adapter", "--adapter-energy", "0.8", "--device", device))
    merged, before, after = merged_by_peft(base, out, tmp_path / "m"), tensors_in(base), tensors_in(tuned)
    factors = load_file(out / "adapter_model.safetensors")
    ranks = set()
    for layer in report_of(out)["layers"]:
        if layer["action"] == "edited":
            weights, _ = oracle.edit(as_matrix(before[layer["name"]]), as_matrix(after[layer["name"]]))
            sigma = np.linalg.svd(weights - as_matrix(before[layer["name"]]), compute_uv=False)
            share = np.cumsum(sigma**2) / (sigma**2).sum()
            rank = int(np.argmax(share >= 0.8)) + 1
            module = f"base_model.model.{layer['name'].removesuffix('.weight')}"
            key = f"{module}.lora_A.weight"
            assert len(factors[key if key in factors else f"{module}.lora_embedding_A"]) == rank
            assert abs(layer["adapter_error"] - math.sqrt(1 - share[rank - 1])) <= 1e-7
            error = np.linalg.norm(as_matrix(merged[layer["name"]]) - weights)
            assert error <= np.linalg.norm(sigma[rank:]) * (1 + 1e-5)
            ranks.add(rank)
    assert len(ranks) > 2


@pytest.mark.parametrize("options", [("--adapter-rank", RANK), ("--adapter-energy", "0.9")], ids=str)
def test_what_did_not_move_is_not_announced_as_lost(run, tmp_path, tuned_of, options):
    """Experts have no factors in peft. Where they did not move, nothing is lost, and they are unchanged."""
    base, tuned = tuned_of("qwen3-moe")
    folder = tmp_path / "tuned"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    moved = [name for name in tensors if "self_attn.q_proj" in name]
    tensors |= {name: load_file(tuned / "model.safetensors")[name] for name in moved}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    for dry in (["--dry-run"], []):
        result = done(run("edit", base, folder, "-o", out, "--as-adapter", *options, *dry))
        assert "adapter can hold" not in result.err
    layers = {layer["name"]: layer for layer in report_of(out)["layers"]}
    assert [name for name, layer in layers.items() if layer["action"] == "edited"] == moved
    experts = [layer for name, layer in layers.items() if "experts" in name]
    assert experts
    assert {layer["reason"] for layer in experts} == {"unchanged"}

    tensors[experts[0]["name"]] = tensors[experts[0]["name"]] + 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = done(run("edit", base, folder, "-o", tmp_path / "other", "--as-adapter", *options))
    assert f"no LoRA adapter can hold it: 1 tensor: {experts[0]['name']}" in result.err
    layers = {layer["name"]: layer for layer in report_of(tmp_path / "other")["layers"]}
    assert layers[experts[0]["name"]]["reason"] == "excluded"


LAYER, VECTOR, STACK = "layers.0.mlp.up_proj.weight", "layers.0.norm.weight", "layers.0.mlp.stack"


@pytest.mark.parametrize("options", [("--adapter-rank", "2"), ("--adapter-energy", "0.9")], ids=str)
@pytest.mark.parametrize("name", [LAYER, VECTOR, STACK])
@pytest.mark.parametrize("where", ["base", "tuned"])
def test_nan_is_refused_also_in_what_an_adapter_cannot_hold(run, tmp_path, options, name, where):
    generator = torch.Generator().manual_seed(0)
    paths = []
    for which in ("base", "tuned"):
        shapes = {LAYER: (9, 7), VECTOR: (9,), STACK: (2, 9, 7)}
        tensors = {of: torch.randn(shape, generator=generator) for of, shape in shapes.items()}
        if which == where:
            tensors[name].view(-1)[-1] = math.nan
        paths.append(tmp_path / f"{which}.safetensors")
        save_file(tensors, paths[-1])
    out = ("-o", tmp_path / "out", "--as-adapter", *options)
    result = run("edit", *paths, *out)
    assert result.code == 1
    assert f"{where}.safetensors: tensor '{name}': holds NaN or Inf" in result.err
    hint = "without --as-adapter, --on-nonfinite keep writes a whole checkpoint that keeps it"
    assert result.err.endswith(f"; {hint}\n")
    refused = run("edit", *paths, *out, "--on-nonfinite", "keep")
    assert refused.code == 2
    assert refused.err.endswith("write a whole checkpoint, without --as-adapter\n")
    assert not (tmp_path / "out").exists()
    done(run("edit", *paths, "-o", tmp_path / "out", "--on-nonfinite", "keep"))


@pytest.mark.parametrize("options", [("--adapter-rank", "2"), ("--adapter-energy", "0.9")], ids=str)
@pytest.mark.parametrize("has_moved", [False, True])
def test_an_adapter_is_extracted_beside_an_excluded_mask(run, tmp_path, options, has_moved):
    mask, paths = "layers.0.mask", []
    for number in range(2):
        tensors = {LAYER: torch.randn(9, 7), mask: torch.full((5, 5), -math.inf).triu(1)}
        tensors[mask][0, 0] = math.nan
        tensors[mask][1, 0] += number * has_moved
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, paths[-1])
    words = ("edit", *paths, "-o", tmp_path / "out", "--as-adapter", *options)
    assert f"{mask!r}: holds NaN" in run(*words).err
    result = done(run(*words, "--exclude", mask))
    assert {layer["name"]: layer["reason"] for layer in report_of(tmp_path / "out")["layers"]} == {
        LAYER: None,
        mask: "excluded",
    }
    assert (mask in result.err) == has_moved


@pytest.mark.parametrize("options", [("--adapter-rank", RANK), ("--adapter-energy", "0.9")], ids=str)
def test_the_disk_is_checked_for_what_is_written(run, tmp_path, tuned_of, options, monkeypatch):
    checked = []
    monkeypatch.setattr("monosoup_cli.pipeline.ready.check_space", lambda _, nbytes: checked.append(nbytes))
    base, tuned = tuned_of("llama")
    done(run("edit", base, tuned, "-o", tmp_path / "out", "--as-adapter", *options))
    written = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert set(checked) == {written}


CODES = {"ids": torch.arange(4), "mask": torch.tensor([True, False])}
CODES["exponents"] = torch.ones(4, 4).to(torch.float8_e8m0fnu)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("options", [("--adapter-rank", RANK), ("--adapter-energy", "0.9")], ids=str)
def test_codes_that_changed_are_announced_as_lost(run, tmp_path, options, name):
    generator = torch.Generator().manual_seed(0)
    base = {LAYER: torch.randn(9, 7, generator=generator), **CODES}
    tuned = {**base, LAYER: torch.randn(9, 7, generator=generator)}
    save_file(base, tmp_path / "base.safetensors")
    for code in (tuned[name], tuned[name].clone()):
        code.view(torch.uint8)[..., -1] += code is not tuned[name]
        save_file({**tuned, name: code}, tmp_path / "tuned.safetensors")
        paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
        result = done(run("edit", *paths, "-o", tmp_path / "out", "--overwrite", "--as-adapter", *options))
        announced = f"no LoRA adapter can hold it: 1 tensor: {name}" in result.err
        assert announced == (code is not tuned[name])


def test_a_dry_run_at_a_rank_reads_headers_alone(run, tmp_path, tuned_of):
    """It foresees the largest adapter, and checks that; the run checks it before it reads a tensor."""
    base, tuned = tuned_of("qwen3-moe")
    folder = tmp_path / "tuned"
    shutil.copytree(tuned, folder)
    tensors = load_file(folder / "model.safetensors")
    norm = next(name for name in tensors if "norm" in name)
    tensors[norm][0] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    words = ["edit", base, folder, "-o", tmp_path / "out", "--as-adapter", "--adapter-rank", RANK]
    plan = done(run(*words, "--dry-run", "--format", "json"))
    assert "no LoRA adapter stores these, even if they changed: " in plan.err
    assert json.loads(plan.out)["output"]["files"]
    assert "holds NaN" in run(*words).err
    taken = [*words, "--report", tmp_path / "out" / "adapter_model.safetensors"]
    for way in ([], ["--dry-run"]):
        assert "the report would replace another file of the output" in run(*taken, *way).err


def test_a_dry_run_at_an_energy_tells_what_is_written(run, tmp_path, tuned_of):
    words = [*tuned_of("llama"), "-o", tmp_path / "out", "--as-adapter", "--adapter-energy", "0.8"]
    plan = json.loads(done(run("edit", *words, "--dry-run", "--format", "json")).out)
    assert list(tmp_path.iterdir()) == []
    done(run("edit", *words))
    written = report_of(tmp_path / "out")["output"]["files"]
    assert [(file["name"], file["bytes"]) for file in plan["output"]["files"]] == [
        (file["name"], file["bytes"]) for file in written
    ]


def test_a_fine_tune_of_a_few_layers(run, tmp_path, tuned_of):
    """What did not move takes nothing: factors of zeros, and no vectors."""
    base, _ = tuned_of("llama")
    tensors = tensors_in(base)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 0.1
    save_file(tensors, tmp_path / "tuned.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    done(
        run("edit", base, tmp_path / "tuned.safetensors", "-o", out, "--as-adapter", "--adapter-energy", "1")
    )
    factors = load_file(out / "adapter_model.safetensors")
    assert sorted(factors) == [
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight",
    ]
    merged = merged_by_peft(base, out, tmp_path / "m")
    for each, weights in tensors.items():
        assert (merged[each] - weights).abs().max() <= (1e-6 if each == name else 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("sweep", "folders"),
    [(("--wise", "0.5,1"), ("wise-0.5", "wise-1")), (("--energy", "0.3,0.9"), ("energy-0.3", "energy-0.9"))],
    ids=["wise", "energy"],
)
def test_the_mean_of_several_and_sweeps(run, tmp_path, tuned_of, device, sweep, folders):
    base, tuned = tuned_of("llama")
    words = ["edit", base, tuned, base, *sweep]
    adapter = ["--as-adapter", "--adapter-rank", "32", "--device", device]
    done(run(*words, *adapter, "-o", tmp_path / "out"))
    done(run(*words, "--device", "cpu", "-o", tmp_path / "whole"))
    for folder in folders:
        merged = merged_by_peft(base, tmp_path / "out" / folder, tmp_path / folder)
        for name, weights in tensors_in(tmp_path / "whole" / folder).items():
            assert (merged[name] - weights).abs().max() <= 2e-6 * weights.abs().max(), name


def small_lora(folder, **more):
    """A base, and an adapter of two matrices and of whole tensors beside them."""
    noise = torch.Generator().manual_seed(5)
    modules = {"one": (16, 12), "two": (9, 20)}
    base = {f"{name}.weight": torch.randn(shape, generator=noise) for name, shape in modules.items()}
    base |= {name: torch.randn(tensor.shape, generator=noise) for name, tensor in more.items()}
    save_file(base, folder / "base.safetensors")
    stored = dict(more)
    for name, (rows, columns) in modules.items():
        stored[f"{name}.lora_A.weight"] = torch.randn(3, columns, generator=noise)
        stored[f"{name}.lora_B.weight"] = torch.randn(rows, 3, generator=noise)
    (folder / "lora").mkdir()
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in stored.items()}
    save_file(prefixed, folder / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": [*modules]}
    config |= {"bias": "all"} if "one.bias" in more else {}
    config |= {"modules_to_save": ["head"]} if "head.weight" in more else {}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "base.safetensors", folder / "lora"


@pytest.mark.parametrize("more", [{}, {"head.weight": torch.ones(5, 12)}], ids=["factors", "and a matrix"])
def test_an_adapter_goes_a_part_of_the_way_from_the_base(run, tmp_path, more):
    """Its factors need no base for it; a whole matrix does."""
    base, lora = small_lora(tmp_path, **more)
    done(run("edit", base, lora, "--wise", "0.25,1", "-o", tmp_path / "whole"))
    for number, given in enumerate((base, "-")):
        out = tmp_path / str(number)
        result = run("edit", given, lora, "--as-adapter", "--wise", "0.25,1", "-o", out)
        if given == "-" and more:
            assert result.code == 2
            assert "tensor 'head.weight': --wise interpolates with the base" in result.err
            continue
        done(result)
        for step in ("wise-0.25", "wise-1"):
            done(run("wise", base, out / step, "--alpha", "1", "-o", out / "merged", "--overwrite"))
            merged, whole = (tensors_in(folder) for folder in (out / "merged", tmp_path / "whole" / step))
            for name, weights in whole.items():
                assert (merged[name] - weights).abs().max() <= 1e-6 * weights.abs().max(), name


@pytest.mark.parametrize(
    ("more", "words"),
    [({"one.bias": torch.ones(16)}, []), ({}, ["--exclude", "one*"])],
    ids=["bias", "excluded"],
)
def test_what_an_adapter_keeps_goes_no_part_of_the_way(run, tmp_path, more, words):
    """It would go the whole way, and all else a part of it. The whole way is not refused."""
    base, lora = small_lora(tmp_path, **more)
    edit = ["edit", base, lora, "--as-adapter", *words, "-o", tmp_path / "out"]
    refused = run(*edit, "--wise", "0.5")
    assert refused.code == 2
    assert "tensor 'one." in refused.err
    assert not (tmp_path / "out").exists()
    done(run(*edit, "--wise", "1"))


# -- the promises ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An adapter, and a base and a fine-tune, of so many layers that there is time to be killed in."""
    folder, noise = tmp_path_factory.mktemp("many"), torch.Generator().manual_seed(0)
    names = [f"layers.{number}.proj" for number in range(LAYERS)]
    base = {f"{name}.weight": torch.randn(24, 16, generator=noise) for name in names}
    tuned = {name: each + torch.randn(each.shape, generator=noise) for name, each in base.items()}
    save_file(base, folder / "base.safetensors", {"format": "pt"})
    save_file(tuned, folder / "tuned.safetensors", {"format": "pt"})
    factors = {}
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, 16, generator=noise)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(24, 4, generator=noise)
    (folder / "adapter").mkdir()
    save_file(factors, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


KINDS = {
    "merged": ["base.safetensors", "adapter"],
    "an adapter again": ["-", "adapter", "--as-adapter"],
    "of a whole fine-tune": ["base.safetensors", "tuned.safetensors", "--as-adapter", "--adapter-rank", "3"],
    "at an energy": ["base.safetensors", "tuned.safetensors", "--as-adapter", "--adapter-energy", "0.5"],
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def words_of(folder, kind, out, *options):
    words = [str(folder / word) if (folder / word).exists() else word for word in KINDS[kind]]
    return ["edit", *words, "-o", str(out), *options]


def weights_in(out):
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


@every_kind
def test_the_number_of_workers_does_not_change_the_bytes(run, many, tmp_path, kind):
    for workers in ("1", "3"):
        done(run(*words_of(many, kind, tmp_path / workers, "--workers", workers)))
    assert weights_in(tmp_path / "1") == weights_in(tmp_path / "3")


@every_kind
@pytest.mark.slow
def test_killed_and_resumed(run, many, tmp_path, kind):
    out = tmp_path / "out"
    journal = tmp_path / "out.partial" / "journal"

    def finished():  # a kill may cut the last line, which then does not count
        whole_lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        return sum(line.startswith(b'{"tensor"') for line in whole_lines)

    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "monosoup_cli",
            *words_of(many, kind, out, "--device", "cpu", "--workers", "2"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while finished() < 20 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    count = finished()
    assert 20 <= count < LAYERS
    done(run(*words_of(many, kind, out, "--device", "cpu", "--resume")))
    done(run(*words_of(many, kind, tmp_path / "whole", "--device", "cpu")))
    assert weights_in(out) == weights_in(tmp_path / "whole")
    resumed, whole = report_of(out), report_of(tmp_path / "whole")
    assert resumed["layers"] == whole["layers"]
    share = (LAYERS - count) / LAYERS
    assert resumed["timing"]["bytes_written"] <= share * whole["timing"]["bytes_written"] * 1.01


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-", "adapter"], 2, "--as-adapter"),
        (["-", "tuned.safetensors", "--as-adapter", "--adapter-rank", "4"], 2, "needs a base"),
        (["base.safetensors", "tuned.safetensors", "--as-adapter"], 2, "--adapter-rank"),
        (["base.safetensors", "tuned.safetensors", "--adapter-rank", "4"], 2, "--as-adapter"),
        (["base.safetensors", "adapter", "--as-adapter", "--adapter-rank", "4"], 2, "keeps its ranks"),
        (["adapter", "tuned.safetensors"], 1, "BASE is a LoRA adapter"),
        (["base.safetensors", "tuned.safetensors", "--as-adapter", "--adapter-energy", "1.5"], 2, "energy"),
        (["-", "adapter", "--as-adapter", "--max-shard-size", "1GB"], 2, "--max-shard-size"),
        (["-", "adapter", "--as-adapter", "--wise", "0.5", "--min-update", "1"], 2, "--wise"),
        (["-", "adapter", "--as-adapter", "--wise", "0.5", "--on-nonfinite", "keep"], 2, "--wise"),
        (["-", "adapter", "tuned.safetensors", "--as-adapter"], 2, "one adapter"),
        (
            [
                "base.safetensors",
                "tuned.safetensors",
                "--as-adapter",
                "--adapter-rank",
                "4",
                "--min-update",
                "1",
            ],
            2,
            "--min-update",
        ),
    ],
)
def test_what_makes_no_adapter_is_refused(run, many, tmp_path, words, code, said):
    words = [many / word if (many / word).exists() else word for word in words]
    result = run("edit", *words, "-o", tmp_path / "out")
    assert result.code == code, result.err
    assert said in result.err
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("options", [["--as-adapter"], ["--as-adapter", "--adapter-rank", "4"]])
def test_an_adapter_is_written_to_a_folder(run, many, tmp_path, options):
    source = many / ("tuned.safetensors" if len(options) > 1 else "adapter")
    result = run("edit", many / "base.safetensors", source, "-o", tmp_path / "out.safetensors", *options)
    assert result.code == 2
    assert "a folder" in result.err
    assert everything_in(tmp_path) == {}


def test_a_soup_of_adapters_asks_for_their_base(run, many, tmp_path):
    result = run("soup", many / "adapter", many / "tuned.safetensors", "-o", tmp_path / "out")
    assert result.code == 1
    assert "--base" in result.err
    done(
        run(
            "soup",
            many / "adapter",
            many / "tuned.safetensors",
            "-o",
            tmp_path / "out",
            "--base",
            many / "base.safetensors",
        )
    )
    assert "--base base.safetensors" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_with_nan_is_refused_or_kept(run, many, tmp_path):
    """The tensor's name, and with --on-nonfinite keep the factors as they are."""
    factors = load_file(many / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.layers.3.proj.lora_B.weight"
    factors[name][2, 1] = math.nan
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(factors, broken / "adapter_model.safetensors", {"format": "pt"})
    (broken / "adapter_config.json").write_bytes((many / "adapter" / "adapter_config.json").read_bytes())
    result = run("edit", "-", broken, "-o", tmp_path / "out", "--as-adapter")
    assert result.code == 1
    assert f"tensor '{name}': holds NaN or Inf" in result.err
    done(
        run(
            "edit",
            "-",
            broken,
            "-o",
            tmp_path / "out",
            "--as-adapter",
            "--on-nonfinite",
            "keep",
            "--overwrite",
        )
    )
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(written[name].isnan(), factors[name].isnan())
    assert report_of(tmp_path / "out")["summary"]["kept"] == {"nonfinite": 1}


# -- ids, single files and ties ----------------------------------------------------------------------


def test_ids_of_adapters_and_a_push(run, many, tmp_path):
    """The base is asked for only where it is needed, never because the adapter names it."""
    with Hub(tmp_path / "hub") as hub:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "model.safetensors").write_bytes((many / "base.safetensors").read_bytes())
        hub.add("org/base", tmp_path / "base")
        named = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}
        config = json.dumps({**named, "target_modules": ["proj"]}).encode()
        weights = many / "adapter" / "adapter_model.safetensors"
        hub.add("org/adapter", {"adapter_config.json": config, "adapter_model.safetensors": weights})
        words = [
            "edit",
            "-",
            "org/adapter",
            "-o",
            tmp_path / "again",
            "--as-adapter",
            "--push",
            "owner/again",
        ]
        result = hub.monosoup(*words, home=tmp_path / "home", HF_TOKEN=hub.token)
        assert result.returncode == 0, result.stderr
        assert not any("org/base" in request.path for request in hub.requests)
        pushed = {name: path.read_bytes() for name, path in hub.files("owner/again").items()}
        assert pushed["adapter_config.json"] == config
        assert b"\n- org/base\n" in pushed["README.md"]
        result = hub.monosoup(
            "edit", "org/base", "org/adapter", "-o", tmp_path / "merged", home=tmp_path / "home"
        )
        assert result.returncode == 0, result.stderr
    done(run(*words_of(many, "an adapter again", tmp_path / "local")))
    assert weights_in(tmp_path / "again") == weights_in(tmp_path / "local")
    assert pushed["adapter_model.safetensors"] == weights_in(tmp_path / "local")["adapter_model.safetensors"]
    done(run(*words_of(many, "merged", tmp_path / "whole")))
    assert weights_in(tmp_path / "merged") == weights_in(tmp_path / "whole")


def test_a_file_of_kohya_is_merged_edited_and_written_again(run, tmp_path):
    """`lora_unet_….lora_down.weight` over a UNet's folder; as an adapter it keeps its other tensors."""
    pipeline = unet_pipeline()
    torch.manual_seed(1)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q"]))
    layers = {f"unet.{name}": each for name, each in get_peft_model_state_dict(pipeline.unet).items()}
    kohya = convert_state_dict_to_kohya(layers)
    for name in kohya:
        if name.endswith(".alpha"):
            kohya[name] = torch.tensor(6.0)
        if name.endswith("lora_down.weight"):
            kohya[name] = kohya[name] * 0.4 ** torch.arange(4)[:, None]
    file = tmp_path / "lora.safetensors"
    save_file({name: each.contiguous() for name, each in kohya.items()}, file)
    base = tmp_path / "unet"
    unet_pipeline().unet.save_pretrained(base)
    before, updates = tensors_in(base), {}
    for name in before:
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{key}.lora_up.weight" in kohya:
            up, down = (kohya[f"{key}.lora_{which}.weight"].double() for which in ("up", "down"))
            updates[name] = (6 / 4 * up @ down).numpy()
    assert len(updates) == len(layers) / 2
    done(run("wise", base, file, "-o", tmp_path / "merged", "--alpha", "1"))
    done(run("edit", base, file, "-o", tmp_path / "edited"))
    done(run("edit", base, file, "-o", tmp_path / "again.safetensors", "--as-adapter"))
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == kohya.keys()
    (tmp_path / "folder").mkdir()  # as diffusers saves it; and the mean of two files
    save_file(load_file(file), tmp_path / "folder" / "pytorch_lora_weights.safetensors")
    done(run("edit", base, tmp_path / "folder", file, "-o", tmp_path / "mean"))
    assert all(torch.equal(again[name], kohya[name]) for name in kohya if name.endswith(".alpha"))
    done(run("wise", base, tmp_path / "again.safetensors", "-o", tmp_path / "again", "--alpha", "1"))
    merged, edited, twice = (tensors_in(tmp_path / name) for name in ("merged", "edited", "again"))
    mean = tensors_in(tmp_path / "mean")
    for name, weights in before.items():
        if name not in updates:
            assert torch.equal(merged[name], weights)
            assert torch.equal(edited[name], weights)
            continue
        first = as_matrix(weights)
        oracle.assert_weights_equal(merged[name], first + updates[name])
        expected, measures = oracle.edit(first, first + updates[name])
        assert measures["k"] < 4
        oracle.assert_weights_equal(edited[name], expected)
        oracle.assert_weights_equal(twice[name], expected)
        oracle.assert_weights_equal(mean[name], expected)


def test_a_tied_embedding_replaced_for_one_use_is_refused(run, tmp_path):
    model = build(*MODELS["llama, tied"])
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    result = run("edit", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "out")
    assert result.code == 1
    assert "ties to 'lm_head.weight'" in result.err
    assert not (tmp_path / "out").exists()


# -- what an adapter is beside its tensors -----------------------------------------------------------


def copy_of(folder, adapter):
    """The same adapter, to be changed."""
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_bytes((folder / "adapter" / name).read_bytes())
    return adapter


def test_a_resumed_run_wants_the_same_scale(run, many, tmp_path):
    """The configuration is no tensor, and the bytes depend on it."""
    adapter, out = copy_of(many, tmp_path / "adapter"), tmp_path / "out"
    journal = tmp_path / "out.partial" / "journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "monosoup_cli", "edit", "-", str(adapter), "--as-adapter", "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (journal.exists() and journal.read_bytes().count(b"\n{") > 5) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 80}))
    result = run("edit", "-", adapter, "--as-adapter", "-o", out, "--resume")
    assert result.code == 1
    assert "lora_alpha" in result.err
    assert not out.exists()


def test_experts_are_told_by_their_factors_not_by_their_name(run, tmp_path):
    """A stack that is not called experts: merged it goes the ordinary way, and again as what it is."""
    noise = torch.Generator().manual_seed(0)
    base = {"m.moe.w1": torch.randn(3, 8, 6, generator=noise)}
    save_file(base, tmp_path / "base.safetensors", {"format": "pt"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    a, b = torch.randn(3 * 2, 6, generator=noise), torch.randn(8, 2 * 3, generator=noise)
    a = a * torch.tensor([1.0, 0.3]).repeat(3)[:, None]
    factors = {"base_model.model.m.moe.lora_A.weight": a, "base_model.model.m.moe.lora_B.weight": b}
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_parameters": ["moe.w1"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    update = torch.einsum("ore,eri->eoi", b.double().view(8, 2, 3), a.double().view(3, 2, 6))
    exact = base["m.moe.w1"].double() + update
    done(run("edit", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "flat"))
    flat, _ = oracle.edit(as_matrix(base["m.moe.w1"]), as_matrix(exact))
    oracle.assert_weights_equal(tensors_in(tmp_path / "flat")["m.moe.w1"].flatten(1), flat)
    words = [tmp_path / "base.safetensors", adapter, "--as-adapter"]
    done(run("edit", *words, "-o", tmp_path / "again"))
    done(run("edit", "-", adapter, "--as-adapter", "-o", tmp_path / "alone"))
    assert weights_in(tmp_path / "again") == weights_in(tmp_path / "alone")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    a, b = (again[f"base_model.model.m.moe.lora_{which}.weight"].double() for which in "AB")
    found = torch.einsum("ore,eri->eoi", b.view(8, 2, 3), a.view(3, 2, 6))
    for index in range(3):
        first = base["m.moe.w1"][index].double().numpy()
        expected, measures = oracle.edit(first, exact[index].numpy())
        assert np.abs(first + found[index].numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
        assert report_of(tmp_path / "again")["layers"][0]["slices"][index]["k"] == measures["k"]


def test_nan_in_a_factor_is_kept_where_it_is_told_to_be(run, many, tmp_path):
    adapter = copy_of(many, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    factors["base_model.model.layers.3.proj.lora_B.weight"][2, 1] = math.nan
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    words = ["edit", many / "base.safetensors", adapter, "-o", tmp_path / "out"]
    assert "holds NaN or Inf" in run(*words).err
    done(run(*words, "--on-nonfinite", "keep", "--overwrite"))
    kept = tensors_in(tmp_path / "out")["layers.3.proj.weight"]
    assert kept[2].isnan().all()
    assert not kept[3:].isnan().any()
    done(run(*words, "--on-nonfinite", "keep", "--as-adapter", "--overwrite"))
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == factors.keys()


def test_an_unread_base_is_not_asked_for_twice(run, many, tmp_path):
    """What no adapter changes is read once, however many there are."""
    adapter = copy_of(many, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    factors = {name: each for name, each in factors.items() if ".layers.3." in name}
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    words = [many / "base.safetensors", adapter, copy_of(tmp_path, tmp_path / "other")]
    done(run("edit", *words, "-o", tmp_path / "out", "--quiet"))
    report = report_of(tmp_path / "out")
    assert report["summary"]["kept"] == {"unchanged": LAYERS - 1}
    base = (many / "base.safetensors").stat().st_size
    assert report["inputs"][0]["bytes_read"] <= 1.1 * base


def test_factors_in_the_dtype_that_is_asked_for(run, many, tmp_path):
    words = [many / "base.safetensors", many / "tuned.safetensors", "--as-adapter", "--adapter-rank", "2"]
    done(run("edit", *words, "--dtype", "bfloat16", "-o", tmp_path / "out"))
    assert {each.dtype for each in tensors_in(tmp_path / "out").values()} == {torch.bfloat16}


def test_a_base_for_a_soup_of_whole_checkpoints_is_refused(run, many, tmp_path):
    words = ["soup", many / "tuned.safetensors", many / "base.safetensors", "-o", tmp_path / "out"]
    result = run(*words, "--base", many / "base.safetensors")
    assert result.code == 2
    assert "there are none" in result.err


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.int8, torch.int64])
def test_a_tensor_of_codes_is_not_replaced_by_numbers(run, many, tmp_path, dtype):
    adapter = copy_of(many, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    factors["base_model.model.norm.weight"] = torch.full((5,), -1.45)
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    base = {**load_file(many / "base.safetensors"), "norm.weight": torch.ones(5).to(dtype)}
    save_file(base, tmp_path / "base.safetensors", {"format": "pt"})
    result = run("wise", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "out", "--alpha", "1")
    assert result.code == 1
    assert "of a dtype that cannot be edited: expected" in result.err


def test_people_are_told_what_an_edit_of_adapters_comes_to(run, many, tmp_path):
    """How many updates have no weak part, and what a low rank leaves out."""
    adapter = copy_of(many, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    for key, each in factors.items():  # orthogonal, so that all singular values are alike
        is_b = "lora_B" in key
        basis = torch.linalg.qr(each if is_b else each.T).Q
        factors[key] = (basis if is_b else basis.T).contiguous()
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    result = done(run("edit", "-", adapter, "--as-adapter", "-o", tmp_path / "out"))
    counted = f"in {LAYERS} of {LAYERS} updates, the update has no weak part"
    assert f"{counted}, and the edit keeps it: k reaches the adapter's rank" in " ".join(result.err.split())
    for options, said in (
        (["--weighting", "uniform"], f"{counted}, and the edit multiplies it by 0.5"),
        (["--split", "noise"], "the update has no noise to split off, and the edit keeps it"),
    ):
        words = ["edit", "-", adapter, "--as-adapter", "-o", tmp_path / "out", "--overwrite", *options]
        assert said in " ".join(done(run(*words)).err.split())
    result = done(run(*words_of(many, "of a whole fine-tune", tmp_path / "whole")))
    errors = [layer["adapter_error"] for layer in report_of(tmp_path / "whole")["layers"]]
    assert f"the factors leave out {min(errors):.1%} to {max(errors):.1%}" in result.err


def test_an_adapter_without_its_configuration_is_told_so(run, many, tmp_path):
    adapter = copy_of(many, tmp_path / "adapter")
    (adapter / "adapter_config.json").unlink()
    for base in ("-", many / "base.safetensors"):
        result = run("edit", base, adapter, "-o", tmp_path / "out", "--as-adapter")
        assert result.code == 1
        assert "adapter_config.json is missing next to adapter_model.safetensors" in result.err


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(700, 24), (24, 700)], ids=["tall", "wide"])
def test_trained_rows_are_edited_in_their_place(run, tmp_path, cut, shape, device):
    """By blocks along either side; all other rows stay the base's."""
    noise = torch.Generator().manual_seed(0)
    base = {"embed.weight": torch.randn(shape, generator=noise)}
    save_file(base, tmp_path / "base.safetensors", {"format": "pt"})
    adapter, numbers = tmp_path / "adapter", [17, 3, 22, 9, 0]
    adapter.mkdir()
    scales = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.1])[:, None]
    trained = base["embed.weight"][numbers] + scales * torch.randn(5, shape[1], generator=noise)
    key = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    save_file({key: trained}, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "trainable_token_indices": {"embed": numbers}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    words = [tmp_path / "base.safetensors", adapter, "--device", device]
    done(run("edit", *words, "-o", tmp_path / "again", "--as-adapter"))
    done(run("edit", *words, "-o", tmp_path / "merged"))
    after = base["embed.weight"].clone()
    after[numbers] = trained
    expected, measures = oracle.edit(as_matrix(base["embed.weight"]), as_matrix(after))
    assert measures["k"] < 5
    found = load_file(tmp_path / "again" / "adapter_model.safetensors")[key]
    assert np.abs(found.double().numpy() - expected[numbers]).max() <= 1e-6 * np.abs(expected).max()
    oracle.assert_weights_equal(tensors_in(tmp_path / "merged")["embed.weight"], expected)
    oracle.assert_measures_equal(report_of(tmp_path / "again")["layers"][0], measures)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_adapter_with_a_payload_creates_nothing(run, many, tmp_path):
    adapter = copy_of(many, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(factors, adapter / "adapter_model.bin")
    done(run("edit", "-", adapter, "-o", tmp_path / "out", "--as-adapter"))
    assert weights_in(tmp_path / "out").keys() == {"adapter_model.safetensors"}
    torch.save({**factors, "x": Payload(tmp_path / "created")}, adapter / "adapter_model.bin")
    result = run("edit", "-", adapter, "-o", tmp_path / "bad", "--as-adapter")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert not (tmp_path / "created").exists()
    assert not (tmp_path / "bad").exists()


def test_a_folder_is_no_base_on_the_hub(run, many, tmp_path, monkeypatch):
    """`models/base` could be an id, but is the folder that the adapter was trained on."""
    named = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "models/base"}
    config = tmp_path / "adapter" / "adapter_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({**named, "target_modules": ["proj"]}))
    weights = many / "adapter" / "adapter_model.safetensors"
    (config.parent / weights.name).write_bytes(weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    words = ["edit", "-", config.parent, "--as-adapter", "-o"]
    done(run(*words, tmp_path / "elsewhere"))
    assert "\n- models/base\n" in (tmp_path / "elsewhere" / "README.md").read_text()
    (tmp_path / "models" / "base").mkdir(parents=True)
    done(run(*words, tmp_path / "here"))
    assert "models/base\n" not in (tmp_path / "here" / "README.md").read_text()


def test_factors_in_the_base_that_the_adapter_leaves_alone(run, tmp_path):
    """The output has none of them, so nothing is wrong with it; a whole checkpoint would have them."""
    torch.manual_seed(0)
    stem = "base_model.model.layers.0.q_proj"
    base = {f"layers.0.{name}_proj.weight": torch.randn(8, 8) for name in ("q", "o")}
    base |= {f"layers.0.o_proj.lora_{which}.weight": torch.randn(2, 8) for which in "ab"}
    save_file(base, tmp_path / "base.safetensors")
    (tmp_path / "adapter").mkdir()
    factors = {f"{stem}.lora_A.weight": torch.randn(2, 8), f"{stem}.lora_B.weight": torch.randn(8, 2)}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    inputs = (tmp_path / "base.safetensors", tmp_path / "adapter")
    done(run("edit", *inputs, "-o", tmp_path / "out", "--as-adapter"))
    said = run("edit", *inputs, "-o", tmp_path / "whole").err
    assert "an input has an adapter in it that is not merged into its weights" in said
