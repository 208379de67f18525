"""`monosoup cka`: what it compares, and how it shows it."""

import csv
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import UsageError
from tests.features import cka_by_definition, random_features, save

BLOCKS = [f"block-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the features of three models, and the features."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for seed, name in enumerate(("base", "ft", "edited")):
        for number, block in enumerate(BLOCKS):
            drift = seed * number * np.random.default_rng(seed).normal(size=(60, 8 + number))
            features = (random_features(60, 8 + number, number) + drift).astype("<f4")
            found[name, block] = features
            save(folder / name / f"{block}.npy", features)
    return folder, found


def test_blocks_that_do_not_match_are_named(models, run, tmp_path):
    folder, features = models
    few = tmp_path / "few"
    for block in BLOCKS[:6]:
        save(few / f"{block}.npy", features["base", block])
    for words, difference in (
        (
            (folder / "base", few),
            "12 names of .*/base, found no block-6, block-7, block-8, block-9 and 2 more",
        ),
        (
            (few, folder / "base"),
            "6 names of .*/few, found also block-6, block-7, block-8, block-9 and 2 more",
        ),
    ):
        refused = run("cka", *words, "--matching")
        assert refused.code == 1
        assert re.search(f"the blocks do not match: expected the {difference}$", refused.err.strip())


def test_quiet_prints_no_table_beside_a_page(models, run, tmp_path):
    folder, _ = models
    words = ("cka", folder / "base" / "block-0.npy", folder / "ft" / "block-0.npy")
    table = run(*words).out
    page = ("--html", tmp_path / "page.html")
    assert (run(*words, "-q").out, run(*words, *page).out, run(*words, *page, "-q").out) == (table, table, "")
    assert table


def test_every_block_against_every_block(models, run, monkeypatch):
    folder, features = models
    monkeypatch.chdir(folder)
    result = json.loads(run("cka", "base", "ft", "edited", "--format", "json").out)
    assert result == monosoup_cli.cka(["base", "ft", "edited"])
    assert result["samples"] == 60
    matching, *maps = result["maps"]
    assert [(one["first"], one["second"]) for one in maps] == [("base", "ft"), ("base", "edited")]
    for one in maps:
        assert one["rows"] == one["columns"] == BLOCKS
        expected = [
            [cka_by_definition(features["base", row], features[one["second"], column]) for column in BLOCKS]
            for row in BLOCKS
        ]
        assert np.allclose(one["cka"], expected, rtol=1e-9)
    assert (matching["kind"], matching["rows"]) == ("matching", ["base", "ft", "edited"])
    assert np.allclose(matching["cka"][0], 1)
    for row, one in zip(matching["cka"][1:], maps, strict=True):
        assert row == list(np.diag(one["cka"]))


def test_matching_blocks_alone(models, run, monkeypatch):
    folder, _ = models
    monkeypatch.chdir(folder)
    result = monosoup_cli.cka(["base", "ft"], matching=True)
    [one] = result["maps"]
    assert one["cka"] == [
        pytest.approx(row, rel=1e-12) for row in monosoup_cli.cka(["base", "ft"])["maps"][0]["cka"]
    ]
    lines = run("cka", "base", "ft", "--matching").out.splitlines()
    assert lines[0] == "CKA of each block with the same block of base"
    assert lines[-1].split() == ["block-11", "1.00", f"{one['cka'][1][11]:.2f}"]


def test_a_model_alone(models, run, monkeypatch):
    monkeypatch.chdir(models[0])
    [one] = monosoup_cli.cka("base")["maps"]
    assert (one["first"], one["second"]) == ("base", "base")
    assert np.allclose(one["cka"], np.transpose(one["cka"]))
    assert np.allclose(np.diag(one["cka"]), 1)


def test_files(models, run, monkeypatch):
    folder, features = models
    monkeypatch.chdir(folder)
    names = ["base/block-3.npy", "ft/block-7.npy", "edited/block-3.npy"]
    rows = list(csv.DictReader(io.StringIO(run("cka", *names, "--format", "csv").out)))
    assert len(rows) == 9
    for row in rows:
        first, second = (
            features[tuple(row[side].removesuffix(".npy").split("/"))] for side in ("first", "second")
        )
        assert float(row["cka"]) == pytest.approx(cka_by_definition(first, second), rel=1e-9)
        assert (row["kind"], row["first_block"], row["second_block"]) == ("files", "", "")
    table = run("cka", *names).out.splitlines()
    assert table[1].split() == ["1", "2", "3"]
    assert [line.split()[:2] for line in table[2:]] == [
        [str(number), name] for number, name in enumerate(names, 1)
    ]


def test_tensors_of_a_file_are_blocks_in_the_order_of_their_numbers(models, run, tmp_path):
    folder, features = models
    tensors = {
        f"layer.{number}": torch.from_numpy(features["ft", block]).bfloat16()
        for number, block in enumerate(BLOCKS)
    }
    save_file(tensors, tmp_path / "ft.safetensors")
    [one] = monosoup_cli.cka([folder / "base", tmp_path / "ft.safetensors"])["maps"]
    assert one["columns"] == [f"layer.{number}" for number in range(12)]
    rounded = [tensor.double().numpy() for tensor in tensors.values()]
    expected = [cka_by_definition(features["base", "block-11"], values) for values in rounded]
    assert np.allclose(one["cka"][11], expected, rtol=1e-9)


def test_the_page_and_the_picture(models, run, monkeypatch, tmp_path):
    monkeypatch.chdir(models[0])
    page, picture = tmp_path / "cka.html", tmp_path / "cka.svg"
    result = run("cka", "base", "ft", "--html", page, "--plot", picture)
    assert result.err.splitlines() == [f"wrote {page}", f"wrote {picture}"]
    found = monosoup_cli.cka(["base", "ft"])
    text = page.read_text()
    assert "<title>CKA of each block with the same block of base · monosoup cka</title>" in text
    assert text.count("<td style=") == 2 * 12 + 12 * 12
    assert f'title="{found["maps"][1]["cka"][3][4]}"' in text
    drawn = "".join(ET.parse(picture).getroot().itertext())
    assert "CKA of each block with the same block of base" in drawn
    assert f"{found['maps'][0]['cka'][1][11]:.2f}" in drawn


def test_names_are_text_on_the_page_and_features_that_do_not_vary_are_gaps(tmp_path, run):
    evil = "<img src=x onerror=alert(1)>&$x"
    save(tmp_path / "a" / f"{evil}.npy", np.ones((3, 2)))
    page, picture = tmp_path / "cka.html", tmp_path / "cka.png"
    result = run("cka", tmp_path / "a", "--html", page, "--plot", picture)
    assert result.out.splitlines()[-1].split()[-1] == "–"
    assert result.err.splitlines()[0] == "note: – stands where features do not vary: they have no CKA"
    assert "<img" not in page.read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;$x" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert monosoup_cli.cka(tmp_path / "a")["maps"][0]["cka"] == [[None]]


@pytest.mark.parametrize(("samples", "is_noted"), [(4, True), (5, False)])
def test_samples_that_are_too_few_are_noted(tmp_path, run, samples, is_noted):
    for number in range(2):
        save(tmp_path / f"{number}.npy", random_features(samples, 5 - number, number))
    done = run("cka", tmp_path / "0.npy", tmp_path / "1.npy")
    assert ("note: 4 samples of 5 features: with so few" in done.err) is is_noted


@pytest.mark.parametrize("is_file", [False, True])
def test_a_block_with_nan_is_named_once(tmp_path, run, is_file):
    values = np.array([[1.0, 2.0], [np.nan, 3.0]])
    save(tmp_path / "ft" / "block.npy", values)
    save_file({"block": torch.from_numpy(values)}, tmp_path / "ft.safetensors")
    path = tmp_path / ("ft.safetensors" if is_file else "ft")
    where = f"{path}: tensor 'block'" if is_file else str(path / "block.npy")
    assert run("cka", path).err.strip() == f"error: {where}: has NaN or Inf"


def test_options_are_keywords_in_python(models):
    with pytest.raises(UsageError, match="matching compares models"):
        monosoup_cli.cka([models[0] / "base" / "block-1.npy"] * 2, matching=True)


MEASURED = """
import sys
from pathlib import Path
import monosoup_cli
from monosoup_cli.spectral import cka

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

cka.HELD_BYTES, cka.BLOCK_BYTES = map(int, sys.argv[1:])
peaks = []
for size in ("small", "large"):
    monosoup_cli.cka([f"{size}-{name}.npy" for name in "ab"])
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize(
    ("shape", "held", "block", "bound"),
    [
        pytest.param((2_000_000, 16), 512 << 20, 64 << 20, 128e6, id="many samples"),
        pytest.param((32, 1_000_000), 512 << 20, 64 << 20, 128e6, id="many features"),
        pytest.param((1500, 1400), 2 << 20, 1 << 20, 30e6, id="large products of features"),
        pytest.param((1400, 1500), 2 << 20, 1 << 20, 30e6, id="large products of samples"),
    ],
)
def test_neither_features_nor_products_need_fit_into_memory(tmp_path, shape, held, block, bound):
    """Files of 128 MB each, or three products of 16 MB each. The files are holes."""
    for name in "ab":
        save(
            tmp_path / f"small-{name}.npy", random_features(*(min(size, 64) for size in shape)).astype("<f4")
        )
        np.lib.format.open_memmap(tmp_path / f"large-{name}.npy", "w+", "<f4", shape)
    command = [sys.executable, "-c", MEASURED, str(held), str(block)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) < bound


@pytest.mark.parametrize("free", [400 << 20, 280 << 20])
def test_less_memory_takes_more_passes_or_is_refused_before_reading(models, run, monkeypatch, free):
    from monosoup_cli.devices import host
    from monosoup_cli.sources.features import Features

    folder, _ = models
    whole = monosoup_cli.cka([folder / "base", folder / "ft"])
    monkeypatch.setattr(host, "free_bytes", lambda: free)
    result = ("cka", folder / "base", folder / "ft", "--format", "json")
    if free > 300 << 20:
        assert json.loads(run(*result).out) == whole
    else:
        monkeypatch.delattr(Features, "read")
        refused = run(*result)
        assert refused.code == 1
        assert "expected 302 MB free, found 294 MB" in refused.err
