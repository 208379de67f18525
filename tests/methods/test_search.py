"""monosoup_cli.methods.search: what is tried, in which order, and what is chosen; against brute force."""

import itertools
import random
import zlib

import pytest

from monosoup_cli.methods.search import (
    Candidate,
    Goal,
    Trial,
    coarse,
    explore,
    front,
    neighbours,
    other_rules,
)


def trial(label, **scores):
    return Trial(Candidate(label), scores)


def explored(score, budget=60, *, goal=None, is_of_several=False, has_blocks=True):
    """The trials of a search whose scores are a function of the candidate."""
    seen = []

    def attempt(candidate):
        seen.append(candidate.label)
        found = score(candidate)
        return Trial(candidate, found if isinstance(found, dict) else {"score": found})

    first = list(coarse(is_of_several=is_of_several, has_blocks=has_blocks))
    trials = explore(first, attempt, goal or Goal("score"), budget)
    assert len(seen) == len({*seen}) == len(trials)
    return trials


def best(trials):
    return Goal("score").best_first(trials)[0].candidate


@pytest.mark.parametrize("alpha", [0.0, 0.03, 0.26, 0.37, 0.5, 0.88, 1.0])
def test_the_best_alpha_is_found(alpha):
    def score(candidate):
        return -abs(candidate.options["alpha"] - alpha) if candidate.command == "wise" else -2.0

    assert best(explored(score)).options == {"alpha": alpha}


@pytest.mark.parametrize(("energy", "wise"), [(0.87, 1.0), (0.62, 0.6), (0.5, 0.34), (0.99, 1.0)])
def test_the_best_energy_and_step_are_found(energy, wise):
    def score(candidate):
        if candidate.command != "edit" or {"split", "weighting"} & candidate.options.keys():
            return -2.0
        found = candidate.options.get("energy", 0.05), candidate.options.get("wise", 1.0)
        return -abs(found[0] - energy) - abs(found[1] - wise)

    expected = {"energy": energy} | ({} if wise == 1.0 else {"wise": wise})
    assert best(explored(score)).options == expected


def test_the_best_ramp_is_found():
    def score(candidate):
        options = candidate.options
        return (
            -abs(options["alpha"] - 0.4) - abs(options["beta"] - 0.35) if candidate.command == "lines" else -2
        )

    assert best(explored(score)).options == {"alpha": 0.4, "beta": 0.35}


def test_rules_and_weightings_are_combined():
    def score(candidate):
        wanted = {"split": "energy-entropy", "weighting": "spectral"}
        return sum(candidate.options.get(name) == value for name, value in wanted.items())

    assert best(explored(score)).options == {"split": "energy-entropy", "weighting": "spectral"}


@pytest.mark.parametrize("budget", [2, 5, 17, 25])
def test_a_budget_is_kept_and_the_inputs_come_first(budget):
    trials = explored(lambda candidate: zlib.crc32(candidate.label.encode()) % 97, budget)
    assert len(trials) == budget
    assert [one.candidate.label for one in trials[:2]] == ["wise --alpha 1", "wise --alpha 0"]


def test_what_has_the_weights_of_another_costs_nothing():
    def attempt(candidate):
        same = "edit" if candidate.command == "edit" and candidate.options else None
        return Trial(candidate, {"score": 0.0}, same)

    first = list(coarse(is_of_several=False, has_blocks=False))
    trials = explore(first, attempt, Goal("score"), 6)
    assert sum(one.same_as is None for one in trials) == 6
    assert len(trials) > 10


