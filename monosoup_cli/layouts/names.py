"""The names that tensors of mixtures of experts have in common, whatever a checkpoint calls them.

Libraries call one tensor `block_sparse_moe.experts.3.w1.weight` or `mlp.experts.3.gate_proj.weight`. The rows
of the table are applied one after the other. A packed tensor gets the ending that a single one has.
"""

from __future__ import annotations

import re

__all__ = ["canonical"]

PROJECTIONS = {
    "gate_proj": ("w1", "fc1"),
    "up_proj": ("w3", "v1", "fc3", "gate_and_up_projs"),
    "down_proj": ("w2", "fc2", "down_projs", "output_linear"),
    "gate_up_proj": ("w13", "gate_up_projs", "input_linear"),
}
"""What libraries call the projections of an expert. NVIDIA's `gate_and_up_projs` has no gate."""
KNOWN = {other: name for name, others in PROJECTIONS.items() for other in (name, *others)}
WHAT = rf"(?P<what>{'|'.join(KNOWN)})"
EXPERT = re.compile(
    rf"(?<=\.experts)(\.mlp)?(?P<number>\.\d+)?\.{WHAT}(?P<after>\.\d+)?([._](?P<ending>weight|bias))?$"
)
BLOCK = r"(?<=\.)(block_sparse_moe|moe|mlp)"
CORRECTION = r"(e_score_correction_bias|expert_bias|router_bias)"
RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        # GraniteMoE and Step have no `experts` in the names of packed ones, nor has JetMoE
        (rf"{BLOCK}(?=\.(input_linear|output_linear)\.weight$)", "mlp.experts"),
        (r"(?<=\.)moe(?=\.(gate_proj|up_proj|down_proj)\.weight$)", "mlp.experts"),
        (r"(?<=\.)(block_sparse_moe|moe)(?=\.)", "mlp"),
        (r"(?<=\.)share_expert(?=\.)", "shared_experts"),
        (r"(?<=\.mlp\.)(router\.layer|router|gate)[._]weight$", "gate.weight"),
        (rf"(?<=\.mlp\.)(gate\.)?(moe_statics\.)?{CORRECTION}$", "gate.e_score_correction_bias"),
    )
)


def canonical(name: str) -> str:
    """Return the name of a tensor that it has in common with those of other libraries.

    >>> canonical("model.layers.0.block_sparse_moe.experts.3.w1.weight")
    'model.layers.0.mlp.experts.3.gate_proj.weight'
    >>> canonical("model.layers.0.block_sparse_moe.input_linear.weight")
    'model.layers.0.mlp.experts.gate_up_proj.weight'
    """
    for pattern, new in RENAMES:
        name = pattern.sub(new, name)
    return EXPERT.sub(_expert, name)


def _expert(match: re.Match[str]) -> str:
    number = match["number"] or match["after"] or ""
    return f"{number}.{KNOWN[match['what']]}.{match['ending'] or 'weight'}"
