"""`inspect_spectrum` against the report of `edit`, NumPy's singular values, `stock` and `sfgs`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import MismatchError, NonfiniteError, UsageError
from tests import oracle, references
from tests.pairs import write_pair

transformers = pytest.importorskip("transformers")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
NEW = {
    *("k_entropy", "k_energy_entropy", "k_noise"),
    *("rounding_sigma", "rank_above_rounding", "rounding_share", "gap_above_rounding", "singular_values"),
}
OF_SEVERAL = {"cosine", "ratio", "clamped", "cosines"}


def files(folder):
    return folder / "base.safetensors", folder / "finetuned.safetensors"


def assert_same(found, expected):
    """A layer or slice of an inspection has all that the edit's has, and the same."""
    assert found.keys() - NEW - OF_SEVERAL == expected.keys()
    for name, value in expected.items():
        if name == "slices":
            for pair in zip(found[name], value, strict=True):
                assert_same(*pair)
        elif isinstance(value, float):
            is_norm = name in ("sigma_max", "update_norm", "relative_update", "effective_rank")
            tolerance = {"rel": 1e-9, "abs": 0} if is_norm else {"rel": 0, "abs": 1e-7}
            assert found[name] == pytest.approx(value, **tolerance), name
        elif name == "spectrum" and value is not None:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-7)
        else:
            assert found[name] == value, name


