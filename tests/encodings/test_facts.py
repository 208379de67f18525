"""What is looked at once for all names finds what looking at every name would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monosoup_cli.encodings.evidence import LEAVES, WRITTEN
from monosoup_cli.encodings.facts import Left, stems
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.other_adapters import FACTOR, factors_in

PARTS = st.sampled_from(["a", "weight", "weight_scale", "SCB", "x_blocks", "quant_state", "nf4", ""])
NAMES = st.lists(st.lists(PARTS, max_size=4).map(".".join), unique=True)
ENDINGS = st.lists(
    st.sampled_from([".weight", ".weight_scale", "_blocks", ".quant_state.nf4", ".SCB"]), min_size=1
)


@given(NAMES, ENDINGS)
def test_stems(names, endings):
    expected = {}
    for name in names:
        for ending in endings:
            if name.endswith(ending):
                expected.setdefault(name[: -len(ending)], name)
    left = Left({name: TensorInfo(name, "U8", (), 0, 1) for name in names})
    assert stems(left, *endings) == expected


@given(st.from_regex(WRITTEN))
def test_the_last_parts_of_names_show_those_that_only_codes_have(name):
    assert LEAVES.match(name[name.rfind(".") + 1 :]) or "quant_state." in name


@given(st.lists(st.one_of(st.from_regex(FACTOR), st.text("lora_.hd")), unique=True))
def test_factors_among_names(names):
    assert [*factors_in(names)] == [(name, found[1]) for name in names if (found := FACTOR.search(name))]
