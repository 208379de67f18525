"""The estimate of a run's time: what it is made of, and when there is none. How close it is, is measured by
`python -m tests.benchmarks estimate`."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.api.edit import edit
from monosoup_cli.pipeline import cost, samples
from monosoup_cli.pipeline.cost import estimate, makespan
from monosoup_cli.pipeline.law import Law
from monosoup_cli.pipeline.ready import make_ready
from monosoup_cli.pipeline.shares import Share
from monosoup_cli.report.words import rough
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.plan import Matrices, PlannedTensor, Reads
from tests.conftest import everything_in


def tensor(*shape, is_matrix=True, count=1):
    matrices = Matrices(Cut(*shape), count, count > 1) if is_matrix else None
    return PlannedTensor("name", "F32", "F32", shape, None, matrices, Reads(True, True))


@pytest.mark.parametrize(
    "constants", [(1e-3, 2e-8, 1.5e-10, 3e-10), (1e-3, 2e-8, 0.0, 0.0), (5e-4, 0.0, 0.0, 0.0)], ids=str
)
def test_a_law_is_found_again_in_samples_that_follow_it(constants):
    def seconds(rows, columns):
        short, long = sorted((rows, columns))
        c0, c1, c2, c3 = constants
        return c0 + c1 * long * short + c2 * long * short**2 + c3 * short**3

    law = Law.of([(tensor(*shape), seconds(*shape)) for shape in cost.SHAPES])
    for shape in [(300, 300), (1024, 1024), (2048, 8192), (50_000, 512), (16, 16)]:
        assert law.seconds(tensor(*shape)) == pytest.approx(seconds(*shape), rel=1e-6)
    assert law.seconds(tensor(300, 400, count=7)) == pytest.approx(7 * seconds(300, 400), rel=1e-6)


def test_a_law_of_noisy_samples_never_falls_with_the_size():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        noise = torch.rand(len(cost.SHAPES), generator=generator).tolist()
        measured = [
            (tensor(*shape), (0.5 + part) * 1e-9 * shape[0] * shape[1] ** 1.5)
            for shape, part in zip(cost.SHAPES, noise, strict=True)
        ]
        law = Law.of(measured)
        times = [law.seconds(tensor(side, side)) for side in (1, 16, 100, 1000, 10_000)]
        assert times == sorted(times)
        assert times[0] >= 0 < times[-1]


def test_elements_that_are_no_matrix_take_time_by_their_number():
    law = Law.of([(tensor(size, is_matrix=False), 1e-4 + 3e-9 * size) for size in (16, 1 << 20)])
    assert law.seconds(tensor(5000, 400, is_matrix=False)) == pytest.approx(1e-4 + 6e-3, rel=1e-6)


def test_one_sample_stands_for_all_that_are_as_small():
    law = Law.of([(tensor(16, 16), 1e-3)])
    assert law.seconds(tensor(10, 12)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("seconds", "workers", "end"),
    [([3, 1, 1, 1], 2, 3), ([1, 1, 1, 3], 2, 4), ([5], 4, 5), ([1] * 7, 3, 3), ([], 2, 0), ([2, 3], 1, 5)],
    ids=str,
)
def test_the_first_free_worker_begins_the_next_tensor(seconds, workers, end):
    assert makespan(seconds, workers) == end


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.04, "0.04 s"), (2.345, "2.3 s"), (99.4, "99 s"), (192, "3.2 min"), (5400, "90 min")],
        *[(1e5, "28 h"), (1e6, "278 h")],
    ],
)
def test_estimates_have_two_digits(seconds, words):
    assert rough(seconds) == words


@pytest.fixture
def pair(tmp_path):
    """Paths of a base and a fine-tune, with matrices, vectors, codes, and a NaN in each of them."""
    shapes = {"a.weight": (300, 700), "b.weight": (40, 30), "c.bias": (30,), "scale": ()}
    paths = []
    for number, name in enumerate(("base", "ft")):
        generator = torch.Generator().manual_seed(number)
        weights = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
        weights["a.weight"][0, 0] = torch.nan
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({**weights, "codes": torch.arange(50)}, paths[-1])
    return paths


def test_nothing_is_read_or_written(pair, tmp_path):
    """The NaN would stop whoever reads it."""
    before = everything_in(tmp_path)
    with edit.prepare(*pair, tmp_path / "out", device="cpu") as planned:
        found = estimate(make_ready(planned))
    assert found is not None
    assert found.seconds > 0
    assert found.calibration_seconds > 0
    assert everything_in(tmp_path) == before


def test_samples_are_small_and_every_way_to_make_a_tensor_has_some(pair, tmp_path, monkeypatch):
    taken = []

    def watched(ready, finetuned, sample, repeats):
        taken.append(sample)
        return samples.seconds_for(ready, finetuned, sample, repeats)

    monkeypatch.setattr(cost, "seconds_for", watched)
    with edit.prepare(*pair, tmp_path / "out", device="cpu") as planned:
        ready = make_ready(planned)
        estimate(ready)
        of_edited = [sample.shape for sample in taken if sample.is_edited]
        assert max(min(shape) for shape in of_edited) <= 2 * 300
        assert {sample.is_edited for sample in taken} == {True, False}
        assert all(sample.elements <= 300 * 700 + 40 * 30 for sample in taken)


def test_more_tensors_take_longer_and_more_workers_take_less(pair, tmp_path, monkeypatch):
    """The differences are far above what two calibrations differ in."""
    monkeypatch.setattr("monosoup_cli.pipeline.cost._spent", lambda workers: 0.0)  # by tests before this one

    def seconds(copies, workers):
        with edit.prepare(*pair, tmp_path / "out", workers=2, device="cpu") as planned:
            ready = make_ready(planned)
            matrix = next(one for one in ready.plan.tensors if one.name == "a.weight")
            resources = replace(ready.resources, places=ready.resources.places[:workers])
            share = Share((matrix,) * copies, ready.form.layout)
            return estimate(replace(ready, share=share, resources=resources)).seconds

    small, large, shared = seconds(1, 1), seconds(5000, 1), seconds(5000, 2)
    assert large > 5 * small
    assert 0.3 * large < shared < 0.8 * large


def test_no_estimate_where_a_score_command_runs(run, tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file({"weight": torch.full((4, 4), float(number))}, paths[-1])
    words = ["soup", *paths, "-o", tmp_path / "out", "--greedy", "--score-command", "echo 1 {}", "--dry-run"]
    assert json.loads(run(*words, "--format", "json").out)["estimated_seconds"] is None
    assert "not estimated: a score command may take any time" in run(*words).out


@pytest.mark.cuda
def test_no_estimate_for_a_card(run, tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file({"weight": torch.eye(4) * (number + 1)}, paths[-1])
    words = ["edit", *paths, "-o", tmp_path / "out", "--device", "cuda", "--dry-run"]
    assert json.loads(run(*words, "--format", "json").out)["estimated_seconds"] is None
    assert "not estimated: no card has been measured yet" in run(*words).out
