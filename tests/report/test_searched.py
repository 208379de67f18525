"""What a search shows while it runs, and what its notes say at the end."""

import io

import pytest
from rich.console import Console

from monosoup_cli.report.searched import notes_on_search, scoring_table


def test_final_scores_are_in_no_column_of_others():
    """They have names of their own, and there may be fewer."""
    done = [
        ("wise --alpha 1", {"in": 4.0, "out": 1.0}),
        ("wise --alpha 1", {"final test": 77.0}),
        ("wise --alpha 0", {"in": 3.0, "out": 2.0}),
    ]
    shown = io.StringIO()
    Console(file=shown, width=80).print(scoring_table(done, "scoring edit, 3 of at most 9"))
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert [line[-2:] for line in lines[:3]] == [["in", "out"], ["4", "1"], ["3", "2"]]
    assert "77" not in shown.getvalue()
    assert lines[-1] == ["scoring", "edit,", "3", "of", "at", "most", "9"]


@pytest.mark.parametrize(
    ("names", "chosen", "expected"),
    [
        (["in", "out"], "edit", "in and out chose this output, and so say too much of it"),
        (["acc"], "edit", "acc chose this output, and so says too much of it"),
        (["acc"], "wise --alpha 0", "no candidate is better than the base"),
        (["acc"], "wise --alpha 1", "no candidate is better than the fine-tuned model"),
    ],
)
def test_notes_on_a_search(names, chosen, expected):
    search = {"scores": names, "is_within": True, "chosen": chosen, "finetuned": [{}], "not_tried": []}
    notes = notes_on_search({"search": search, "output": {}})
    assert any(note.startswith(expected) for note in notes)
    assert len(notes) == 1 + chosen.startswith("wise")
