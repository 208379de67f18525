"""Which tensors are stacks of experts: by their shapes and the configuration, not by a list of names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.tensors.stacks import expert_counts
from tests.models import CAUSAL, build, step
from tests.oracle import edit as oracle

FAMILIES = {
    "GraniteMoeForCausalLM": {**CAUSAL, "num_local_experts": 4},
    "GptOssForCausalLM": {**CAUSAL, "head_dim": 8, "num_local_experts": 4},
}


@pytest.fixture(scope="module", params=FAMILIES)
def edited(request, tmp_path_factory):
    """The tensors of a base, a fine-tune and an output with experts, and the layers of the report."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build(
        request.param, {key: one for key, one in FAMILIES[request.param].items() if one is not None}
    )
    model.save_pretrained(folder / "base")
    step(model).save_pretrained(folder / "ft")
    report = monosoup_cli.edit(folder / "base", folder / "ft", folder / "out", device="cpu")
    tensors = [load_file(folder / name / "model.safetensors") for name in ("base", "ft", "out")]
    return *tensors, {layer["name"]: layer for layer in report["layers"]}


def test_every_expert_is_a_matrix_of_its_own(edited):
    base, finetuned, output, layers = edited
    stacks = [name for name, tensor in base.items() if tensor.ndim == 3]
    assert stacks
    for name in stacks:
        assert [part["index"] for part in layers[name]["slices"]] == [0, 1, 2, 3]
        for number in range(4):
            pair = (one[name][number].double().numpy() for one in (base, finetuned))
            expected, measures = oracle(*pair)
            torch.testing.assert_close(
                output[name][number].double(), torch.from_numpy(expected), rtol=0, atol=1e-6
            )
            assert layers[name]["slices"][number]["k"] == measures["k"]


def test_a_bias_for_every_expert_is_a_vector_for_each(edited):
    _, finetuned, output, layers = edited
    biases = [name for name, tensor in finetuned.items() if tensor.ndim == 2 and name.endswith("_bias")]
    for name in biases:
        assert layers[name]["reason"] == "vector"
        assert torch.equal(output[name], finetuned[name])
    is_gpt_oss = any("sinks" in name for name in finetuned)
    assert len(biases) == (4 if is_gpt_oss else 0)


def test_the_router_has_a_row_for_every_expert_and_is_a_matrix(edited):
    layers = edited[-1]
    routers = [name for name in layers if "router" in name and name.endswith("weight")]
    assert routers
    assert all(layers[name]["action"] == "edited" and "slices" not in layers[name] for name in routers)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_experts": 8, "num_experts_per_tok": 2}, {8}),
        ({"n_routed_experts": 64, "n_shared_experts": 2}, {64}),
        ({"text_config": {"num_local_experts": 16}}, {16}),
        ({"ffn_config": {"moe_num_experts": 4, "moe_top_k": 2}}, {4}),
        ({"num_experts": True, "expert_interval": 2, "num_experts_shared": "4"}, set()),
        ({"num_experts": 1}, set()),
        (None, set()),
    ],
)
def test_the_configuration_says_how_many_experts_there_are(config, expected):
    assert expert_counts(config) == expected


def test_three_dimensions_alone_are_no_stack(tmp_path):
    for name, seed in (("base", 0), ("ft", 1)):
        generator = torch.Generator().manual_seed(seed)
        folder = tmp_path / name
        folder.mkdir()
        shapes = {"moe.w": (4, 6, 5), "conv.w": (6, 4, 3), "depthwise.w": (4, 1, 5)}
        save_file(
            {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps({"num_experts": 4}))
    report = monosoup_cli.edit(tmp_path / "base", tmp_path / "ft", tmp_path / "out", device="cpu")
    assert {layer["name"]: len(layer.get("slices", "-")) for layer in report["layers"]} == {
        "moe.w": 4,
        "conv.w": 1,
        "depthwise.w": 1,
    }
