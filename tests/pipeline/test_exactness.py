"""The edited files against the float64 oracle, for every kind of tensor and dtype."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from tests import oracle
from tests.pairs import orthogonal, write_pair

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(report, found, base, finetuned, **options):
    for layer in report["layers"]:
        name = layer["name"]
        pairs = [(base[name], finetuned[name], found[name], layer)]
        if "experts" in name:
            pairs = list(zip(base[name], finetuned[name], found[name], layer["slices"], strict=True))
        for before, after, edited, measures in pairs:
            shape = (before.shape[0], -1)
            matrices = [t.double().numpy().reshape(shape) for t in (before, after)]
            reference, expected = oracle.edit(*matrices, **options)
            if expected is None:
                assert layer["reason"] == "unchanged"
                assert torch.equal(edited, after)
                continue
            oracle.assert_measures_equal(measures, expected)
            oracle.assert_weights_equal(edited.reshape(shape), reference)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("zero_base", [False, True])
@pytest.mark.parametrize(
    ("base_dtype", "finetuned_dtype"),
    [*zip(DTYPES, DTYPES, strict=True), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_every_kind_and_dtype(tmp_path, cut, base_dtype, finetuned_dtype, zero_base, device):
    base, finetuned = write_pair(tmp_path, base_dtype, finetuned_dtype, zero_base=zero_base)
    out = tmp_path / "out.safetensors"
    report = monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", out, device=device
    )
    found = load_file(out)
    assert {name: t.dtype for name, t in found.items()} == dict.fromkeys(finetuned, finetuned_dtype)
    check(report, found, base, finetuned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.8},
        {"energy": 0.25},
        {"energy": 1.0},
        {"rank": 1},
        {"rank": 10},
        {"rank": 10**6},
        {"rank_fraction": 0.25},
        {"rank_fraction": 1.0},
        {"split": "energy-entropy"},
        {"split": "noise"},
        {"split": "noise", "weighting": "high"},
        {"wise": 0.3},
        {"wise": 0.0},
        *({"weighting": name} for name in ("spectral", "alignment", "uniform", "high", "low")),
        {"weighting": "high", "rank": 5},
    ],
    ids=str,
)
def test_every_option(tmp_path, options, device):
    base, finetuned = write_pair(tmp_path, torch.float32, torch.float32, zero_base=False)
    out = tmp_path / "out.safetensors"
    files = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    # where σ_k = σ_{k+1} the direction is free: such layers have a test of their own
    report = monosoup_cli.edit(*files, out, device=device, exclude=["flat"], **options)
    report["layers"] = [layer for layer in report["layers"] if layer["name"] != "flat"]
    check(report, load_file(out), base, finetuned, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("rank", "is_flat", "dtype"),
    [
        (1, False, torch.float32),
        (8, False, torch.float32),
        (64, False, torch.float32),
        (8, True, torch.float32),
        (64, True, torch.float32),
        (64, False, torch.float64),
    ],
)
def test_exactly_low_rank_updates_over_a_zero_base(tmp_path, rank, is_flat, dtype, device):
    """A Gram matrix alone would see a thousand noise values here, and k + 1."""
    rng = np.random.default_rng(rank)
    if is_flat:
        left, right = np.zeros((1024, rank)), np.zeros((rank, 1024))
        left[np.arange(rank), np.arange(rank)] = 1  # exact in every dtype
        right[np.arange(rank), 5 + np.arange(rank)] = 1
    else:  # integers: the product is exact in float32, hence of this rank
        left, right = (rng.integers(-4, 5, shape).astype(float) for shape in ((1024, rank), (rank, 1024)))
    update = torch.from_numpy(left @ right).to(dtype)
    save_file({"w": torch.zeros_like(update)}, tmp_path / "base.safetensors")
    save_file({"w": update}, tmp_path / "finetuned.safetensors")
    out = tmp_path / "out.safetensors"
    report = monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", out, device=device
    )
    check(report, load_file(out), {"w": torch.zeros_like(update)}, {"w": update})
    assert not is_flat or report["layers"][0]["k"] == rank


def test_equal_singular_values_leave_the_direction_free(tmp_path):
    """With σ_k = σ_{k+1} any rotation of their space is right: the spectrum of the edit is what must hold."""
    update = 3 * orthogonal(np.random.default_rng(0), 96, 64)
    save_file({"w": torch.zeros(96, 64, dtype=torch.float64)}, tmp_path / "base.safetensors")
    save_file({"w": torch.from_numpy(update)}, tmp_path / "finetuned.safetensors")
    out = tmp_path / "out.safetensors"
    files = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    (layer,) = monosoup_cli.edit(*files, out, rank=10)["layers"]
    _, expected = oracle.edit(np.zeros_like(update), update, rank=10)
    oracle.assert_measures_equal(layer, expected)
    sigma = np.linalg.svd(load_file(out)["w"].numpy(), compute_uv=False)
    wanted = sorted([3 * layer["lambda_high"]] * 10 + [3 * layer["lambda_low"]] * 54, reverse=True)
    np.testing.assert_allclose(sigma, wanted, atol=1e-12)


def test_the_mean_of_several_is_the_finetuned_checkpoint(tmp_path):
    base, first = write_pair(tmp_path, torch.float32, torch.float32, zero_base=False)
    rng = np.random.default_rng(1)
    others = []
    for number, dtype in enumerate([torch.float32, torch.bfloat16]):
        other = {
            name: (t + 0.1 * torch.from_numpy(rng.standard_normal(t.shape)).float()).to(dtype)
            for name, t in first.items()
        }
        save_file(other, tmp_path / f"other-{number}.safetensors")
        others.append(other)
    mean = {name: sum(t[name].double() for t in (first, *others)) / 3 for name in first}
    out = tmp_path / "out.safetensors"
    sources = [tmp_path / f"{name}.safetensors" for name in ("finetuned", "other-0", "other-1")]
    report = monosoup_cli.edit(tmp_path / "base.safetensors", sources, out)
    check(report, load_file(out), base, mean)


def test_kept_tensors_are_averaged_and_interpolated_too(tmp_path):
    rng = np.random.default_rng(2)
    tensors = [
        {
            "vector": torch.from_numpy(rng.standard_normal(50)).to(torch.bfloat16),
            "excluded": torch.from_numpy(rng.standard_normal((8, 8))).float(),
            "counter": torch.tensor([number], dtype=torch.int64),
            "zero_d": torch.tensor(float(number)),
            "matrix": torch.from_numpy(rng.standard_normal((8, 8))).float(),
        }
        for number in range(3)
    ]
    tensors[1]["head"], tensors[2]["head"] = torch.ones(4, 4), torch.zeros(4, 4)
    for number, content in enumerate(tensors):
        save_file(content, tmp_path / f"{number}.safetensors")
    base, first, second = tensors
    out = tmp_path / "out.safetensors"
    monosoup_cli.edit(
        tmp_path / "0.safetensors",
        [tmp_path / "1.safetensors", tmp_path / "2.safetensors"],
        out,
        wise=0.25,
        exclude=["excluded"],
    )
    found = load_file(out)
    mean = {name: (first[name].double() + second[name].double()) / 2 for name in first}
    for name in ("vector", "zero_d", "excluded"):
        expected = base[name].double() + 0.25 * (mean[name] - base[name].double())
        oracle.assert_weights_equal(found[name].reshape(-1), expected.numpy().reshape(-1))
    assert torch.equal(found["head"], torch.full((4, 4), 0.5))
    assert torch.equal(found["counter"], first["counter"])


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_the_written_dtype(tmp_path, stored, asked):
    base, finetuned = write_pair(tmp_path, stored, stored, zero_base=False)
    for content, name in ((base, "base"), (finetuned, "finetuned")):
        content["vector"] = torch.full((3,), 1 / 3 if name == "base" else 2 / 3).to(stored)
        content["counter"] = torch.tensor([3], dtype=torch.int64)
        save_file(content, tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    files = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    report = monosoup_cli.edit(*files, out, dtype=asked)
    found = load_file(out)
    dtype = getattr(torch, asked)
    assert found["counter"].dtype == torch.int64
    assert torch.equal(found["vector"], finetuned["vector"].to(dtype))
    assert all(t.dtype == dtype for name, t in found.items() if name != "counter")
    report["layers"] = [layer for layer in report["layers"] if layer["action"] == "edited"]
    check(report, found, base, finetuned)
