"""q, k and v of an attention, or only k and v: fused in one tensor, or one by one.

Fused rows are q, k and v one after the other (Phi-3, CLIP, timm), or take turns: of every head (Bloom,
GPT-NeoX), or of every group of heads that share a k and a v (Falcon, InternLM2). k and v may have fewer rows
than q. GPT-2 stores the fused matrix as (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Facts, Reading
from monosoup_cli.layouts.parts import Separate, is_matrix, parse, rows_of_parts, split

__all__ = ["SEPARATE_ATTENTION", "FusedAttention"]

Q, K, V, GATE = "q_proj", "k_proj", "v_proj", "gate_proj"
NAMES = {
    name: part
    for names in (
        (Q, K, V),
        ("query", "key", "value"),
        ("q", "k", "v"),
        ("to_q", "to_k", "to_v"),
        ("q_lin", "k_lin", "v_lin"),
        ("wq", "wk", "wv"),
        ("Wq", "Wk", "Wv"),
        ("query_proj", "key_proj", "value_proj"),
        ("linear_q", "linear_k", "linear_v"),
    )
    for name, part in zip(names, (Q, K, V), strict=True)
}
"""What libraries call q, k and v where each has a tensor of its own."""
FUSED = {
    **dict.fromkeys(
        (
            *("qkv_proj", "query_key_value", "c_attn", "W_pack", "Wqkv", "wqkv", "qkv", "in_proj_", "to_qkv"),
            *("qkv_linear", "linear_qkv", "att_proj"),
        ),
        (Q, K, V),
    ),
    **dict.fromkeys(("kv_proj", "to_kv", "Wkv", "wkv", "kv", "kv_linear", "linear_kv"), (K, V)),
    "gqkv_proj": (GATE, Q, K, V),
    "crossattention.c_attn": (K, V),
}
"""What libraries call fused tensors, some with their module, and the parts of each in order."""
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
HEAD_SIZE = ("head_dim", "kv_channels", "attention_head_size")
HEAD_SIZES = (64, 128, 80, 96, 256, 32, 112, 160, 192)
"""Sizes of heads that are tried where the configuration does not tell, or tells something else."""

IN_TURN = {
    *("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon", "gpt_bigcode", "falcon", "internlm2"),
    *("RefinedWeb", "RefinedWebModel"),
}
"""The types of models whose heads, or groups of heads, take turns."""

SEPARATE_ATTENTION = Separate({**NAMES, GATE: GATE})


class FusedAttention:
    """q, k and v in one tensor."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """One after the other, or in turn by groups of heads; (out, in) or (in, out)."""
        found = parse(name, tensor, facts)
        if found is None:
            return []
        module, last, kind = found
        parts = FUSED.get(f"{module.rpartition('.')[2]}.{last}", FUSED.get(last, ()))
        if not parts:
            return []
        ways: dict[str, Reading] = {}
        for is_transposed in (False, True):
            total = tensor.shape[-1] if is_transposed and is_matrix(tensor) else tensor.shape[0]
            rows = next((rows for rows in _rows(module, parts, total, facts) if sum(rows) == total), None)
            for groups in _groups(rows, facts) if rows is not None else ():
                words = _words(parts, groups, is_transposed=is_transposed)
                sizes = dict(zip(parts, rows or (), strict=True))
                atoms = split(module, kind, tensor, sizes, groups, is_transposed=is_transposed)
                ways.setdefault(words, Reading(words, atoms))
        return list(ways.values())


def _words(parts: Sequence[str], groups: int, *, is_transposed: bool) -> str:
    order = " then ".join(part.removesuffix("_proj") for part in parts)
    turns = f" of each of {groups} groups of heads" if groups > 1 else ""
    return f"{order}{turns}{', transposed' if is_transposed else ''}"


def _rows(module: str, parts: Sequence[str], total: int, facts: Facts) -> Iterator[tuple[int, ...]]:
    """Yield how many rows the parts may have: as in the other checkpoint, by the configuration, or alike."""
    yield from rows_of_parts(module, parts, NAMES, facts)
    heads, kv_heads = facts.number(*HEADS), _kv_heads(facts)
    if parts == (Q, K, V) and heads is not None:
        for count in (kv_heads, heads):
            size, rest = divmod(total, heads + 2 * (count or heads))
            if rest == 0 and facts.number(*HEAD_SIZE) in (None, size):
                yield tuple(size * number for number in (heads, count or heads, count or heads))
    yield (total // len(parts),) * len(parts)


def _kv_heads(facts: Facts) -> int | None:
    """How many k and v there are, as the configuration has it; Falcon says it in two flags."""
    if facts.config.get("multi_query") is True and facts.config.get("new_decoder_architecture") is not True:
        return 1
    return facts.number(*KV_HEADS)


def _groups(rows: Sequence[int], facts: Facts) -> list[int]:
    """How many groups of heads may take turns, the likeliest first."""
    sizes = [size for size in (facts.number(*HEAD_SIZE), *HEAD_SIZES) if size is not None]
    told = [_kv_heads(facts), facts.number(*HEADS)]
    counts = [*told, 1] if facts.config.get("model_type") in IN_TURN else [1, *told]
    counts += [rows[-1] // size for size in sizes]
    return [one for one in dict.fromkeys(counts) if one and all(count % one == 0 for count in rows)]