def assert_same_report(found, expected):
    assert len(found["layers"]) == len(expected["layers"])
    for layers in zip(found["layers"], expected["layers"], strict=True):
        assert_same(*layers)
    for name in ("tensors", "edited", "kept", "parameters_edited"):
        assert found["summary"][name] == expected["summary"][name]
    for name, mean in expected["summary"]["means"].items():
        values, inspected = (
            [summary["means"][name], *(summary["ranges"][name] or ())]
            for summary in (expected["summary"], found["summary"])
        )
        assert inspected == (values if mean is None else pytest.approx(values, rel=1e-9, abs=1e-7)), name
    assert found["only_in_base"] == expected["only_in_base"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("zero_base", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_it_equals_the_report_of_edit(tmp_path, cut, dtype, zero_base, device):
    write_pair(tmp_path, dtype, dtype, zero_base=zero_base)
    found = monosoup_cli.inspect_spectrum(*files(tmp_path), device=device)
    assert_same_report(found, monosoup_cli.edit(*files(tmp_path), tmp_path / "out", device=device))


def perturbed(model):
    """A fine-tune of a real model, some of whose matrices stay."""
    finetuned = type(model)(model.config)
    finetuned.load_state_dict(model.state_dict())
    with torch.no_grad():
        for number, parameter in enumerate(finetuned.parameters()):
            if number % 5:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return finetuned


@pytest.mark.parametrize("options", [{}, {"energy": 0.8}, {"rank": 3, "weighting": "spectral"}], ids=str)
def test_it_equals_the_report_of_edit_on_a_real_model(tmp_path, options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4
    )
    base = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base", max_shard_size="200kB")
    perturbed(base).to(torch.bfloat16).save_pretrained(tmp_path / "ft")
    pair = tmp_path / "base", tmp_path / "ft"
    edited = monosoup_cli.edit(*pair, tmp_path / "out", **options)
    assert {"vector", "unchanged"} <= edited["summary"]["kept"].keys()
    assert_same_report(monosoup_cli.inspect_spectrum(*pair, **options), edited)


def test_it_equals_the_report_of_edit_on_an_exactly_low_rank(tmp_path):
    """Eigenvalues alone would see a thousand values of 1e-8 σ_1 here, and a larger k."""
    rng = np.random.default_rng(0)
    update = rng.integers(-4, 5, (1024, 8)) @ rng.integers(-4, 5, (8, 700)).astype(float)
    save_file({"w": torch.zeros(1024, 700)}, files(tmp_path)[0])
    save_file({"w": torch.from_numpy(update).float()}, files(tmp_path)[1])
    found = monosoup_cli.inspect_spectrum(*files(tmp_path))
    assert_same_report(found, monosoup_cli.edit(*files(tmp_path), tmp_path / "out"))
    assert found["layers"][0]["k"] <= 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_equal_those_of_numpy(tmp_path, cut, dtype, device):
    base, finetuned = write_pair(tmp_path, dtype, dtype, zero_base=False)
    report = monosoup_cli.inspect_spectrum(*files(tmp_path), values=True, device=device)
    for layer in report["layers"]:
        parts = [(base[layer["name"]], finetuned[layer["name"]], layer)]
        if "slices" in layer:
            parts = zip(
                *(content[layer["name"]] for content in (base, finetuned)), layer["slices"], strict=True
            )
        for before, after, part in parts:
            if part["reason"] is not None:
                assert torch.equal(before, after)
                continue
            update = (after.double() - before.double()).reshape(len(before), -1).numpy()
            expected = np.linalg.svd(update, compute_uv=False)
            assert len(part["singular_values"]) == part["rank"]
            np.testing.assert_allclose(part["singular_values"], expected, rtol=0, atol=1e-7 * expected[0])
            above = part["rank_above_rounding"]
            assert above == (expected > part["rounding_sigma"]).sum()
            assert part["rounding_share"] == pytest.approx(expected[above:].sum() / expected.sum(), abs=1e-7)


@pytest.fixture
def family(tmp_path):
    """A base, and three fine-tunes that differ in direction; the third has moved the last tensor alone."""
    rng = np.random.default_rng(3)
    shapes = {
        "blocks.0.weight": (24, 16),
        "blocks.1.weight": (16, 40),
        "mlp.experts.w1": (3, 8, 6),
        "bias": (16,),
        "only.weight": (9, 9),
    }
    contents = [{name: rng.standard_normal(shape) for name, shape in shapes.items()}]
    together = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for number in range(3):
        contents.append(
            {
                name: contents[0][name] + (rng.standard_normal(shape) + together[name] * number) / 10
                for name, shape in shapes.items()
            }
        )
        contents[-1]["only.weight"] = contents[0]["only.weight"] + (number == 2)
    paths = [tmp_path / "base.safetensors", *(tmp_path / f"{number}.safetensors" for number in (1, 2, 3))]
    for path, content in zip(paths, contents, strict=True):
        save_file({name: torch.from_numpy(tensor).float() for name, tensor in content.items()}, path)
    return paths


def test_several_are_edited_as_their_mean(family, tmp_path):
    found = monosoup_cli.inspect_spectrum(family[0], family[1:])
    assert_same_report(found, monosoup_cli.edit(family[0], family[1:], tmp_path / "out"))


def test_cosines_of_every_layer_and_pair(family, cut):
    report = monosoup_cli.inspect_spectrum(family[0], family[1:])
    base, *finetuned = (load_file(path) for path in family)
    cosines = []
    for layer in report["layers"]:
        name = layer["name"]
        if layer["reason"] == "vector":
            assert "cosines" not in layer
            continue
        updates = [(content[name].double() - base[name].double()).numpy() for content in finetuned]
        pairs = [pair for pair in combinations(updates, 2) if any(update.any() for update in pair)]
        expected = [references.cosine(*pair) for pair in pairs]
        found = [cosine for cosine in layer["cosines"] if cosine is not None]
        assert (len(layer["cosines"]), len(found)) == (3, 2 if name == "only.weight" else 3)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        cosines += expected
    similarity = report["similarity"]
    counts, edges = np.histogram(cosines, bins=40, range=(-1, 1))
    assert similarity["histogram"] == {"edges": pytest.approx(edges), "counts": counts.tolist()}


def test_each_checkpoint_is_as_far_from_the_base_as_it_is(family, run):
    """Told apart: a copy of the base, and one of another base."""
    base = load_file(family[0])
    save_file(base, family[2])
    save_file({name: torch.randn_like(tensor) for name, tensor in base.items()}, family[3])
    found = monosoup_cli.inspect_spectrum(family[0], family[1:])["similarity"]["relative_updates"]
    layers = [name for name in base if base[name].ndim > 1]
    norm = sum((base[name].double() ** 2).sum() for name in layers)
    for path, relative in zip(family[1:], found, strict=True):
        other = load_file(path)
        moved = sum(((other[name].double() - base[name].double()) ** 2).sum() for name in layers)
        assert relative == pytest.approx(float((moved / norm) ** 0.5), rel=1e-9)
    out = run("inspect-spectrum", *family).out
    assert re.search(r"^2 .*2\.safetensors +0 +a copy of the base$", out, re.MULTILINE)
    assert re.search(
        r"^3 .*3\.safetensors +1\.\d+ +as large as the weights: wrong base\?$", out, re.MULTILINE
    )


def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path):
    for seed, path in enumerate(files(tmp_path)):
        generator = torch.Generator().manual_seed(seed)
        content = {f"layers.{n}.weight": torch.randn(1024, 1024, generator=generator) for n in range(60)}
        save_file(content, path)
    command = [sys.executable, "-m", "monosoup_cli", "inspect-spectrum", *files(tmp_path), "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--html", tmp_path / "page.html"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    opened = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None and not any(
        os.path.realpath(link) == str(files(tmp_path)[1]) for link in opened.iterdir()
    ):
        time.sleep(0.01)
    time.sleep(0.5)  # headers read, layers at work
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"error: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "finetuned.safetensors"]


def test_what_stock_would_make_of_them(family, tmp_path):
    report = monosoup_cli.inspect_spectrum(family[0], family[1:])
    stock = monosoup_cli.stock(family[0], family[1:], tmp_path / "out")
    of_stock = {layer["name"]: layer for layer in stock["layers"]}
    compared = [layer for layer in report["layers"] if "ratio" in layer]
    assert len(compared) == report["similarity"]["layers"] == 4
    for layer in compared:
        for measure in ("cosine", "ratio", "clamped"):
            assert layer[measure] == pytest.approx(of_stock[layer["name"]][measure], abs=1e-12)
    ratios = [layer["ratio"] for layer in compared]
    expected = {"mean": np.mean(ratios), "min": min(ratios), "max": max(ratios)}
    assert report["similarity"]["stock"]["ratio"] == pytest.approx(expected)


def test_what_sfgs_would_make_of_them(family, tmp_path):
    similarity = monosoup_cli.inspect_spectrum(family[0], family[1:])["similarity"]
    selection = monosoup_cli.sfgs(family[0], family[1:], tmp_path / "out", threshold=0.0)["selection"]
    assert similarity["thresholds"] == selection["thresholds"]
    np.testing.assert_allclose(similarity["similarity"], selection["similarity"], atol=1e-12)


def test_a_layer_that_moved_in_none_is_not_compared(family):
    for path in family[1:]:
        frozen = {**load_file(path), "blocks.0.weight": load_file(family[0])["blocks.0.weight"]}
        save_file(frozen, path)
    report = monosoup_cli.inspect_spectrum(family[0], family[1:])
    (layer,) = (layer for layer in report["layers"] if layer["name"] == "blocks.0.weight")
    assert not OF_SEVERAL & layer.keys()
    assert report["similarity"]["layers"] == 3
    assert sum(report["similarity"]["histogram"]["counts"]) == 8


def test_updates_that_cancel_are_unchanged_and_compared(tmp_path):
    base, update = torch.randn(8, 6), torch.randn(8, 6)
    for name, weights in {"base": base, "one": base + update, "other": base - update}.items():
        save_file({"w": weights.double()}, tmp_path / f"{name}.safetensors")
    save_file({"w": 2 * base.double() - (base + update).double()}, tmp_path / "other.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "other")]
    (layer,) = monosoup_cli.inspect_spectrum(paths[0], paths[1:])["layers"]
    assert (layer["reason"], layer["k"], layer["ratio"]) == ("unchanged", None, 0.0)
    assert layer["cosines"] == [pytest.approx(-1.0)]


def test_it_reads_only_what_it_needs(tmp_path):
    """Vectors, and what --layer leaves out, are not read: not even a NaN in them is found."""
    base = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64), "bias": torch.randn(100_000)}
    finetuned = {name: tensor + 0.1 for name, tensor in base.items()}
    finetuned["bias"][7] = finetuned["b.weight"][3, 3] = torch.nan
    save_file(base, files(tmp_path)[0])
    save_file(finetuned, files(tmp_path)[1])
    report = monosoup_cli.inspect_spectrum(*files(tmp_path), layer="a.*")
    assert {layer["name"]: layer["reason"] for layer in report["layers"]} == {
        "a.weight": None,
        "b.weight": "excluded",
        "bias": "excluded",
    }
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files(tmp_path))
    assert report["timing"]["bytes_read"] <= headers + 2 * 64 * 64 * 4
    assert report["timing"]["bytes_written"] == 0


