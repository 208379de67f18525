"""q, k and v of an attention, or only k and v: fused in one tensor, or one by one.

Fused rows are q, k and v one after the other (Phi-3, CLIP, timm), or take turns: of every head (Bloom,
GPT-NeoX), or of every group of heads that share a k and a v (Falcon, InternLM2). k and v may have fewer rows
than q. GPT-2 stores the fused matrix as (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Facts, Reading
from monosoup_cli.layouts.parts import Separate, is_matrix, joined, parse, rows_of_parts, split

__all__ = ["SEPARATE_ATTENTION", "FusedAttention", "is_fused"]

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
OUTPUTS = tuple(
    f"{name}.weight"
    for name in (
        "o_proj",
        "out_proj",
        "dense",
        "wo",
        "Wo",
        "c_proj",
        "proj",
        "out_lin",
        "linear_proj",
        "attn_out",
        "projection",
        "to_out",
        "to_out.0",
    )
)
"""What libraries call the projection that follows."""
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
KV_HEADS = (
    *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "kv_n_heads", "num_query_groups"),
    "multi_query_group_num",
)
HEAD_SIZE = ("head_dim", "kv_channels", "attention_head_size")
HEAD_SIZES = (64, 128, 80, 96, 256, 32, 112, 160, 192)
"""Sizes of heads that are tried where the configuration does not tell, or tells something else."""
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
FALCON = ("falcon", "RefinedWeb", "RefinedWebModel")
IN_TURN = {
    "query_key_value": ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon", *FALCON),
    "wqkv": ("internlm2",),
    "c_attn": ("gpt_bigcode",),
}
"""The types of models in which heads, or groups of heads, take turns in tensors of these names."""
SWAPPED = {"codegen": ((Q, V, K), 4)}
"""The types of models with another order of parts, and of how many groups of heads."""

SEPARATE_ATTENTION = Separate({**NAMES, GATE: GATE})


class FusedAttention:
    """q, k and v in one tensor."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """One after the other, or in turn by groups of heads; (out, in) or (in, out)."""
        found = parse(name, tensor, facts)
        if found is None:
            return []
        module, last, kind = found
        parts = _fused(module, last)
        if not parts:
            return []
        model = str(facts.config.get("model_type"))
        parts, own_groups = SWAPPED.get(model, (parts, None))
        is_in_turn = model in IN_TURN.get(last, ())
        ways: dict[str, Reading] = {}
        for is_transposed in (False, True):
            total = tensor.shape[-1] if is_transposed and is_matrix(tensor) else tensor.shape[0]
            likely = _rows(module, parts, tensor, total, facts, is_transposed=is_transposed)
            told = next((rows for rows in likely if sum(rows) == total), None)
            rows = told or ((total // len(parts),) * len(parts) if total % len(parts) == 0 else None)
            heads = [own_groups] if own_groups else [_kv_heads(facts), facts.number(*HEADS)]
            counts = [*heads, 1] if is_in_turn or own_groups else [1, *heads]
            for groups in _groups(rows, counts, facts) if rows is not None else ():
                words = _words(parts, groups, is_transposed=is_transposed)
                sizes = dict(zip(parts, rows or (), strict=True))
                atoms = split(module, kind, tensor, sizes, groups, is_transposed=is_transposed)
                ways.setdefault(words, Reading(words, atoms, is_guess=told is None))
        return list(ways.values())


def is_fused(name: str, tensor: TensorInfo) -> bool:
    """Whether a tensor has the name of fused ones, even if nothing tells how many rows each part has."""
    found = parse(name, tensor, Facts({}, {}))
    return found is not None and bool(_fused(*found[:2]))


def _fused(module: str, last: str) -> tuple[str, ...]:
    """The parts of a tensor, by its name and its module; none of other tensors."""
    return FUSED.get(f"{module.rpartition('.')[2]}.{last}", FUSED.get(last, ()))


def _words(parts: Sequence[str], groups: int, *, is_transposed: bool) -> str:
    order = " then ".join(part.removesuffix("_proj") for part in parts)
    turns = f", in each of {groups} groups of heads" if groups > 1 else ""
    return f"{order}{turns}{', transposed' if is_transposed else ''}"


def _rows(
    module: str, parts: Sequence[str], tensor: TensorInfo, total: int, facts: Facts, *, is_transposed: bool
) -> Iterator[tuple[int, ...]]:
    """Yield how many rows the parts may have.

    As in the other checkpoint, by the matrix that follows, or by the configuration; k and v have as many.

    The configuration is that of the language model. The heads of a vision model are others.
    """
    yield from rows_of_parts(module, parts, NAMES, facts)
    has_all = set(parts) == {Q, K, V}
    if has_all:
        yield from _rows_before_output(module, total, facts, is_transposed=is_transposed)
    heads, columns = facts.number(*HEADS), tensor.elements // total
    hidden = facts.number(*HIDDEN) or columns
    if has_all and heads is not None and columns in (1, hidden):
        expected = facts.number(*HEAD_SIZE) or hidden // heads
        for count in (_kv_heads(facts) or heads, heads):
            size = total // (heads + 2 * count)
            if expected in (0, size):
                numbers = {Q: heads, K: count, V: count}
                yield tuple(numbers[part] * size for part in parts)
    if set(parts) == {K, V}:
        yield total // 2, total // 2


def _rows_before_output(
    module: str, total: int, facts: Facts, *, is_transposed: bool
) -> Iterator[tuple[int, ...]]:
    """Yield the rows of q, k and v of which q has as many as the output projection has columns."""
    output = next((tensor for name in OUTPUTS if (tensor := facts.tensors.get(joined(module, name)))), None)
    if output is None or len(output.shape) != 2:
        return
    q = output.shape[0 if is_transposed else 1]
    of_each = (total - q) // 2
    if of_each > 0 and q % of_each == 0:
        yield q, of_each, of_each


def _kv_heads(facts: Facts) -> int | None:
    """How many k and v there are, as the configuration has it; Falcon says it in two flags."""
    if facts.config.get("multi_query") is True and facts.config.get("new_decoder_architecture") is not True:
        return 1
    return facts.number(*KV_HEADS)


def _groups(rows: Sequence[int], counts: Sequence[int | None], facts: Facts) -> list[int]:
    """How many groups of heads may take turns: the likeliest, and those of heads of common sizes."""
    sizes = [size for size in (facts.number(*HEAD_SIZE), *HEAD_SIZES) if size is not None]
    numbers = dict.fromkeys([*counts, *(rows[-1] // size for size in sizes)])
    return [one for one in numbers if one and all(count % one == 0 for count in rows)]
