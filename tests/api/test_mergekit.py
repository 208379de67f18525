"""Configurations of the shapes that mergekit's own examples have, through mergekit and through `run`.

MERGEKIT is the environment that has mergekit; `make test-slow` makes it.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import monosoup_cli
from tests.models import CAUSAL, build

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif("MERGEKIT" not in os.environ, reason="needs mergekit, in the environment MERGEKIT"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a small Llama and three fine-tunes, whose updates are less than 90° apart."""
    folder = tmp_path_factory.mktemp("models")
    model = build("LlamaForCausalLM", CAUSAL).float()
    model.save_pretrained(folder / "base")
    state = {name: one.clone() for name, one in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    common = {name: torch.randn(one.shape, generator=generator) for name, one in state.items()}
    for number in (1, 2, 3):
        own = {name: torch.randn(one.shape, generator=generator) for name, one in state.items()}
        tuned = {name: one + 0.01 * (common[name] + own[name]) for name, one in state.items()}
        model.load_state_dict(tuned)
        model.save_pretrained(folder / f"ft{number}")
    return folder


def of(*weights, **more):
    """A configuration of as many fine-tunes as there are weights; None for a model without one."""
    own = [{} if weight is None else {"parameters": {"weight": weight}} for weight in weights]
    listed = [{"model": f"ft{number}", **one} for number, one in enumerate(own, start=1)]
    return {"models": listed, "dtype": "float32", **more}


BASE = {"base_model": "base"}
CONFIGURATIONS = {
    "linear": of(1.0, 0.3, 0.5, merge_method="linear"),
    "linear, even": of(1.0, 1.0, merge_method="linear"),
    "linear, weights that sum to 1": of(0.7, 0.3, merge_method="linear", parameters={"normalize": False}),
    "linear, one taken away": of(1.0, 0.5, -0.3, merge_method="linear"),
    "linear, mostly taken away": of(-1.0, -0.5, 0.3, merge_method="linear"),
    "task_arithmetic": of(0.6, 0.3, 0.4, merge_method="task_arithmetic", **BASE),
    "task_arithmetic, taken away": of(0.6, -0.3, merge_method="task_arithmetic", **BASE),
    "task_arithmetic, normalised": of(
        0.6,
        0.3,
        merge_method="task_arithmetic",
        parameters={"normalize": True, "lambda": 0.5, "int8_mask": True},
        **BASE,
    ),
    "model_stock": of(None, None, None, merge_method="model_stock", **BASE),
    "model_stock, by rows": of(
        None, None, None, merge_method="model_stock", parameters={"filter_wise": True}, **BASE
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_both_tools_make_the_same_weights(models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(models)
    (tmp_path / "mergekit.yml").write_text(yaml.safe_dump(CONFIGURATIONS[name], sort_keys=False))
    tool = Path(os.environ["MERGEKIT"]) / "bin" / "mergekit-yaml"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    theirs = [
        tool,
        tmp_path / "mergekit.yml",
        tmp_path / "theirs",
        "--no-copy-tokenizer",
        "--no-write-model-card",
    ]
    subprocess.run(theirs, check=True, env=environment, capture_output=True)
    monosoup_cli.run(tmp_path / "mergekit.yml", output=tmp_path / "ours")
    found, expected = (load_file(tmp_path / one / "model.safetensors") for one in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
