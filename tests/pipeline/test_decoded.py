"""What is decoded is treated as its decoded copy, and the output is an ordinary checkpoint."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from monosoup_cli.cli.app import main
from tests.hub import Hub
from tests.models import CAUSAL, build, step
from tests.oracle import assert_weights_equal
from tests.oracle import edit as oracle_edit
from tests.peft_adapters import make
from tests.schema import assert_valid

E4M3 = torch.float8_e4m3fn
BLOCK = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=[16, 16], scale_fmt=""))


class Blocks:
    """As transformers writes it."""

    words = "fp8 with block scales"
    settings: ClassVar = {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "modules_to_not_convert": ["lm_head"],
    }
    beside: ClassVar = {}

    def encode(self, name, weights):
        return Fp8Quantize(BLOCK).convert({name: weights})

    def decode(self, name, tensors):
        return Fp8Dequantize(BLOCK)._dequantize_one(
            tensors[name], tensors[f"{name}_scale_inv"], torch.float32
        )


class Channels:
    """As compressed-tensors writes it."""

    words = "fp8 with a scale per channel"
    weights: ClassVar = {
        "num_bits": 8,
        "type": "float",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
    }
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    settings: ClassVar = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    beside: ClassVar = {}

    def encode(self, name, weights):
        scales = (weights.abs().amax(1, keepdim=True) / 448).bfloat16()
        tensors = {"weight": weights, "weight_scale": scales}
        made = BaseCompressor.get_value_from_registry("float-quantized").compress(tensors, self.scheme)
        return {name: made["weight"], f"{name}_scale": made["weight_scale"]}

    def decode(self, name, tensors):
        return tensors[name].float() * tensors[f"{name}_scale"].float()


class Tensors:
    """As ModelOpt writes it, with scales of activations and of the cache, and a file of its own."""

    words = "fp8 with a scale per tensor"
    settings: ClassVar = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    beside: ClassVar = {"hf_quant_config.json": '{"quantization": {"quant_algo": "FP8"}}'}

    def encode(self, name, weights):
        scale = weights.abs().max() / 448
        stem = name.removesuffix("weight")
        extra = {f"{stem}k_scale": torch.tensor(1.0)} if "k_proj" in name else {}
        return {
            name: (weights / scale).to(E4M3),
            f"{name}_scale": scale,
            f"{stem}input_scale": torch.tensor(0.1),
            **extra,
        }

    def decode(self, name, tensors):
        return tensors[name].float() * tensors[f"{name}_scale"]


class Casts:
    """As somebody cast it."""

    words = "fp8 without scales"
    settings = None
    beside: ClassVar = {}

    def encode(self, name, weights):
        return {name: weights.to(E4M3)}

    def decode(self, name, tensors):
        return tensors[name].float()


ENCODINGS = {kind.__name__.lower(): kind() for kind in (Blocks, Channels, Tensors, Casts)}
encodings = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)


def write(folder, tensors, config, *, shards=1):
    """A folder as transformers has it; of two shards, one has all scales."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: names["scale" in name] for name in tensors}
    for file in names:
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def encoded(model, encoding, folder, plain=None, **options):
    """Write a model with its projections as codes, and to `plain` with what these stand for, in float32."""
    dtype = "float16" if encoding.settings else "float8_e4m3fn"
    config = {**json.loads(model.config.to_json_string()), "dtype": dtype}
    stored, decoded = {}, {}
    for name, weights in model.state_dict().items():
        if "_proj" in name:
            tensors = encoding.encode(name, weights.float())
            stored |= tensors
            decoded[name] = encoding.decode(name, tensors)
        else:
            stored[name] = weights.bfloat16()
            decoded[name] = stored[name].float()
    settings: ClassVar = {} if encoding.settings is None else {"quantization_config": encoding.settings}
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    write(folder, stored, {**config, **settings}, **options)
    for name, text in encoding.beside.items():
        (folder / name).write_text(text)
    if plain is not None:
        write(plain, decoded, config)
    return folder


