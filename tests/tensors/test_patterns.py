"""Patterns that match nothing: the refusal has a name that may be meant."""

import pytest

from monosoup_cli.errors import UsageError
from monosoup_cli.tensors.patterns import check_patterns

FINETUNED = ["embed.weight", "layers.0.norm.weight", "layers.0.k_proj.weight", "layers.1.k_proj.weight"]
ONLY_IN_BASE = ["mtp.0.norm.weight", "mtp.0.proj.weight"]
TIED = {"lm_head.weight": "embed.weight"}
OF_FINETUNED = "a name of the (first) fine-tuned checkpoint, such as "


@pytest.mark.parametrize(
    ("option", "pattern", "expected", "found"),
    [
        ("include", "model.blocks.1.k_proj.weight", f"{OF_FINETUNED}'layers.1.k_proj.weight'", None),
        ("exclude", "*.attention.k_proj*", f"{OF_FINETUNED}'layers.0.k_proj.weight'", None),
        ("layer", "block", f"{OF_FINETUNED}'embed.weight'", None),
        ("carry-base", "*.proj", "a name such as 'mtp.0.proj.weight'", None),
        (
            "carry-base",
            "layers.*",
            "a name such as 'mtp.0.norm.weight'",
            "'layers.0.norm.weight', which the fine-tuned checkpoint has",
        ),
        (
            "carry-base",
            "lm_head.*",
            "a name such as 'mtp.0.norm.weight'",
            "'lm_head.weight', which the fine-tuned checkpoint ties to 'embed.weight'",
        ),
    ],
)
def test_a_name_that_may_be_meant_is_shown(option, pattern, expected, found):
    with pytest.raises(UsageError, match=f"^--{option} ") as refusal:
        check_patterns({option: [pattern]}, FINETUNED, ONLY_IN_BASE, TIED)
    assert (refusal.value.expected, refusal.value.found) == (expected, found)
    assert (refusal.value.hint is None) == (found is not None)


def test_where_no_name_is_left_none_is_shown():
    with pytest.raises(UsageError) as refusal:
        check_patterns({"carry-base": ["*"]}, FINETUNED, [], {})
    assert refusal.value.expected is None


def test_patterns_that_match_pass():
    check_patterns({"include": ["*.1.*", "embed*"], "carry-base": ["mtp.*"]}, FINETUNED, ONLY_IN_BASE, TIED)