def test_excluded_layers_may_hold_nan(tmp_path):
    base = {"a.weight": torch.ones(6, 5), "b.mask": torch.full((6, 5), -torch.inf)}
    save_file(base, files(tmp_path)[0])
    save_file({**base, "a.weight": torch.rand(6, 5)}, files(tmp_path)[1])
    report = monosoup_cli.inspect_spectrum(*files(tmp_path), exclude="b.*")
    assert [layer["reason"] for layer in report["layers"]] == [None, "excluded"]


def test_nonfinite_layers_stop_it_or_are_left_out(tmp_path):
    base = {"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 8)}
    finetuned = {"a.weight": base["a.weight"] + 1, "b.weight": base["b.weight"] * torch.inf}
    save_file(base, files(tmp_path)[0])
    save_file(finetuned, files(tmp_path)[1])
    with pytest.raises(NonfiniteError, match=r"b\.weight"):
        monosoup_cli.inspect_spectrum(*files(tmp_path))
    report = monosoup_cli.inspect_spectrum(*files(tmp_path), on_nonfinite="keep")
    assert [layer["reason"] for layer in report["layers"]] == [None, "nonfinite"]


def test_an_update_that_overflows_is_refused(tmp_path):
    save_file({"w": torch.full((8, 8), -1.7e308, dtype=torch.float64)}, files(tmp_path)[0])
    save_file({"w": torch.full((8, 8), 1.7e308, dtype=torch.float64)}, files(tmp_path)[1])
    with pytest.raises(NonfiniteError, match="overflows float64"):
        monosoup_cli.inspect_spectrum(*files(tmp_path))


def test_what_edit_refuses_is_refused(tmp_path):
    save_file({"w": torch.ones(8, 8), "head": torch.ones(4, 8)}, files(tmp_path)[0])
    save_file({"w": torch.zeros(8, 8), "head": torch.ones(5, 8)}, files(tmp_path)[1])
    with pytest.raises(MismatchError, match="shapes differ"):
        monosoup_cli.inspect_spectrum(*files(tmp_path))
    assert monosoup_cli.inspect_spectrum(*files(tmp_path), on_mismatch="keep")["summary"]["edited"] == 1
    with pytest.raises(UsageError, match="matches no tensor"):
        monosoup_cli.inspect_spectrum(*files(tmp_path), layer="nothing.*")
    with pytest.raises(UsageError, match="exclude each other"):
        monosoup_cli.inspect_spectrum(*files(tmp_path), energy=0.8, rank=3)


def test_workers_do_not_change_the_numbers(tmp_path):
    write_pair(tmp_path, torch.bfloat16, torch.bfloat16, zero_base=False)
    reports = [monosoup_cli.inspect_spectrum(*files(tmp_path), workers=workers) for workers in (1, 4)]
    assert reports[0]["layers"] == reports[1]["layers"]
    json.dumps(reports[0], allow_nan=False)


def test_measures_equal_the_oracles(tmp_path):
    base, finetuned = write_pair(tmp_path, torch.float64, torch.float32, zero_base=False)
    for layer in monosoup_cli.inspect_spectrum(*files(tmp_path), energy=0.6)["layers"]:
        if "slices" not in layer:
            matrices = [content[layer["name"]].double() for content in (base, finetuned)]
            _, expected = oracle.edit(*(m.reshape(len(m), -1).numpy() for m in matrices), energy=0.6)
            oracle.assert_measures_equal(layer, expected)