@pytest.fixture
def models(tmp_path, request):
    """A base and three fine-tunes of it, each as codes and in float32."""
    encoding = request.getfixturevalue("encoding")
    base = build("LlamaForCausalLM", CAUSAL)
    folders = [tmp_path / name for name in ("base", "ft1", "ft2", "ft3")]
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        model = copy.deepcopy(base)
        if number:
            with torch.no_grad():
                for weights in model.parameters():
                    weights += 0.01 * torch.randn(weights.shape) * (weights.ndim > 1)
        encoded(model, encoding, folder, folder.with_name(f"{folder.name}-plain"))
    return folders


def tensors_of(folder):
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    return {
        f"{file.relative_to(folder).parent}/{name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def plain(folder):
    return folder.with_name(f"{folder.name}-plain")


def succeed(*words):
    assert main([str(word) for word in words]) == 0


def assert_same(one, other):
    found, expected = tensors_of(one), tensors_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def loads(out):
    """transformers loads the output in bfloat16, and nothing is missing or left over."""
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert {weights.dtype for weights in model.parameters()} == {torch.bfloat16}
    return model


COMMANDS = {
    "edit": ("edit", 0, 1),
    "sweep": ("edit", 0, 1, "--energy", "0.5,0.9", "--wise", "0.5,1"),
    "mean": ("edit", 0, 1, 2),
    "wise": ("wise", 0, 1, "--alpha", "0.3"),
    "soup": ("soup", 1, 2, 3),
    "stock": ("stock", 0, 1, 2),
    "lines": ("lines", 0, 1, "--alpha", "0.5", "--beta", "0.5"),
}


@pytest.mark.parametrize("command", COMMANDS)
@encodings
def test_a_run_is_that_of_the_decoded_copies(models, tmp_path, encoding, command):
    """Float32 copies of what the library decodes give the same bits, whichever of the inputs are codes."""
    words = COMMANDS[command]
    inputs = [word for word in words if isinstance(word, int)]
    copies = [plain(models[word]) if isinstance(word, int) else word for word in words]
    succeed(*copies, "-o", tmp_path / "whole", "--dtype", "bfloat16")
    for which in ({*inputs}, {inputs[0]}, {inputs[-1]}):
        paths = [models[word] if word in which else plain(models[word]) for word in inputs]
        out = tmp_path / f"out-{'-'.join(map(str, which))}"
        options = [word for word in words[1:] if isinstance(word, str)]
        succeed(words[0], *paths, *options, "-o", out, "--dtype", "bfloat16")
        assert_same(out, tmp_path / "whole")


@encodings
def test_the_output_is_an_ordinary_model(models, tmp_path, run, encoding):
    base, finetuned, *_ = models
    out = tmp_path / "out"
    result = run("edit", base, finetuned, "-o", out)
    assert result.code == 0
    assert f"note: {finetuned}: decoded from {encoding.words} (14 tensors)\n" in result.err
    assert (
        "note: the output is bfloat16, without quantization_config: its weights were decoded\n" in result.err
    )
    loads(out)
    report = json.loads((out / "monosoup_report.json").read_text())
    assert_valid(report)
    assert [one["decoded"] for one in report["inputs"]] == [{encoding.words: 14}] * 2
    assert any("decoded" in note for note in report["notes"])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert not (out / "hf_quant_config.json").exists()
    values = [tensors_of(plain(folder)) for folder in (base, finetuned)]
    for name, found in tensors_of(out).items():
        before, after = (tensors[name] for tensors in values)
        if found.ndim < 2:
            assert torch.equal(found, after.bfloat16())
        else:
            assert_weights_equal(found, oracle_edit(before.double().numpy(), after.double().numpy())[0])
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    old = json.loads((finetuned / "config.json").read_text())
    assert {**old, "dtype": 0, "quantization_config": 0} == {**config, "dtype": 0, "quantization_config": 0}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@encodings
def test_another_dtype(models, tmp_path, run, encoding, dtype):
    result = run("wise", *models[:2], "-o", tmp_path / "out", "--alpha", "0.3", "--dtype", dtype)
    assert result.code == 0
    assert f"note: the output is {dtype}, without" in result.err
    words = [plain(models[0]), plain(models[1]), "--alpha", "0.3", "--dtype", dtype]
    succeed("wise", *words, "-o", tmp_path / "whole")
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("encoding", [ENCODINGS["blocks"]], ids=["blocks"])
def test_what_is_kept_is_as_transformers_decodes_it(models, tmp_path, encoding):
    """Its own loader, which decodes where there is no card, gives the same bits."""
    base, finetuned, *_ = models
    succeed("edit", base, finetuned, "-o", tmp_path / "out", "--exclude", "*")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finetuned, dtype=torch.bfloat16).state_dict()
    ours = loads(tmp_path / "out").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@encodings
