"""What a search shows while it runs, and what its notes say at the end."""

import io

import pytest
from rich.console import Console

from monosoup_cli.methods.search import coarse
from monosoup_cli.report.scored import Scored, scores_table
from monosoup_cli.report.searched import (
    MAX_ROWS,
    notes_on_search,
    scoring_table,
    search_sentences,
    search_table,
)
from monosoup_cli.report.words import in_column


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
    assert [" ".join(line) for line in lines[3:5]] == [
        "in: best 4, wise --alpha 1",
        "out: best 2, wise --alpha 0",
    ]
    assert lines[-1] == ["scoring", "edit,", "3", "of", "at", "most", "9"]


def test_the_best_of_a_sweep_in_scores_called_in_and_out():
    rows = [Scored(f"alpha-{one:g}", {}, {"in": one, "out": 1 - one}) for one in (0.0, 0.5, 1.0)]
    shown = io.StringIO()
    Console(file=shown, width=80).print(scores_table(rows))
    assert [line.split()[3:] for line in shown.getvalue().splitlines()[1:]] == [
        ["best:", "out"],
        [],
        ["best:", "in"],
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([88.3, 88.26, 80.0], ["88.30", "88.26", "80.00"]),
        ([0.123456789, 12.0], ["0.1235", "12.0000"]),
        ([1.0, 20.0], ["1", "20"]),
        ([12345.678], ["12345.7"]),
        ([1e-9, 2.5], ["1e-09", "2.5"]),
        ([], []),
    ],
)
def test_decimal_points_of_a_column_line_up(values, expected):
    assert in_column(values) == expected


@pytest.mark.parametrize(
    ("names", "chosen", "expected"),
    [
        (
            ["in", "out"],
            "edit",
            "the scores 'in' and 'out' chose the output, so they are likely too high for it: report",
        ),
        (
            ["acc"],
            "edit",
            "the score 'acc' chose the output, so it is likely too high for it: report a score on other data",
        ),
        (["acc"], "wise --alpha 0", "no candidate is better than the base"),
        (["acc"], "wise --alpha 1", "no candidate is better than the fine-tuned model"),
    ],
)
def test_notes_on_a_search(names, chosen, expected):
    search = {"scores": names, "is_within": True, "chosen": chosen, "finetuned": [{}], "not_tried": []}
    search["max_loss"] = {}
    notes = notes_on_search({"search": search, "output": {}})
    assert any(note.startswith(expected) for note in notes)
    assert len(notes) == 1 + chosen.startswith("wise")


@pytest.mark.parametrize(("near", "is_noted"), [(2, True), (7, False)])
def test_a_budget_that_ends_in_the_coarse_pass_is_noted(near, is_noted):
    tried = [one.label for one in coarse(is_of_several=False, has_blocks=True)]
    tried += [f"wise --alpha 0.{number}1" for number in range(near)]
    search = {"scores": ["acc"], "is_within": True, "chosen": "edit", "finetuned": [{}], "not_tried": []}
    search |= {"max_loss": {}, "budget": len(tried), "candidates": [{"candidate": one} for one in tried]}
    notes = notes_on_search({"search": search, "output": {}})
    said = f"14 of the budget of {14 + near} went to the coarse pass, so little near the best was tried"
    assert (said in notes) == is_noted


def test_the_first_sentences_have_the_scores_of_the_choice_and_the_inputs():
    scores = {"wise --alpha 1": 0.9966667, "wise --alpha 0": 0.0, "edit": 0.9766667}
    candidates = [{"candidate": label, "scores": {"in": score}} for label, score in scores.items()]
    search = {"scores": ["in"], "candidates": candidates, "finetuned": [{}], "chosen": "edit"}
    search |= {"prefer": "in", "max_loss": {}}
    rule = "It is the candidate with the best 'in'."
    assert search_sentences({"search": search}) == [
        rule,
        "The choice has 'in' 0.9767; the base has 0 and the fine-tuned model has 0.9967.",
    ]
    search["chosen"] = "wise --alpha 0"
    assert search_sentences({"search": search})[1:] == [
        "The choice has 'in' 0; the fine-tuned model has 0.9967."
    ]


@pytest.mark.parametrize(
    ("max_loss", "is_within", "models", "rule"),
    [
        ({}, True, 1, "It is the candidate with the best 'out', whatever it costs in 'in'."),
        (
            {"in": 0.02},
            True,
            1,
            "It has the best 'out' of the candidates that lose at most 0.02 of 'in' against the fine-tuned"
            " model.",
        ),
        (
            {"in": 0.02},
            False,
            3,
            "No candidate loses at most 0.02 of 'in' against the best of the fine-tuned models, so it is the"
            " one that loses least.",
        ),
    ],
)
def test_the_first_sentences_say_by_which_rule_the_choice_was_made(max_loss, is_within, models, rule):
    scores = {"in": 1.0, "out": 2.0}
    search = {"scores": ["in", "out"], "prefer": "out", "max_loss": max_loss, "is_within": is_within}
    search |= {"candidates": [{"candidate": "edit", "scores": scores}], "chosen": "edit"}
    assert search_sentences({"search": {**search, "finetuned": [{}] * models}})[0] == rule


