"""LiNeS: the scale that follows from depth."""

import doctest
import math

import pytest

from monosoup_cli.errors import UsageError
from monosoup_cli.methods import lines
from monosoup_cli.methods.lines import Scale, scales
from monosoup_cli.names import Position

NAMES = ["wte.weight", *(f"h.{n}.attn.fc.weight" for n in range(3)), "ln_f.weight", "fc.weight"]


@pytest.mark.parametrize(("head", "of_head"), [("last", 0.75), ("alpha", 0.25), ("ft", 1.0)])
def test_the_scale_rises_linearly_with_depth(head, of_head):
    assert scales(NAMES, 0.25, 0.5, head) == {
        "wte.weight": Scale(0.25, None, False),
        "h.0.attn.fc.weight": Scale(0.25, Position("h", 0, 3), False),
        "h.1.attn.fc.weight": Scale(0.5, Position("h", 1, 3), False),
        "h.2.attn.fc.weight": Scale(0.75, Position("h", 2, 3), False),
        "ln_f.weight": Scale(0.25, None, False),
        "fc.weight": Scale(of_head, None, True),
    }


def test_the_head_is_by_default_the_last_layer():
    assert scales(NAMES, 0.25, 0.5) == scales(NAMES, 0.25, 0.5, "last")


def test_each_stack_has_its_own_ramp():
    names = [
        f"{stack}.{n}.attn.w" for stack, length in {"encoder": 2, "decoder": 5}.items() for n in range(length)
    ]
    assert [scale.value for scale in scales(names, 0.0, 1.0).values()] == [0, 1, 0, 0.25, 0.5, 0.75, 1]


def test_the_only_block_of_a_stack_is_its_last():
    assert scales(["h.0.mlp.w", "wte"], 0.25, 0.5, pattern=r"h\.(\d+)") == {
        "h.0.mlp.w": Scale(0.75, Position("h", 0, 1), False),
        "wte": Scale(0.25, None, False),
    }


@pytest.mark.parametrize(
    ("alpha", "beta", "head"), [(0.5, 0.5, "first"), (math.nan, 0.5, "last"), (0.5, math.inf, "last")]
)
def test_bad_arguments_are_refused(alpha, beta, head):
    with pytest.raises(UsageError):
        scales(NAMES, alpha, beta, head)


def test_the_example_in_the_docstring():
    assert doctest.testmod(lines).failed == 0
