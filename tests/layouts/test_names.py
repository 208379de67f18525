"""The names of experts: what transformers converts is known under one name before and after."""

from __future__ import annotations

import re

import pytest
from transformers import conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter

from monosoup_cli.layouts.names import canonical

PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
"""What transformers 5 calls packed tensors, and the tensors of one expert that it packs, in its order."""
BLOCK = "model.layers.0.mlp"


def conversions():
    """Yield the patterns of single experts that transformers packs, and of the packed tensor."""
    for kind in (*conversion_mapping._MODEL_TO_CONVERSION_PATTERN, *MAPPING):
        for one in MAPPING.get(kind, ()):
            if isinstance(one, WeightConverter) and isinstance(one.operations[0], MergeModulelist):
                yield kind, tuple(one.source_patterns), one.target_patterns[0]


MAPPING = conversion_mapping._build_checkpoint_conversion_mapping()
CASES = sorted(set(conversions()))


def name_of(pattern, number=None):
    """A name that a pattern matches."""
    name = pattern.replace("\\.", ".").lstrip("^.").replace(".*.", f".{number}.")
    name = re.sub(r"^(mlp|feed_forward|mixer|block_sparse_moe)\.", "", name)
    assert not re.search(r"[\\*^$]", name), name
    return f"{BLOCK}.{name}"


def test_there_are_conversions():
    assert len({kind for kind, *_ in CASES}) > 30


@pytest.mark.parametrize(("kind", "sources", "target"), CASES, ids=[f"{one[0]} {one[2]}" for one in CASES])
def test_what_transformers_packs_has_one_name(kind, sources, target):
    what = name_of(target).rpartition(".")[2]
    assert canonical(name_of(target)) == f"{BLOCK}.experts.{what}.weight"
    expected = [f"{BLOCK}.experts.3.{part}.weight" for part in PARTS[what]]
    assert [canonical(name_of(source, 3)) for source in sources] == expected


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("block_sparse_moe.gate.weight", "mlp.gate.weight"),  # Mixtral
        ("block_sparse_moe.gate.weight", "mlp.router.weight"),  # Phi-3.5-MoE
        ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),  # GraniteMoE
        ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
        ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
        ("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias"),  # MiniMax M2
        ("block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),  # MiniMax M3
        ("block_sparse_moe.shared_experts.up_proj.weight", "mlp.shared_experts.up_proj.weight"),
        ("moe.gate.weight", "mlp.gate.weight"),  # Step
        ("moe.router_bias", "mlp.gate.e_score_correction_bias"),
        ("moe.gate_proj.weight", "mlp.experts.gate_proj"),
        ("moe.down_proj.weight", "mlp.experts.down_proj"),
        ("share_expert.down_proj.weight", "shared_experts.down_proj.weight"),
        ("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias"),  # Ernie
        ("mlp.gate_weight", "mlp.gate.weight"),  # dots3
        ("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),  # Ling
        ("mlp.experts.w13_weight", "mlp.experts.gate_up_proj"),  # Inkling
        ("mlp.experts.w2_weight", "mlp.experts.down_proj"),
        ("mlp.experts.gate_and_up_projs", "mlp.experts.up_proj"),  # Nemotron, without a gate
        ("mlp.experts.down_projs.3.bias", "mlp.experts.3.down_proj.bias"),  # gpt-oss
        ("mlp.experts.gate_up_proj_bias", "mlp.experts.gate_up_proj.bias"),
        ("ffn.experts.mlp.3.w1.weight", "ffn.experts.3.gate_proj.weight"),  # DBRX
        ("ffn.experts.mlp.v1", "ffn.experts.up_proj"),
    ],
)
def test_two_names_of_one_tensor(name, other):
    outer = "model.layers.0."
    assert canonical(outer + name) == canonical(outer + other)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.0.mlp.router.bias",
        "model.layers.0.feed_forward.w1.weight",
        "model.layers.0.self_attn.gate.weight",
        "encoder.layer.0.output.experts_norm.weight",
    ],
)
def test_other_names_stay(name):
    assert canonical(name) == name
