"""Plans from headers: what is refused, and which tensor the refusal names."""

import pytest

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.tensors.plan import Selection, make_plan


def headers(names):
    return {name: TensorInfo(name, "F32", (2, 2), 0, 16) for name in names}


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [("zyxa", "a", "z"), ("a", "azyx", "z"), ("abc", "ade", "b")],
    ids=["more in the first", "more in the second", "both"],
)
def test_the_first_name_in_the_files_order_is_the_one_that_is_named(first, second, named):
    """A set would name another one in every process."""
    with pytest.raises(MismatchError) as refusal:
        make_plan(None, [headers(first), headers(second)], Selection(), access="flat")
    assert refusal.value.tensor == named


def test_names_that_are_left_out_are_not_named():
    with pytest.raises(MismatchError) as refusal:
        make_plan(None, [headers("zyxa"), headers("a")], Selection(exclude=("z", "y")), access="flat")
    assert refusal.value.tensor == "x"