def test_what_the_base_lacks_is_written_decoded(models, tmp_path, run, encoding):
    base, finetuned, *_ = models
    tensors = load_file(plain(base) / "model.safetensors")
    fewer = {name: tensor for name, tensor in tensors.items() if "k_proj" not in name}
    save_file(fewer, tmp_path / "fewer.safetensors")
    succeed("edit", tmp_path / "fewer.safetensors", finetuned, "-o", tmp_path / "out")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(plain(finetuned))
    (kept,) = {name for name in expected if "layers.1" in name and "k_proj" in name}
    assert torch.equal(found[kept], expected[kept].bfloat16())
    loads(tmp_path / "out")


@encodings
def test_a_base_of_codes_under_a_plain_fine_tune(models, tmp_path, run, encoding):
    """The output is as the fine-tune is, and nothing is said of it."""
    base, finetuned, *_ = models
    result = run("edit", base, plain(finetuned), "-o", tmp_path / "out")
    assert result.code == 0
    assert "decoded from" in result.err
    assert "only one of base and fine-tuned checkpoint is stored as codes" in result.err
    assert "without quantization_config" not in result.err
    both = run("edit", base, finetuned, "-o", tmp_path / "both")
    assert "only one of base" not in both.err
    config, old = ((one / "config.json").read_bytes() for one in (tmp_path / "out", plain(finetuned)))
    assert config == old
    succeed("edit", plain(base), plain(finetuned), "-o", tmp_path / "whole")
    assert_same(tmp_path / "out", tmp_path / "whole")


@encodings
def test_an_adapter_over_codes(models, tmp_path, run, encoding):
    """It is merged into what the codes stand for, and an adapter of the same run is that of the copies."""
    base = models[0]
    adapter = make("linear", tmp_path).adapter
    for words, name in (([], "whole"), (["--as-adapter"], "adapter")):
        for path, out in ((base, f"{name}-codes"), (plain(base), f"{name}-plain")):
            words_of = [path, adapter, "-o", tmp_path / out, *words]
            succeed("edit", *words_of, *([] if words else ["--dtype", "bfloat16"]))
        assert_same(tmp_path / f"{name}-codes", tmp_path / f"{name}-plain")
    loads(tmp_path / "whole-codes")
    again = run("edit", base, adapter, "-o", tmp_path / "again")
    assert "only one of base" not in again.err  # its update has no codes


@encodings
def test_an_extracted_adapter(models, tmp_path, run, encoding):
    base, finetuned, *_ = models
    words = ["--as-adapter", "--adapter-rank", "4", "-o"]
    result = run("edit", base, finetuned, *words, tmp_path / "out")
    assert result.code == 0
    assert "without quantization_config" not in result.err
    succeed("edit", plain(base), plain(finetuned), *words, tmp_path / "whole")
    assert_same(tmp_path / "out", tmp_path / "whole")


@encodings
def test_an_inspection(models, run, encoding):
    words = ["--format", "json"]
    found, expected = (
        json.loads(run("inspect-spectrum", *pair, *words).out)
        for pair in (models[:2], [plain(folder) for folder in models[:2]])
    )
    assert any("decoded from" in note for note in found["notes"])
    assert len(found["layers"]) == len(expected["layers"])
    for ours, theirs in zip(
        *(sorted(one["layers"], key=lambda layer: layer["name"]) for one in (found, expected)), strict=True
    ):
        assert ours.keys() == theirs.keys()
        of_dtypes = {"dtype", *(key for key in ours if "rounding" in key)}  # those of the copies are others
        assert all(ours[key] == theirs[key] for key in ours.keys() - of_dtypes)