def test_a_small_budget_goes_to_what_keeps_the_limit():
    """wise near 1 and the plain edit keep it; lines never does."""

    def score(candidate):
        alpha = candidate.options.get("alpha", 0.9) if candidate.command == "wise" else 0.0
        keeps = candidate.command == "edit" and not candidate.options
        return {"in": 0.9 if keeps else alpha, "out": 0.5 if keeps else 1.0 - alpha}

    goal = Goal("out", {"in": 0.75})
    tried = [one.candidate for one in explored(score, 20, goal=goal)]
    assert sum(one.command == "lines" for one in tried) == 1
    assert min(abs(one.options["alpha"] - 0.8) for one in tried if one.command == "wise") < 0.06
    none = Goal("out", {"in": 2.0})  # kept by nothing: all are followed
    assert sum(one.candidate.command == "lines" for one in explored(score, 40, goal=none)) > 1


def test_what_is_not_there_is_not_tried():
    labels = [one.candidate.command for one in explored(lambda candidate: 0.0, 500, has_blocks=False)]
    assert {*labels} == {"edit", "wise"}
    assert "stock" in {one.command for one in coarse(is_of_several=True, has_blocks=True)}


def test_every_neighbour_can_be_run():
    """In range, with a name of its own that says all of it, and never the candidate itself."""
    seen = {one.label: one for one in coarse(is_of_several=True, has_blocks=True)}
    waiting = list(seen.values())
    while waiting and len(seen) < 3000:
        one = waiting.pop(0)
        for step in (0.25, 0.1, 0.05):
            for other in itertools.chain(neighbours(one, step), other_rules(one)):
                options = other.options
                assert 0.0 <= options.get("alpha", 0.0) <= 1.0
                assert -1e-9 <= options.get("alpha", 0.0) + options.get("beta", 0.0) <= 1.0 + 1e-9
                assert 0.05 <= options.get("energy", 0.5) <= 0.99
                assert 0.05 <= options.get("wise", 0.5) < 1.0
                assert not {"split", "energy"} <= options.keys()
                if other.label not in seen:
                    seen[other.label] = other
                    waiting.append(other)
                assert seen[other.label] == other


def test_the_front_by_brute_force():
    draw = random.Random(0)
    for _ in range(200):
        trials = [
            trial(f"t{n}", a=draw.randint(0, 5), b=draw.randint(0, 5)) for n in range(draw.randint(1, 12))
        ]
        found = front(trials)
        pairs = {(one.scores["a"], one.scores["b"]) for one in trials}
        expected = sorted(
            (a, b) for a, b in pairs if not any((c, d) != (a, b) and c >= a and d >= b for c, d in pairs)
        )
        assert [(one.scores["a"], one.scores["b"]) for one in found] == expected
        for one in found:  # the first of those with its scores
            assert one is next(other for other in trials if other.scores == one.scores)


def test_the_choice_keeps_to_the_floor():
    trials = [
        trial("ft", a=5.0, b=1.0),
        trial("x", a=4.6, b=3.0),
        trial("y", a=4.4, b=9.0),
        trial("z", a=4.6, b=3.0),
    ]
    assert Goal("b", {"a": 4.5}).best_first(trials)[0].candidate.command == "x"
    assert Goal("b", {"a": 4.0}).best_first(trials)[0].candidate.command == "y"
    assert Goal("b").best_first(trials)[0].candidate.command == "y"
    assert Goal("b", {"a": 6.0}).best_first(trials)[0].candidate.command == "ft"  # loses least
    assert Goal("a").best_first(trials)[0].candidate.command == "ft"


def test_a_loss_of_the_limit_is_within():
    """0.8 - 0.7 is more than 0.1 in floats, and 80.3 - 80.2 is less."""
    for best, loss in ((0.8, 0.1), (80.3, 0.1), (-0.7, 0.1), (1e6, 0.3)):
        goal = Goal("b", {"a": best - loss})
        for score in (float(f"{best - loss:.10g}"), best - loss - 1e-12):
            assert goal.lack(trial("x", a=score, b=1.0)) == 0.0
            best_first = goal.best_first([trial("y", a=best, b=0.0), trial("x", a=score, b=1.0)])
            assert best_first[0].candidate.command == "x"
        assert goal.lack(trial("x", a=best - loss - 1e-2, b=1.0)) > 0.0