def test_a_note_points_to_the_final_score():
    search = {"scores": ["acc"], "is_within": True, "chosen": "edit", "finetuned": [{}], "not_tried": []}
    search["max_loss"] = {}
    (note,) = notes_on_search({"search": search, "output": {"scores": {"test": 1.0}}})
    assert note.endswith("likely too high for it: report 'final test' instead")


@pytest.mark.parametrize(
    ("max_loss", "is_within", "scores", "source"),
    [
        ({}, True, (80.0, 69.0), None),
        ({}, True, (80.0, 71.0), None),
        ({}, True, (80.0, 68.0), "one"),
        ({"in": 0.5}, True, (79.5, 66.0), "two"),
        ({"in": 0.5}, True, (79.5, 67.5), None),
        ({"in": 0.5}, False, (70.0, 72.0), "two"),
        ({"in": 5.0 - 1e-13}, True, (79.5, 68.5), "one"),  # that the first loses 5 owes to rounding
    ],
)
def test_a_note_on_a_fine_tune_that_is_better_alone(max_loss, is_within, scores, source):
    """Of two, the first has 75 and 69, the second 80 and 67; without a limit the first is better, with it
    the second."""
    search = {
        "scores": ["in", "out"],
        "prefer": "out",
        "max_loss": max_loss,
        "is_within": is_within,
        "finetuned": [
            {"source": "one", "scores": {"in": 75.0, "out": 69.0}},
            {"source": "two", "scores": {"in": 80.0, "out": 67.0}},
        ],
        "candidates": [{"candidate": "edit", "scores": dict(zip(("in", "out"), scores, strict=True))}],
        "chosen": "edit",
        "not_tried": [],
    }
    notes = [note for note in notes_on_search({"search": search, "output": {}}) if "alone" in note]
    assert [note.split(" is better than ")[1].split()[0] for note in notes] == ([source] if source else [])
    assert all(note.startswith("no candidate within") == bool(max_loss) for note in notes)


def searched(names, scores, *, chosen, front=(), sources=("ft",), same=()):
    """The rows of the table of a search, as words, and what it says of the number of candidates."""
    candidates = [
        {"candidate": label, "scores": dict(zip(names, of_one, strict=True))}
        for label, of_one in scores.items()
    ]
    finetuned = [{"source": source, "scores": candidates[0]["scores"]} for source in sources]
    search = {"scores": names, "candidates": candidates, "front": [*front], "chosen": chosen}
    search |= {"prefer": names[0], "max_loss": {}}
    for one in candidates:
        one.update({"same_as": "ft"} if one["candidate"] in same else {})
    shown = io.StringIO()
    table = search_table({"search": {**search, "finetuned": finetuned}, "output": {}})
    Console(file=shown, width=80).print(table)
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    rows, facts = lines[1 : lines.index("")], lines[lines.index("") + 1 :]
    assert any(line.startswith(f"rule It is the candidate with the best {names[0]!r}") for line in facts)
    return rows, facts[0]


def test_every_input_has_one_row_and_rows_that_are_left_out_are_counted():
    edits = {f"edit {number}": (float(number),) for number in range(20)}
    scores = {"wise --alpha 1": (5.5,), "wise --alpha 0": (30.0,), **edits}
    rows, text = searched(["acc"], scores, chosen="wise --alpha 0")
    assert rows[:3] == ["ft 5.5 fine-tuned", "wise --alpha 0 30.0 base, chosen", "edit 19 19.0"]
    assert len(rows) == 2 + MAX_ROWS
    assert "wise --alpha 1" not in " ".join(rows)
    assert "22 candidates, 22 of them scored; the report has the 8 not shown" in text
    rows, text = searched(["acc"], scores, chosen="wise --alpha 1")
    assert rows[0] == "ft 5.5 fine-tuned, chosen"


def test_of_several_the_mean_is_a_row_of_its_own():
    scores = {"wise --alpha 1": (2.0,), "wise --alpha 0": (1.0,), "edit": (3.0,)}
    rows, text = searched(["acc"], scores, chosen="edit", sources=["a", "b"])
    assert rows == [
        "a 2 fine-tuned",
        "b 2 fine-tuned",
        "wise --alpha 0 1 base",
        "edit 3 chosen",
        "wise --alpha 1 2",
    ]
    assert "not shown" not in text


def test_the_front_of_two_scores_has_the_inputs_too():
    scores = {"wise --alpha 1": (3.0, 1.0), "wise --alpha 0": (1.0, 2.0), "edit": (2.0, 3.0), "x": (0.0, 0.0)}
    front = ["wise --alpha 1", "edit"]
    rows, text = searched(["in", "out"], scores, chosen="edit", front=front)
    assert rows == ["ft 3 1 fine-tuned, front", "wise --alpha 0 1 2 base", "edit 2 3 front, chosen"]
    assert "4 candidates, 4 of them scored; the report has the 1 not shown" in text