@pytest.mark.parametrize("options", [(), ("--max-shard-size", "30kB"), "one file"], ids=str)
@encodings
def test_shards(tmp_path, run, encoding, options):
    """Scales lie in a shard of their own, of which nothing is left; a dry run knows the sizes."""
    base = build("LlamaForCausalLM", CAUSAL)
    folders = [tmp_path / "base", tmp_path / "ft"]
    for model, folder in zip((base, step(copy.deepcopy(base))), folders, strict=True):
        encoded(model, encoding, folder, plain(folder), shards=2 if encoding.settings else 1)
    out = tmp_path / ("out.safetensors" if options == "one file" else "out")
    words = ["edit", *folders, "-o", out, *(options if isinstance(options, tuple) else ())]
    planned = json.loads(run(*words, "--dry-run", "--format", "json").out)
    succeed(*words)
    files = [out] if out.is_file() else sorted(out.glob("*.safetensors"))
    assert {file.name: file.stat().st_size for file in files} == {
        file["name"]: file["bytes"] for file in planned["output"]["files"]
    }
    succeed("edit", *map(plain, folders), "-o", tmp_path / "whole", "--dtype", "bfloat16")
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if out.is_dir():
        loads(out)
    if (out / "model.safetensors.index.json").exists():
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
        assert {*index["weight_map"].values()} == {file.name for file in files}


LAYERS = 400


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("blocks", "channels", "tensors"), ("casts",)], ids="-".join)
def test_killed_and_resumed(tmp_path, kinds):
    generator = torch.Generator().manual_seed(0)
    settings = ENCODINGS[kinds[0]].settings
    for folder in (tmp_path / "base", tmp_path / "ft"):
        weights = {
            f"layers.{n}.w_proj.weight": torch.randn(32, 32, generator=generator) for n in range(LAYERS)
        }
        tensors = {}
        for number, (name, each) in enumerate(weights.items()):
            tensors |= ENCODINGS[kinds[number % len(kinds)]].encode(name, each)
        write(folder, tensors, {"quantization_config": settings} if settings else {}, shards=2)
    out = tmp_path / "out"
    words = ["edit", *(str(tmp_path / name) for name in ("base", "ft")), "-o", str(out), "--device", "cpu"]
    journal = tmp_path / "out.partial" / "journal"
    process = subprocess.Popen([sys.executable, "-m", "monosoup_cli", *words], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    succeed(*words, "--resume")
    succeed(*words, "-o", tmp_path / "whole")
    files = sorted(path.name for path in out.iterdir() if path.name != "monosoup_report.json")
    assert len(files) == 4  # weights, index, configuration, card
    for name in set(files) - {"README.md"}:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_from_the_hub_and_to_it(tmp_path):
    """The scales of a layer lie in another shard than its codes, and are fetched with them."""
    base = build("LlamaForCausalLM", CAUSAL)
    folders = [tmp_path / "base", tmp_path / "ft"]
    for model, folder in zip((base, step(copy.deepcopy(base))), folders, strict=True):
        encoded(model, ENCODINGS["blocks"], folder, shards=2)
    succeed("edit", *folders, "-o", tmp_path / "whole", "--device", "cpu")
    with Hub(tmp_path / "hub") as hub:
        for folder in folders:
            hub.add(f"org/{folder.name}", folder)
        ids = ["org/base", "org/ft"]
        words = ["--layer", "*.1.*q_proj*", "--format", "json"]
        looked = hub.monosoup("inspect-spectrum", *ids, *words, home=tmp_path / "home-1")
        assert looked.returncode == 0, looked.stderr
        layers = json.loads(looked.stdout)["layers"]
        assert sum(layer["action"] == "edited" for layer in layers) == 1
        out = tmp_path / "out"
        words = ["-o", out, "--device", "cpu", "--push", "owner/new"]
        done = hub.monosoup("edit", *ids, *words, home=tmp_path / "home-2", HF_TOKEN=hub.token)
        assert done.returncode == 0, done.stderr
        assert_same(out, tmp_path / "whole")
        pushed = hub.files("owner/new")
        assert "quantization_config" not in json.loads(pushed["config.json"].read_text())
        card = pushed["README.md"].read_text()
        assert "org/base" in card
        assert "org/ft" in card
