"""State dicts as inputs: what comes out is what comes out of safetensors, in as little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

WIDTH = 768


def clip(seed, blocks, base=None):
    """The image side of a CLIP ViT-B/32 with a head, under the names of the model soups; with twelve blocks
    350 MB."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv1.weight": (WIDTH, 3, 32, 32),
        "class_embedding": (WIDTH,),
        "ln_pre.weight": (WIDTH,),
        "positional_embedding": (50, WIDTH),
        "proj": (WIDTH, 512),
    }
    for number in range(blocks):
        block = f"transformer.resblocks.{number}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
            f"{block}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{block}.attn.out_proj.bias": (WIDTH,),
            f"{block}.ln_1.weight": (WIDTH,),
            f"{block}.ln_1.bias": (WIDTH,),
            f"{block}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
            f"{block}.mlp.c_fc.bias": (4 * WIDTH,),
            f"{block}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
            f"{block}.mlp.c_proj.bias": (WIDTH,),
        }
    named = {f"model.visual.{name}": shape for name, shape in shapes.items()}
    named |= {"classification_head.weight": (1000, 512), "classification_head.bias": (1000,)}
    noise = {name: torch.randn(shape, generator=generator) for name, shape in named.items()}
    return noise if base is None else {name: base[name] + 0.02 * each for name, each in noise.items()}


def strided(weights):
    """The same tensors as they may lie in memory: transposed, channels last, views of one storage."""
    turned = dict(weights)
    turned["model.visual.proj"] = weights["model.visual.proj"].t().contiguous().t()
    turned["model.visual.conv1.weight"] = weights["model.visual.conv1.weight"].contiguous(
        memory_format=torch.channels_last
    )
    name = "model.visual.transformer.resblocks.0.attn.in_proj_weight"
    turned[name] = torch.cat([weights[name], weights[name]])[: 3 * WIDTH]
    return turned


WAYS = {
    "flat": lambda weights: weights,
    "wrapped": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
    "of DDP": lambda weights: {f"module.{name}": each for name, each in weights.items()},
    "strided": strided,
}


@pytest.fixture(scope="module")
def small():
    base = clip(0, 1)
    return base, clip(1, 1, base)


@pytest.fixture(scope="module")
def expected(small, tmp_path_factory):
    from monosoup_cli import edit

    folder = tmp_path_factory.mktemp("expected")
    for name, weights in zip(("base", "ft"), small, strict=True):
        save_file(weights, folder / f"{name}.safetensors")
    edit(folder / "base.safetensors", folder / "ft.safetensors", folder / "out.safetensors")
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_the_output_is_that_of_safetensors(run, small, expected, tmp_path, way):
    for name, weights in zip(("base.pt", "ft.bin"), small, strict=True):
        torch.save(WAYS[way](weights), tmp_path / name)
    assert run("edit", tmp_path / "base.pt", tmp_path / "ft.bin", "-o", tmp_path / "out").code == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    of_ddp = "module." if way == "of DDP" else ""
    assert found.keys() == {f"{of_ddp}{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(found[f"{of_ddp}{name}"], tensor), name
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert {entry["reason"] for entry in report["layers"]} == {None, "vector"}


@pytest.mark.parametrize("which", ["base", "ft"])
def test_formats_may_be_mixed_and_wrappers_differ(run, small, expected, tmp_path, which):
    """The names are those of the fine-tuned checkpoint; those of the other are read as such."""
    for name, weights in zip(("base", "ft"), small, strict=True):
        if name == which:
            torch.save(WAYS["of DDP"](weights), tmp_path / f"{name}.safetensors.pt")
        else:
            save_file(weights, tmp_path / f"{name}.safetensors.pt".removesuffix(".pt"))
    sources = [next(tmp_path.glob(f"{name}.*")) for name in ("base", "ft")]
    result = run("edit", *sources, "-o", tmp_path / "out.safetensors")
    assert result.code == 0
    said = "without 'module.'" if which == "base" else "with 'module.' in front"
    assert f"names are read {said} ({len(expected)} tensors)" in result.err
    found = load_file(tmp_path / "out.safetensors")
    of_ddp = "module." if which == "ft" else ""
    assert all(torch.equal(found[f"{of_ddp}{name}"], each) for name, each in expected.items())


def test_what_stands_beside_is_named(run, small, tmp_path):
    for name, weights in zip(("base.pt", "ft.pt"), small, strict=True):
        torch.save(WAYS["wrapped"](weights), tmp_path / name)
    result = run("edit", tmp_path / "base.pt", tmp_path / "ft.pt", "-o", tmp_path / "out", "--dry-run")
    note = f"note: {tmp_path / 'ft.pt'}: not part of the state dict, and left out: epoch, optimizer"
    assert note in result.err


def test_workers_do_not_change_the_bytes_of_strided_tensors(run, small, tmp_path):
    for name, weights in zip(("base.pt", "ft.pt"), small, strict=True):
        torch.save(strided(weights), tmp_path / name)
    for workers in (1, 4):
        words = ["-o", tmp_path / f"{workers}.safetensors", "--workers", workers]
        assert run("edit", tmp_path / "base.pt", tmp_path / "ft.pt", *words).code == 0
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "4.safetensors").read_bytes()


def test_tensors_that_are_put_in_order_count_in_the_plan(run, small, tmp_path):
    plans = {}
    for way in ("flat", "strided"):
        for name, weights in zip(("base", "ft"), small, strict=True):
            torch.save(WAYS[way](weights), tmp_path / f"{name}.pt")
        words = ["-o", tmp_path / "out", "--dry-run", "--format", "json", "--workers", "1", "--device", "cpu"]
        plans[way] = json.loads(run("edit", tmp_path / "base.pt", tmp_path / "ft.pt", *words).out)
    largest = small[0]["model.visual.conv1.weight"].nbytes
    assert plans["strided"]["memory_bytes"] - plans["flat"]["memory_bytes"] == 2 * 2 * largest


MEASURED = """
import sys
from pathlib import Path
import monosoup_cli

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = Path(sys.argv[1])
for size in ("small", "large"):
    monosoup_cli.edit(folder / f"{size}-base.pt", folder / f"{size}-ft.pt", folder / size, workers=1)
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """A pair of 350 MB takes what two of its blocks took before, in the same process."""
    for size, blocks in (("small", 2), ("large", 12)):
        base = clip(0, blocks)
        torch.save(strided(base), tmp_path / f"{size}-base.pt")
        torch.save(strided(clip(1, blocks, base)), tmp_path / f"{size}-ft.pt")
    assert (tmp_path / "large-ft.pt").stat().st_size > 350_000_000
    words = [sys.executable, "-c", MEASURED, tmp_path]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # glibc keeps some of each thread
    measured = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    small, large = map(int, measured.stdout.split())
    assert large - small < 30e6
