"""gate and up of a gated MLP: fused in one tensor, or one by one.

Libraries do not agree on which of them comes first, and some have their rows in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Facts, Reading, starred
from monosoup_cli.layouts.parts import Separate, is_matrix, joined, parse, split

__all__ = ["SEPARATE_GATED", "FusedGated"]

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
FUSED = {"gate_up_proj", "up_gate_proj", "gate_up", "w12", "w13", "w13_dn", "weights_in"}
"""What libraries call fused tensors."""
PLAIN_TOO = {
    "dense_h_to_4h": "dense_4h_to_h",
    "linear_fc1": "linear_fc2",
    "fc1": "fc2",
    "Wi": "Wo",
    "wi": "wo",
    "ff_proj": "ff_out",
}
"""The same, but of plain layers in other models, and the matrix that follows, whose size tells them apart.
Without it, the other checkpoint tells, or the configuration."""
INNER = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
"""The keys of a configuration for how many rows gate has."""
NUMBERED = ("w1", "w2", "w3", "c_proj")
"""Names that are not of the same matrix in all libraries."""


class SeparateGated(Separate):
    """gate, up and down in a tensor each."""

    def part(self, module: str, last: str, facts: Facts) -> str | None:
        """The name in common. What else is in the module tells which matrix `w1`, `w2` and `w3` are."""
        if last not in NUMBERED:
            return super().part(module, last, facts)
        outer = starred(joined(module, ""))
        shapes = (facts.own.get(f"{outer}{name}.weight") for name in (*NUMBERED, "w12", "w13"))
        one, two, three, projection, first_two, first_and_third = shapes
        if first_two or first_and_third:
            return DOWN if last == ("w3" if first_two else "w2") else None
        if one and two and three:
            is_second = two == one[::-1]  # as in Llama's own files; in DINOv3 it is the third
            down, up = ("w2", "w3") if is_second else ("w3", "w2")
            return {"w1": GATE, up: UP, down: DOWN}.get(last)
        if one and two and projection:
            return {"w1": UP, "w2": GATE, "c_proj": DOWN}.get(last)  # as in the first Qwen
        return super().part(module, last, facts)


SEPARATE_GATED = SeparateGated(
    {
        **dict.fromkeys((GATE, "w1", "wi_0", "fc1_g"), GATE),
        **dict.fromkeys((UP, "w3", "w2", "wi_1", "fc1_x"), UP),
    }
)


class FusedGated:
    """gate and up in one tensor."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """gate or up first, one after the other or in turn; (out, in) or (in, out)."""
        found = parse(name, tensor, facts)
        if found is None or found[1] not in FUSED | PLAIN_TOO.keys():
            return []
        module, _, kind = found
        ways = []
        for is_transposed in (False, True):
            total = tensor.shape[-1] if is_transposed and is_matrix(tensor) else tensor.shape[0]
            if total % 2 or len(tensor.shape) > 2:
                continue
            half = total // 2
            if found[1] in PLAIN_TOO:
                following = facts.own.get(starred(joined(module, f"{PLAIN_TOO[found[1]]}.weight")), ())
                if is_matrix(tensor) and len(following) == 2:
                    following = following[:1] if is_transposed else following[1:]
                is_told = half in following if following else facts.rows or half == facts.number(*INNER)
                if not is_told:
                    continue
            for parts in ((GATE, UP), (UP, GATE)):
                for groups in (1, half):
                    words = [f"{'interleaved ' if groups > 1 else ''}{' then '.join(parts)}"]
                    words += ["transposed"] if is_transposed else []
                    sizes = dict.fromkeys(parts, half)
                    atoms = split(module, kind, tensor, sizes, groups, is_transposed=is_transposed)
                    ways.append(Reading(", ".join(words), atoms))
        return ways
