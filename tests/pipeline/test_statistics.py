"""BatchNorm statistics, which an average of weights makes stale: said, and cured as the note says."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import update_bn

NOTE = "BatchNorm statistics belong to the weights before"


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )


@pytest.fixture
def networks(tmp_path):
    """A base and two fine-tunes, each with the statistics of its own weights; and the data."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(4)]
    torch.manual_seed(0)
    model, paths = network(), []
    for number in range(3):
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.3 * torch.randn(weights.shape, generator=generator)
        update_bn(data, model)
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(model.state_dict(), paths[-1])
    return paths, data


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("soup", []),
        ("stock", []),
        ("sfgs", ["--threshold", "-1"]),
        ("edit", ["--energy", "0.5"]),
        ("wise", ["--alpha", "0.5"]),
        ("lines", ["--alpha", "0.2", "--beta", "0.5", "--block-pattern", r"(\d)\."]),
    ],
)
def test_stale_statistics_are_said_and_recomputed(run, networks, tmp_path, command, options):
    paths, data = networks
    inputs = {"soup": paths[1:], "stock": paths, "sfgs": paths}.get(command, paths[:2])
    result = run(command, *inputs, "-o", tmp_path / "out.safetensors", *options)
    assert result.code == 0, result.err
    assert f"note: {NOTE}" in result.err
    assert "(4 tensors: 1.running_mean, 1.running_var, 4.running_mean, …)" in result.err
    model = network()
    model.load_state_dict(load_file(tmp_path / "out.safetensors"))
    stale = model[4].running_var.clone()
    update_bn(data, model)  # as the note says
    assert not torch.allclose(model[4].running_var, stale, rtol=1e-3)
    before = copy.deepcopy(model[:4]).train()  # as in a pass over training data
    hidden = torch.cat([before(batch) for batch in data])
    torch.testing.assert_close(model[4].running_mean, hidden.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_nothing_is_said_where_nothing_is_stale(run, networks, tmp_path):
    """Of what writes no weights, of a model without statistics, and where no weight is edited."""
    paths, _ = networks
    assert NOTE not in run("inspect-spectrum", *paths[:2]).err
    assert NOTE not in run("edit", *paths[:2], "-o", tmp_path / "same", "--exclude", "*").err
    for path in paths[:2]:
        save_file({name: t for name, t in load_file(path).items() if "running" not in name}, path)
    assert NOTE not in run("edit", *paths[:2], "-o", tmp_path / "out").err
