"""`soup --schedule`: averages of one training run, against runs whose learning rate decays."""

import json
import math
import warnings
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint

import monosoup_cli
from monosoup_cli.methods.model_soup import scheduled
from monosoup_cli.sources.runs import steps_of
from tests.schema import assert_valid

DECAYS = {
    "linear": lambda x: 1 - x,
    "minus-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def write(folder, steps, dtype=torch.float32, names="checkpoint-{}"):
    """A run at a constant rate, which learns something random between checkpoints. They are float64."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(6, 5, generator=generator).double()
    made, last = {}, None
    for step in steps:
        learned = (step - last if last is not None else 0) * torch.randn(6, 5, generator=generator).double()
        weights, last = weights + 0.01 * learned, step
        made[step] = weights.to(dtype).double()
        place = folder / names.format(step)
        place.mkdir(parents=True)
        tensors = {"layer.weight": made[step].to(dtype), "layer.bias": made[step][0].to(dtype)}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize("steps", [[100, 200, 300, 400], [10, 40, 50, 200], [7, 9]])
@pytest.mark.parametrize("schedule", DECAYS)
def test_the_mean_is_a_run_whose_rate_decays(tmp_path, run, schedule, steps):
    """Every part of the way counts by the rate at its end; that reaches 0 a mean distance after the run."""
    made = write(tmp_path / "run", steps)
    assert run("soup", tmp_path / "run", "-o", tmp_path / "out", "--schedule", schedule).code == 0
    length = (steps[-1] - steps[0]) * len(steps) / (len(steps) - 1)
    expected = made[steps[0]].clone()
    for before, after in pairwise(steps):
        expected += DECAYS[schedule]((after - steps[0]) / length) * (made[after] - made[before])
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    torch.testing.assert_close(found, expected.float(), rtol=2e-7, atol=1e-8)


def test_exponential_and_even_averages(tmp_path, run):
    steps = [100, 200, 400]
    made = write(tmp_path / "run", steps)
    base = ("soup", tmp_path / "run")
    assert run(*base, "-o", tmp_path / "ema", "--schedule", "ema", "--ema-decay", "0.5").code == 0
    shares = [0.5 ** ((400 - step) / 150) for step in steps]
    expected = sum(share * made[step] for share, step in zip(shares, steps, strict=True)) / sum(shares)
    found = load_file(tmp_path / "ema" / "model.safetensors")["layer.weight"]
    torch.testing.assert_close(found, expected.float(), rtol=2e-7, atol=1e-8)
    assert run(*base, "-o", tmp_path / "even").code == 0
    assert run(*base, "-o", tmp_path / "uniform", "--schedule", "uniform").code == 0
    for name in ("even", "uniform"):
        found = load_file(tmp_path / name / "model.safetensors")["layer.weight"]
        torch.testing.assert_close(found, (sum(made.values()) / 3).float(), rtol=2e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_schedules_are_the_bytes_of_each(tmp_path, run, dtype):
    write(tmp_path / "run", [100, 250, 300, 500], dtype)
    names = [*DECAYS, "ema", "uniform"]
    result = run(
        "soup", tmp_path / "run", "-o", tmp_path / "all", "--schedule", ",".join(names), "--window", 3
    )
    assert result.code == 0, result.err
    for name in names:
        alone = tmp_path / f"alone-{name}"
        assert run("soup", tmp_path / "run", "-o", alone, "--schedule", name, "--window", 3).code == 0
        made = (tmp_path / "all" / f"schedule-{name}" / "model.safetensors").read_bytes()
        assert made == (alone / "model.safetensors").read_bytes()
    report = json.loads((tmp_path / "all" / "monosoup_report.json").read_text())
    assert_valid(report)
    assert [one["step"] for one in report["averaged"]] == [250, 300, 500]
    for name in names:
        weights = [one["weights"][name] for one in report["averaged"]]
        assert weights == scheduled(name, [250, 300, 500], 0.8)
        assert sum(weights) == pytest.approx(1)
        assert min(weights) > 0
    assert monosoup_cli.verify(tmp_path / "all", again=True)["differences"] == []


@pytest.mark.parametrize("names", ["checkpoint-{}", "global_step{}", "step_{}", "iter_{:07}", "epoch-{}"])
def test_the_folder_of_a_run(tmp_path, run, names):
    """By the numbers, not the words; and what else is there does not count."""
    made = write(tmp_path / "run", [5, 40, 300], names=names)
    (tmp_path / "run" / "logs").mkdir()
    assert run("soup", tmp_path / "run", "-o", tmp_path / "out", "--window", "2").code == 0
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert [one["step"] for one in report["averaged"]] == [40, 300]
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    torch.testing.assert_close(found, ((made[40] + made[300]) / 2).float(), rtol=2e-7, atol=1e-8)


def test_the_folder_of_a_run_of_fsdp(tmp_path, run):
    """As accelerate writes it, with the weights in a folder inside of each."""
    made = {}
    for step in (10, 20):
        made[step] = torch.randn(12, 8, generator=torch.Generator().manual_seed(step))
        inner = tmp_path / "run" / f"checkpoint-{step}" / "pytorch_model_fsdp_0"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint.save({"model": {"layer.weight": made[step]}}, checkpoint_id=inner, no_dist=True)
    result = run("soup", tmp_path / "run", "-o", tmp_path / "out", "--schedule", "linear")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert [one["step"] for one in report["averaged"]] == [10, 20]
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    torch.testing.assert_close(found, (made[10] + made[20]) / 2, rtol=2e-7, atol=1e-8)


def test_checkpoints_in_any_order_and_files(tmp_path, run):
    made = write(tmp_path / "run", [100, 200, 300])
    for step in made:
        (tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors").rename(
            tmp_path / f"m-{step}.safetensors"
        )
    files = [tmp_path / f"m-{step}.safetensors" for step in (300, 100, 200)]
    assert run("soup", *files, "-o", tmp_path / "out", "--schedule", "cosine").code == 0
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert report["arguments"]["finetuned"] == [str(tmp_path / f"m-{step}.safetensors") for step in made]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--schedule", "cosin"), "expected uniform, linear, minus-sqrt, cosine or ema, found 'cosin'"),
        (("--schedule", "ema,ema"), "--schedule has the same value twice"),
        (("--schedule", "ema", "--ema-decay", "2"), "--ema-decay is out of range"),
        (("--schedule", "linear", "--ema-decay", "0.5"), "--ema-decay needs --schedule ema"),
        (("--ema-decay", "0.5"), "--ema-decay needs --schedule ema"),
        (("--steps", "1,2"), "--steps needs --schedule or --window"),
        (("--schedule", "linear", "--steps", "1"), "--steps needs one number for each checkpoint"),
        (("--schedule", "linear", "--steps", "1,1"), "--steps must be whole numbers, each once"),
        (("--schedule", "linear", "--steps", "1,2.5"), "--steps must be whole numbers, each once"),
        (("--schedule", "linear", "--weights", "1,1"), "exclude each other"),
        (("--window", "2", "--greedy", "--score-command", "true"), "exclude each other"),
    ],
)
def test_what_is_refused(tmp_path, run, words, problem):
    write(tmp_path / "run", [1, 2])
    refused = run("soup", tmp_path / "run", "-o", tmp_path / "out", *words)
    assert (refused.code, problem in refused.err) == (2, True), refused.err


def test_names_that_do_not_say_the_step(tmp_path, run):
    write(tmp_path / "run", [1, 2], names="checkpoint-{}")
    write(tmp_path / "other", [2], names="checkpoint-{}")
    write(tmp_path, [1], names="final")
    one, two = (tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2))
    refused = run("soup", one, tmp_path / "final", "-o", tmp_path / "out", "--schedule", "linear")
    assert "its name has no step, and those of others have one" in refused.err
    same = tmp_path / "other" / "checkpoint-2"
    refused = run("soup", one, two, same, "-o", tmp_path / "out", "--schedule", "linear")
    assert "two checkpoints have the same step in their names: found 2; --steps gives" in refused.err
    (tmp_path / "empty").mkdir()
    refused = run("soup", tmp_path / "empty", "-o", tmp_path / "out")
    assert "too few fine-tuned checkpoints in this folder: expected at least 2, such as" in refused.err
    refused = run("soup", one, two, "-o", tmp_path / "out", "--window", "3")
    assert "--window is larger than the run: expected at most 2, found 3" in refused.err


@pytest.mark.parametrize(
    ("paths", "steps"),
    [
        (["run/step-100/model.safetensors", "run/step-50/model.safetensors"], [100, 50]),
        (["ckpt-10-bf16", "ckpt-20-bf16"], [10, 20]),
        (["org/pythia@step1000", "org/pythia@step3000/"], [1000, 3000]),
        (["a/model_400.pt", "a/model_20.pt"], [400, 20]),
        ([f"org/one@{'0a1' * 13}b", f"org/two@{'9' * 40}"], [0, 1]),
        (["first.safetensors", "second.safetensors"], [0, 1]),
    ],
)
def test_the_step_in_a_name(paths, steps):
    """The digits of a commit are none."""
    assert steps_of(paths) == steps


def test_given_steps_are_kept_for_every_other_run(tmp_path, run):
    """They are in the report and the card, so names that say nothing, as commits, do not matter."""
    made = write(tmp_path / "run", [100, 200, 300])
    paths = [tmp_path / "run" / f"checkpoint-{step}" for step in made]
    words = ("soup", *paths, "--schedule", "minus-sqrt")
    assert run(*words, "-o", tmp_path / "out", "--steps", "30,10,20", "--window", "2").code == 0
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert report["arguments"]["steps"] == [20, 30]
    assert [one["source"] for one in report["averaged"]] == [str(paths[2]), str(paths[0])]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "soup checkpoint-300 checkpoint-100 --schedule minus-sqrt --steps 20,30 --window 2" in card
    assert monosoup_cli.verify(tmp_path / "out", again=True)["differences"] == []
    assert run(*words, "-o", tmp_path / "plain").code == 0
    assert json.loads((tmp_path / "plain" / "monosoup_report.json").read_text())["arguments"]["steps"] == [
        *made
    ]


def test_kept_tensors_have_the_weights_of_their_schedule(tmp_path, run):
    """As if each schedule ran alone."""
    write(tmp_path / "run", [100, 250, 300], torch.bfloat16)
    kept = ("--exclude", "*weight")
    assert run("soup", tmp_path / "run", "-o", tmp_path / "all", "--schedule", "linear,ema", *kept).code == 0
    for name in ("linear", "ema"):
        alone = tmp_path / name
        assert run("soup", tmp_path / "run", "-o", alone, "--schedule", name, *kept).code == 0
        made = (tmp_path / "all" / f"schedule-{name}" / "model.safetensors").read_bytes()
        assert made == (alone / "model.safetensors").read_bytes()


def test_nan_in_one_checkpoint_is_named(tmp_path, run):
    write(tmp_path / "run", [1, 2, 3])
    file = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    tensors = load_file(file)
    tensors["layer.weight"][2, 3] = math.nan
    save_file(tensors, file, {"format": "pt"})
    for schedule in ("linear", "linear,ema"):
        refused = run("soup", tmp_path / "run", "-o", tmp_path / "out", "--schedule", schedule)
        assert (refused.code, f"{file.parent}: tensor 'layer.weight'" in refused.err) == (1, True), (
            refused.err
        )
