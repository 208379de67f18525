"""An output that several machines make: `--part I/N` on each, and `finish`. The bytes are those of one run."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import OutputError, UsageError
from monosoup_cli.outputs.workplace import partial_path, parts_path
from monosoup_cli.pipeline.destination import part_path
from monosoup_cli.options import Part
from tests.outputs.forks import Forks

SHAPES = {"q": (24, 24), "up": (40, 24), "small": (6, 5), "norm": (24,)}
SHARDS = 4


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.layers.{n}.{kind}.weight": shape for n in range(5) for kind, shape in SHAPES.items()}
    shapes["model.embed_tokens.weight"] = (90, 24)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, seed, dtype):
    """A model of a base and a change, in shards, with a configuration and a card."""
    base, change = tensors(0), tensors(seed)
    whole = {name: (one + 0.1 * seed * change[name]).to(dtype) for name, one in base.items()}
    folder.mkdir()
    names = sorted(whole)
    homes = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        some = {name: whole[name] for name in names[number::SHARDS]}
        save_file(some, folder / file, {"format": "pt"})
        homes |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(whole, folder.with_suffix(".safetensors"), {"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with `base`, `one` and `two`, each as a folder of shards and as a file; and an adapter."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        write(place / name, seed, torch.bfloat16)
    adapter = place / "adapter"
    adapter.mkdir()
    generator = torch.Generator().manual_seed(7)
    factors = {}
    for number in range(5):
        for kind, (rows, columns) in (("q", (24, 24)), ("up", (40, 24))):
            name = f"base_model.model.model.layers.{number}.{kind}"
            factors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
            factors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "up"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return place


COMMANDS = {
    "edit": ("edit", "base", "one"),
    "edit of one file": ("edit", "base.safetensors", "one.safetensors"),
    "edit, a sweep": ("edit", "base", "one", "--energy", "0.5,0.9"),
    "edit, other shards": ("edit", "base", "one", "two", "--max-shard-size", "6kB"),
    "soup": ("soup", "one", "two"),
    "stock": ("stock", "base", "one", "two"),
    "sfgs": ("sfgs", "base", "one", "two", "--threshold", "-1"),
    "wise, a sweep": ("wise", "base", "one", "--alpha", "0:1:0.25"),
    "lines": ("lines", "base", "one", "--alpha", "0.3", "--beta", "0.7"),
    "an adapter": ("edit", "base", "adapter", "--as-adapter"),
    "an adapter alone": ("edit", "-", "adapter", "--as-adapter"),
    "an adapter, merged": ("edit", "base", "adapter"),
    "an extracted adapter": ("edit", "base", "one", "--as-adapter", "--adapter-rank", "3"),
}
TIMES = ("timing", "inputs")


def contents(out):
    """Every file of an output, with reports without times."""
    paths = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    paths += [out.with_suffix(".report.json")] if out.is_file() else []
    found = {}
    for path in paths:
        data = path.read_bytes()
        if path.name.endswith("report.json"):
            report = json.loads(data)
            assert report["timing"].keys() == {"seconds", "bytes_read", "bytes_written"}
            for entry in report["inputs"]:
                entry.pop("bytes_read")
            del report["timing"], report["arguments"]["overwrite"]
            data = json.dumps(report)
        found[path.name if out.is_file() else path.relative_to(out).as_posix()] = data
    return found


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """What one run of a command writes: a function of its name and its output's name."""
    made = {}

    def run(name):
        if name not in made:
            place = tmp_path_factory.mktemp("whole")
            command, *sources, out = words(name, models, place)
            code = main_quietly(command, *sources, "-o", out)
            assert code == 0
            made[name] = contents(out)
            shutil.rmtree(place)
        return made[name]

    return run


def main_quietly(*argv):
    from monosoup_cli.cli.app import main

    return main([*map(str, argv), "--quiet"])


def words(name, models, place):
    """The words of a command, and its output at a place; inputs are named relative to the models."""
    os.chdir(models)
    command = COMMANDS[name]
    return (*command, place / ("out.safetensors" if "one file" in name else "out"))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("name", COMMANDS)
def test_parts_make_the_bytes_of_one_run(models, whole, tmp_path, monkeypatch, name, count):
    """In any order; the report is the same but for times."""
    monkeypatch.chdir(models)
    *command, out = words(name, models, tmp_path)
    order = [*range(1, count + 1)]
    random.Random(count).shuffle(order)
    for number in order:
        assert main_quietly(*command, "-o", out, "--part", f"{number}/{count}") == 0
        assert not out.exists()
    assert main_quietly("finish", out) == 0
    expected = {key: value for key, value in whole(name).items()}
    found = contents(out)
    assert found.keys() == expected.keys()
    for key, data in expected.items():
        if key.endswith("report.json"):
            assert without_place(found[key]) == without_place(data)
        else:
            assert found[key] == data, key
    assert not parts_path(out).exists()
    assert not partial_path(out).exists()
    assert monosoup_cli.verify(out)["differences"] == []


def without_place(text):
    report = json.loads(text)
    for one in report.get("outputs", [report.get("output")]):
        one["path"] = os.path.basename(one["path"])
    report["arguments"]["output"] = report["arguments"]["report"] = None
    return report
