"""How the work of a run is divided among machines."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.pipeline.ready import lay_out
from monosoup_cli.pipeline.shares import UNEVEN, shares_of
from tests.benchmarks.scale import shapes, write_headers


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run over the headers of a model of 671B parameters."""
    root = tmp_path_factory.mktemp("large")
    for name in ("base", "ft"):
        write_headers(root / name, shapes(), 163)
    with monosoup_cli.edit.prepare(root / "base", root / "ft", root / "out", device="cpu") as planned:
        yield lay_out(planned)


def divided(ready, count):
    return shares_of(ready.plan, ready.form.layout, ready.form.parts(), ready.planned.inputs.finetuned, count)


def check_whole(ready, shares):
    """Every tensor is made once, and every file is written by one share, or in pieces that make all of it."""
    made = Counter(name for share in shares for name in share.names)
    assert made == Counter({tensor.name: 1 for tensor in ready.plan.tensors})
    bytes_of = Counter()
    owners = Counter()
    for share in shares:
        for file in share.layout.files:
            name = share.pieces.get(file.name, file.name)
            bytes_of[name] += file.header.data_bytes
            owners[name] += file.name not in share.pieces
    files = ready.form.layout.files
    assert bytes_of == Counter({file.name: file.header.data_bytes for file in files})
    assert all(owners[file.name] <= 1 for file in files)
    return sum(owners[file.name] == 0 for file in files)


@pytest.mark.parametrize(("count", "most_cut"), [(1, 0), (8, 0), (16, 0), (40, 40), (128, 163)])
def test_shares_are_even_and_cut_no_more_files_than_they_need(large, count, most_cut):
    shares = divided(large, count)
    costs = shares[0].costs
    assert max(costs) <= UNEVEN * sum(costs) / count
    assert check_whole(large, shares) <= most_cut
    assert [share.part.number for share in shares] == [*range(1, count + 1)]


def test_a_single_file_is_cut_and_more_parts_than_tensors_are_empty(tmp_path):
    for seed, name in enumerate(("base", "ft")):
        generator = torch.Generator().manual_seed(seed)
        some = {f"{number}.weight": torch.randn(8, 6, generator=generator) for number in range(3)}
        save_file(some, tmp_path / f"{name}.safetensors")
    inputs = (tmp_path / "base.safetensors", tmp_path / "ft.safetensors", tmp_path / "out.safetensors")
    with monosoup_cli.edit.prepare(*inputs, device="cpu") as planned:
        ready = lay_out(planned)
        shares = divided(ready, 5)
        assert check_whole(ready, shares) == 1
        assert sorted(len(share.names) for share in shares) == [0, 0, 1, 1, 1]
    for number in range(5, 0, -1):
        monosoup_cli.edit(*inputs, device="cpu", part=f"{number}/5")
    monosoup_cli.finish(inputs[-1])
    assert monosoup_cli.verify(inputs[-1], again=True)["differences"] == []


PROGRAM = """
import json, sys, monosoup_cli
from monosoup_cli.pipeline.ready import lay_out
found = []
for part in ("1/3", "2/3", "3/3"):
    with monosoup_cli.edit.prepare(*sys.argv[1:], device="cpu", part=part) as planned:
        share = lay_out(planned).share
        found.append([sorted(share.names), [file.name for file in share.layout.files], share.costs])
print(json.dumps(found))
"""


def test_shares_are_the_same_in_every_process(tmp_path):
    for name in ("base", "ft"):
        tensors = {f"{number}.weight": (8 + number % 5, 6) for number in range(40)}
        write_headers(tmp_path / name, tensors, 5)
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("base", "ft", "out"))],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(json.loads(found[0])) == 3
