"""The tool that compares two versions sees what it is for."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.same_bytes.cases import CASES, make_case
from tests.same_bytes.differences import find_differences
from tests.same_bytes.inputs import ADAPTERS, MAKERS
from tests.same_bytes.trees import Outcome

CASE = make_case("one", ["edit a b -o out"])
REPORT = {
    "tool": {"name": "monosoup", "version": "0.1.0"},
    "timing": {"seconds": 1.5, "bytes_read": 8},
    "k": 3,
}


def first_difference(*words):
    return next(find_differences(*words), None)


@pytest.fixture
def outcome(tmp_path):
    """What a run left: weights, a report, a model card, and the report on stdout."""

    def outcome(name, *, value=1.0, report=REPORT, card="Made with `monosoup` 0.1.0:\n", out=None, code=0):
        folder = tmp_path / name
        folder.mkdir()
        tensors = {"a": torch.arange(3), "b": torch.tensor([0.5, value], dtype=torch.bfloat16)}
        save_file(tensors, folder / "model.safetensors")
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "README.md").write_text(card)
        return Outcome([code], [json.dumps(report).encode() if out is None else out], folder, "")

    return outcome


def test_time_and_version_may_differ(outcome):
    later = {
        **REPORT,
        "tool": {"name": "monosoup", "version": "0.2.0"},
        "timing": {"seconds": 9, "bytes_read": 8},
    }
    new = outcome("new", report=later, card="Made with `monosoup` 0.2.0:\n")
    assert first_difference(outcome("old"), new, CASE) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value": 1.0078125}, "model.safetensors: tensor b: 1 of 2 elements (BF16), at 1: 1.0 → 1.0078125"),
        ({"report": {**REPORT, "k": 4}}, "stdout of command 1: k: 3 → 4"),
        ({"report": {**REPORT, "k": 3.0}}, "stdout of command 1: k: 3 → 3.0"),
        ({"report": dict(reversed(REPORT.items()))}, "stdout of command 1: the whole: keys in another order"),
        ({"card": "Made with `monosoup` 0.1.0\n"}, "README.md: line 1, from byte"),
        ({"out": b'{"k": 3}'}, "stdout of command 1: tool: only in the old"),
        ({"code": 1}, "exit codes [0] → [1]"),
    ],
)
def test_a_difference_is_found_and_named(outcome, change, expected):
    assert first_difference(outcome("old"), outcome("new", **change), CASE).startswith(expected)


def test_a_file_more_and_other_permissions_are_found(outcome):
    old, new = outcome("old"), outcome("new")
    (new.folder / "model.safetensors").chmod(0o644)
    assert "mode 0o100600 → 0o100644" in first_difference(old, new, CASE)
    (new.folder / "model.safetensors").chmod(0o600)
    (new.folder / "out.partial").mkdir()
    assert first_difference(old, new, CASE) == "out.partial: only in the new"


def test_of_a_table_the_numbers_count(outcome):
    old = outcome("old", out=b"edited  4 layers\ntime    0.1 s, 8 MB/s read and written\n")
    assert first_difference(old, outcome("same", out=b"changed 4 tensors\ntime 3 s, 1 kB/s\n"), CASE) is None
    other = outcome("other", out=b"edited  5 layers\n")
    assert first_difference(old, other, CASE) == "stdout of command 1: 4 → 5"


def test_every_input_of_a_case_has_a_maker():
    assert len({case.folder for case in CASES}) == len(CASES)
    assert {name for case in CASES for name in case.inputs} == MAKERS.keys() | ADAPTERS.keys()
