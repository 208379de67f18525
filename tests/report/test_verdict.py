"""What a report says in words: for each kind of fine-tune the right thing, and nothing else.

The thresholds were chosen on matrices of 256 × 256, 700 × 256 and 700 × 900 and the seeds 0 to 3; here
are others.
"""

import json
import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.methods.monosoup import Weighting
from monosoup_cli.report import notes, verdict
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import findings, sentences
from monosoup_cli.spectral.rounding import MARGIN
from tests.sampling import first

SEEDS = first(3, range(1000, 1006))
SHAPES = [(64, 200), (160, 96), (333, 512), (384, 128), (240, 240), (1500, 80)]
SHORT = {torch.float32: 1e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""How far apart the numbers of a dtype are, relatively."""


class Model:
    """Random weights, and what may become of them."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        count = 4 + seed % 3
        order = torch.randperm(len(SHAPES), generator=self.generator).tolist()
        shapes = [SHAPES[order[number % len(SHAPES)]] for number in range(count)]
        self.size = 0.01 + 0.05 * self.uniform()
        self.base = {
            f"layers.{number}.weight": self.size * self.normal(*shape) for number, shape in enumerate(shapes)
        }

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self):
        return float(torch.rand((), generator=self.generator))

    def orthogonal(self, rows, columns):
        return torch.linalg.qr(self.normal(rows, columns))[0]

    def flat(self, shape, spread):
        """Singular values between 1 - spread and 1."""
        rank = min(shape)
        sigma = 1 - spread * torch.rand(rank, generator=self.generator, dtype=torch.float64)
        return (self.orthogonal(shape[0], rank) * sigma) @ self.orthogonal(shape[1], rank).T

    def ordinary(self, shape):
        """Some strong directions over a rest of full rank, as fine-tuning leaves."""
        count = min(shape) // 4
        strong = (self.normal(shape[0], count) * 0.9 ** torch.arange(count)) @ self.normal(count, shape[1])
        return self.scaled(strong / 3 + self.normal(*shape), 0.02 + 0.05 * self.uniform())

    def scaled(self, update, relative):
        """As large, relative to the weights."""
        return relative * self.size * math.sqrt(update.numel()) * update / torch.linalg.matrix_norm(update)


@pytest.fixture
def told(tmp_path):
    """The report of inspect-spectrum on such a pair."""

    def told(base, finetuned, **options):
        for content, name in ((base, "base"), (finetuned, "finetuned")):
            path = tmp_path / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
        return monosoup_cli.inspect_spectrum(
            tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", **options
        )

    return told


def only_finding(report):
    """The one kind of finding there is, of all moved layers; with its figures and sentence."""
    (found,) = report["verdict"]["findings"]
    assert sentences(report["verdict"])[0] == found["sentence"]
    return found


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_merged_lora(told, seed, dtype):
    model = Model(seed)
    rank, relative = (8, 4, 8, 16, 8, 2)[seed % 6], 0.01 * 30 ** model.uniform()
    base = {name: weights.to(dtype) for name, weights in model.base.items()}
    finetuned = {
        name: (
            weights.double()
            + model.scaled(model.normal(len(weights), rank) @ model.normal(rank, weights.shape[1]), relative)
        ).to(dtype)
        for name, weights in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], len(found["layers"])) == ("lora", len(base))
    assert found["figures"]["rank"] == [rank, rank]
    assert f"a merged LoRA of rank {rank}" in found["sentence"]


def test_a_lora_stored_in_16_bits_does_not_look_like_its_rank(told):
    """The figure that people stumble over: the effective rank of a rank-8 update, once it is rounded."""
    model = Model(7)
    base = {"w": (0.02 * model.normal(512, 512)).bfloat16()}
    update = model.scaled(model.normal(512, 8) @ model.normal(8, 512), 0.01)
    both = {"w": base["w"], "v": base["w"].clone()}
    rounded = {name: (weights.double() + update).bfloat16() for name, weights in both.items()}
    found = only_finding(told(both, rounded))
    assert found["kind"] == "lora"
    assert found["figures"]["effective_rank"] > 40
    assert re.search(r"Rounding raises the effective rank to \d+", found["sentence"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_in_16_bits_with_noise(told, seed, dtype):
    """Noise up to half of what rounding makes: base in 32 bits, its copy in 16."""
    model = Model(seed)
    noise = 0.5 * model.uniform() * SHORT[dtype] / math.sqrt(12) * model.size
    base = {name: weights.float() for name, weights in model.base.items()}
    copy = {
        name: (weights + noise * model.normal(*weights.shape)).to(dtype) for name, weights in base.items()
    }
    found = only_finding(told(base, copy))
    assert (found["kind"], len(found["layers"])) == ("rounding", len(base))
    assert found["figures"]["rounding_share"] == [1.0, 1.0]
    assert "100 % of Σσ comes from singular values no larger than the error of rounding" in found["sentence"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_that_16_bits_hardly_show(told, seed):
    """Both in bfloat16, and the change below the last place of most weights."""
    model = Model(seed)
    base = {name: weights.bfloat16() for name, weights in model.base.items()}
    noise = 1e-3 * model.size
    finetuned = {
        name: (weights + noise * model.normal(*weights.shape)).bfloat16() for name, weights in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], len(found["layers"])) == ("rounding", len(base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_base(told, seed, dtype):
    model = Model(seed)
    size = model.size * (0.7 + 0.7 * model.uniform())
    base = {name: weights.to(dtype) for name, weights in model.base.items()}
    other = {name: (size * model.normal(*weights.shape)).to(dtype) for name, weights in base.items()}
    found = only_finding(told(base, other))
    assert (found["kind"], len(found["layers"])) == ("wrong_base", len(base))
    assert found["sentence"].startswith("Is BASE the model that was fine-tuned?")
    low, high = found["figures"]["relative_update"]
    ratios = [
        float(torch.dist(other[name].double(), base[name].double()) / base[name].double().norm())
        for name in base
    ]
    assert (low, high) == pytest.approx((min(ratios), max(ratios)))


@pytest.mark.parametrize("seed", SEEDS)
def test_frozen_layers(told, seed):
    model = Model(seed)
    base = {name: weights.float() for name, weights in model.base.items()}
    frozen = sorted(base)[:: 2 + seed % 2]
    finetuned = {
        name: weights.clone() if name in frozen else (weights + model.ordinary(weights.shape)).float()
        for name, weights in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], sorted(found["layers"])) == ("frozen", frozen)
    assert re.match(rf"{len(frozen)} layers? (\(.*\) )?did not change", found["sentence"])
    assert (frozen[0] in found["sentence"]) == (len(frozen) <= 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flat_update_is_left_alone(told, seed):
    model = Model(seed)
    base = {name: weights.float() for name, weights in model.base.items()}
    finetuned = {
        name: (weights + 0.1 * model.size * model.flat(weights.shape, 0.0)).float()
        for name, weights in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], len(found["layers"])) == ("whole", len(base))
    assert "k = r" in found["sentence"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_nearly_flat_update_is_warned_of(told, seed):
    """Wide enough that the effective rank stays below r; then λ_high falls to about 0.3."""
    model = Model(seed)
    sizes = [(740 + 10 * (seed % 9), 1000), (800, 760)]
    base = {f"layers.{n}.weight": model.size * model.normal(*shape) for n, shape in enumerate(sizes)}
    finetuned = {
        name: weights + model.size * model.flat(weights.shape, 0.2) for name, weights in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], len(found["layers"])) == ("weakened", len(base))
    assert found["sentence"].startswith("Warning: in all 2 layers")
    assert max(found["figures"]["lambda_high"]) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_of_an_ordinary_fine_tune_there_is_nothing_to_say(told, seed, dtype):
    model = Model(seed)
    base = {name: weights.to(dtype) for name, weights in model.base.items()}
    finetuned = {
        name: (weights.double() + 3 * model.ordinary(weights.shape)).to(dtype)
        for name, weights in base.items()
    }
    report = told(base, finetuned)
    assert report["verdict"]["findings"] == []
    assert report["verdict"]["size"]["relative_update"] > 0.05
    assert sentences(report["verdict"]) == [
        report["verdict"][part]["sentence"] for part in ("size", "interpolation")
    ]


def test_every_layer_tells_its_own_story(told):
    model = Model(5)
    base = {name: 0.02 * model.normal(160, 96) for name in ("fine", "also.fine", "new.head", "still", "flat")}
    finetuned = {name: weights + model.ordinary(weights.shape) for name, weights in base.items()}
    finetuned["new.head"] = 0.02 * model.normal(160, 96)
    finetuned["still"] = base["still"].clone()
    finetuned["flat"] = base["flat"] + 1e-3 * model.flat((160, 96), 0.0)
    report = told(base, finetuned)
    found = {each["kind"]: each for each in report["verdict"]["findings"]}
    assert {kind: each["layers"] for kind, each in found.items()} == {
        "wrong_base": ["new.head"],
        "whole": ["flat"],
        "frozen": ["still"],
    }
    assert (
        "In 1 of 4 layers (new.head), the weights look newly initialised" in found["wrong_base"]["sentence"]
    )
    assert "like a new head" in found["wrong_base"]["sentence"]


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("ranks", [[8], [4, 8, 12, 16], [8, 8, 16]], ids=str)
def test_a_lora_of_several_ranks_or_of_one_layer(told, ranks, dtype):
    model = Model(6)
    base = {f"layers.{n}": (0.02 * model.normal(160, 160)).to(dtype) for n in range(len(ranks))}
    finetuned = {
        name: (w.double() + model.scaled(model.normal(160, rank) @ model.normal(rank, 160), 0.1)).to(dtype)
        for rank, (name, w) in zip(ranks, base.items(), strict=True)
    }
    found = only_finding(told(base, finetuned))
    assert (found["kind"], found["figures"]["rank"]) == ("lora", [min(ranks), max(ranks)])
    words = f"{ranks[0]}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    assert f"the update looks like a merged LoRA of rank {words} (or higher" in found["sentence"]


def test_a_lora_whose_weakest_directions_lie_below_rounding(told):
    model = Model(8)
    base = {f"layers.{n}": (0.02 * model.normal(200, 160)).float() for n in range(3)}
    decay = 0.3 ** torch.arange(16, dtype=torch.float64)
    finetuned = {
        name: (
            w + model.scaled((model.orthogonal(200, 16) * decay) @ model.orthogonal(160, 16).T, 0.1)
        ).float()
        for name, w in base.items()
    }
    found = only_finding(told(base, finetuned))
    assert found["kind"] == "lora"
    assert 8 < found["figures"]["rank"][0] < 16
    assert "(or higher, if noise hides its weakest directions)" in found["sentence"]


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.5},
        {"rank": 3},
        {"rank": 10**6},
        {"rank_fraction": 0.1},
        {"split": "energy-entropy"},
        {"weighting": "low"},
        {"weighting": "uniform", "rank": 10**6},
    ],
    ids=str,
)
def test_what_was_asked_for_is_no_finding(told, options):
    """k = r and a small λ_high then tell of the options, and not of the spectrum."""
    model = Model(4)
    base = {name: weights.float() for name, weights in model.base.items()}
    finetuned = {name: (weights + model.ordinary(weights.shape)).float() for name, weights in base.items()}
    assert told(base, finetuned, **options)["verdict"]["findings"] == []


def pair_with_and_without_noise():
    """Layers of which one update is noise, one is of exactly low rank, and one is both."""
    model = Model(4)
    noise, low = model.normal(64, 48), (model.normal(64, 2) * 8).round() @ (model.normal(2, 48) * 8).round()
    updates = {"noise.weight": noise, "low.weight": low, "both.weight": noise + low}
    base = {name: (1e3 * model.normal(64, 48)).round() for name in updates}
    return base, {name: base[name] + update for name, update in updates.items()}


def test_a_split_by_noise_tells_of_updates_that_are_all_noise_or_have_none(told):
    report = told(*pair_with_and_without_noise(), split="noise")
    assert [(one["kind"], one["layers"]) for one in report["verdict"]["findings"]] == [
        ("all_noise", ["noise.weight"]),
        ("no_noise", ["low.weight"]),
    ]
    assert {row["name"]: row["k"] for row in rows_of(report)} == {
        "noise.weight": 0,
        "low.weight": 2,
        "both.weight": 2,
    }


SAID = {"keeps it": 1.0, "removes it": 0.0, "multiplies it by 0.5": 0.5, "multiplies it by 0.25": 0.25}
"""What a sentence says that an edit does to an update, and the factor that the update then has."""


def written_by(run, folder, pair, *options):
    """What an edit said, and what it wrote."""
    for name, content in zip(("base", "ft"), pair, strict=True):
        save_file(
            {key: tensor.contiguous() for key, tensor in content.items()}, folder / f"{name}.safetensors"
        )
    inputs = (folder / "base.safetensors", folder / "ft.safetensors")
    result = run("edit", *inputs, "-o", folder / "out", "--overwrite", *options)
    return " ".join(result.err.split()), load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize("wise", [[], ["--wise", "0.5"]], ids=["", "wise"])
@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_so_does_an_edit_and_says_what_became_of_them(tmp_path, run, weighting, wise):
    base, finetuned = pair = pair_with_and_without_noise()
    words, edited = written_by(run, tmp_path, pair, "--split", "noise", "--weighting", weighting, *wise)
    told = {
        "noise.weight": "the whole update looks like noise",
        "low.weight": "the update has no noise to split off",
    }
    for name, story in told.items():
        rest = words.partition(f"({name}), ")[2].partition(f"{story}, and the edit ")[2]
        (said,) = (each for each in SAID if rest.startswith(each))
        expected = base[name] + SAID[said] * (finetuned[name] - base[name])
        torch.testing.assert_close(edited[name], expected, rtol=0.0, atol=1e-9)


def test_notes_take_the_verdict_of_the_report_or_find_it_again(tmp_path, run, monkeypatch):
    """A report from elsewhere may have sentences without their figures."""
    written_by(run, tmp_path, pair_with_and_without_noise(), "--split", "noise", "--weighting", "uniform")
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    bare = {"findings": [{"sentence": "Bare."}], "interpolation": {"sentence": "Bare."}}
    said = notes.notes_on({**report, "verdict": bare})
    assert ["multiplies it by 0.5" in note for note in said] == [True, True, False]
    assert "of the way back to the base" in said[2]
    monkeypatch.setattr(notes, "verdict_of", None)
    assert notes.notes_on(report) == said


def test_without_a_split_by_noise_nothing_is_said_of_it(tmp_path, run):
    assert "exactly low rank" not in written_by(run, tmp_path, pair_with_and_without_noise())[0]


@pytest.mark.parametrize("wise", [None, 0.5, 0.0])
def test_an_update_without_a_weak_part_becomes_what_is_said(tmp_path, run, wise):
    model = Model(5)
    base = {"w": 0.02 * model.normal(96, 80), "fine": 0.02 * model.normal(96, 80)}
    finetuned = {
        "w": base["w"] + 1e-3 * model.flat((96, 80), 0.0),
        "fine": base["fine"] + model.ordinary((96, 80)),
    }
    _, edited = written_by(run, tmp_path, (base, finetuned), *([] if wise is None else ["--wise", wise]))
    words = " ".join(run("report", tmp_path / "out").out.split())
    said = re.search(r"\(w\), the update has no weak part, and the edit (.+?) \(k = r\)\. ", words)
    expected = base["w"] + SAID[said[1]] * (finetuned["w"] - base["w"])
    torch.testing.assert_close(edited["w"], expected, rtol=0.0, atol=1e-12)


def test_an_edit_that_changes_nothing_says_so(tmp_path, run):
    """By a note, and by the field on which docs/ci.md stops."""
    model = Model(5)
    base = {"w": 0.02 * model.normal(96, 80)}
    said, _ = written_by(run, tmp_path, (base, {"w": base["w"] + 1e-3 * model.flat((96, 80), 0.0)}))
    assert said.count("note: the edit barely changes the fine-tuned weights") == 1
    nearest = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())["verdict"]["interpolation"]
    assert nearest["from_finetuned"] < 1e-3
    half, _ = written_by(run, tmp_path, (base, load_file(tmp_path / "ft.safetensors")), "--wise", "0.5")
    assert "barely changes" not in half


TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize(
    ("stored", "written", "relative", "is_lost"),
    [
        ("bfloat16", "bfloat16", 0.003, True),
        ("bfloat16", "bfloat16", 0.03, False),
        ("bfloat16", "float16", 0.003, False),
        ("float16", "float16", 0.0004, True),
        ("float16", "float16", 0.004, False),
    ],
)
def test_an_edit_that_rounding_undoes_is_told(tmp_path, run, stored, written, relative, is_lost):
    """Against what is left of it in the file, as docs/method.md says."""
    model = Model(6)
    base = {name: weights.to(TYPES[stored]) for name, weights in model.base.items()}
    tuned = {
        name: (w.double() + model.scaled(model.normal(*w.shape), relative)).to(w.dtype)
        for name, w in base.items()
    }
    said, rounded = written_by(run, tmp_path, (base, tuned), "--dtype", written)
    assert ("undoes most of the edit" in said) == is_lost, said
    loss = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())["verdict"]["rounding_loss"]
    assert (loss is not None) == is_lost
    assert ("undoes most of the edit" in " ".join(run("report", tmp_path / "out").out.split())) == is_lost
    exact_said, exact = written_by(run, tmp_path, (base, tuned), "--dtype", "float32")
    assert "undoes" not in exact_said
    moved, edit = (
        torch.cat([(one[name].double() - weights.double()).flatten() for name, weights in tuned.items()])
        for one in (rounded, exact)
    )
    assert (float(moved @ edit / edit.square().sum()) < 0.5) == is_lost


def test_weights_between_the_numbers_of_a_dtype_are_not_rounded_back(tmp_path, run):
    """Those of a mean, and those of a fine-tune with more bits."""
    model = Model(6)
    base = {name: weights.bfloat16() for name, weights in model.base.items()}
    first, second = (
        {name: w + model.scaled(model.normal(*w.shape), 0.003).float() for name, w in base.items()}
        for _ in range(2)
    )
    assert "undoes" not in written_by(run, tmp_path, (base, first), "--dtype", "bfloat16")[0]
    save_file({name: w.bfloat16() for name, w in second.items()}, tmp_path / "second.safetensors")
    assert "undoes" not in written_by(run, tmp_path, (base, first), tmp_path / "second.safetensors")[0]


def test_a_head_over_zeros_was_made_anew(told):
    model = Model(4)
    base = {name: weights.float() for name, weights in model.base.items()}
    finetuned = {name: (weights + model.ordinary(weights.shape)).float() for name, weights in base.items()}
    finetuned["head"], base["head"] = model.normal(12, 96).float(), torch.zeros(12, 96)
    found = only_finding(told(base, finetuned))
    assert (found["kind"], found["layers"]) == ("wrong_base", ["head"])
    assert found["figures"] == {"relative_update": None}
    assert "(the base is zero)" in found["sentence"]


def test_a_base_in_few_bits_is_no_rounding_of_the_fine_tune(told):
    """Trained from bf16 weights and stored in fp32: all of the update is there."""
    model = Model(4)
    base = {name: weights.bfloat16() for name, weights in model.base.items()}
    finetuned = {
        name: (w.double() + model.scaled(model.ordinary(w.shape), 0.002)).float() for name, w in base.items()
    }
    assert told(base, finetuned)["verdict"]["findings"] == []


def test_matrices_without_elements_are_not_frozen(told):
    base = {"w": torch.randn(20, 16), "empty": torch.zeros(0, 4)}
    finetuned = {"w": base["w"] + 0.01 * torch.randn(20, 16), "empty": torch.zeros(0, 4)}
    assert told(base, finetuned)["verdict"]["findings"] == []


@pytest.mark.parametrize("wise", [0.3, 0.9])
def test_an_edit_that_went_back_further_is_told_as_it_is(told, tmp_path, wise):
    model = Model(3)
    base = {name: weights + 0.0 for name, weights in model.base.items()}
    finetuned = {name: weights + model.ordinary(weights.shape) for name, weights in base.items()}
    told(base, finetuned)
    pair = tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"
    report = monosoup_cli.edit(*pair, tmp_path / "edited.safetensors", wise=wise)
    found = verdict.verdict_of(report, rows_of(report))["interpolation"]
    edited = load_file(tmp_path / "edited.safetensors")
    moves = {name: (edited[name] - base[name], finetuned[name] - base[name]) for name in base}
    norm = sum((update**2).sum() for _, update in moves.values())
    nearest = sum((move * update).sum() for move, update in moves.values()) / norm
    left = sum(((move - nearest * update) ** 2).sum() for move, update in moves.values())
    away = sum(((move - update) ** 2).sum() for move, update in moves.values())
    assert found["alpha"] == pytest.approx(float(nearest))
    assert found["distance"] == pytest.approx(float((left / norm) ** 0.5))
    assert found["from_finetuned"] == pytest.approx(float((away / norm) ** 0.5))


def test_of_several_their_mean_is_spoken_of(tmp_path):
    model = Model(3)
    for name in ("base", "one", "other"):
        content = {key: w if name == "base" else w + model.ordinary(w.shape) for key, w in model.base.items()}
        save_file(content, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "other")]
    found = monosoup_cli.inspect_spectrum(paths[0], paths[1:])["verdict"]["interpolation"]
    assert "every mix of the base and the mean of the checkpoints: " in found["sentence"]
    assert "WiSE-FT" not in found["sentence"]


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_the_distance_to_plain_interpolation_is_that_of_the_weights(told, tmp_path, seed):
    """Against the weights that `edit` and `wise` write, and every other α."""
    model = Model(seed)
    base = {name: weights + 0.0 for name, weights in model.base.items()}
    finetuned = {
        name: weights + (number + 1) * model.ordinary(weights.shape)
        for number, (name, weights) in enumerate(base.items())
    }
    found = told(base, finetuned)["verdict"]["interpolation"]
    pair = tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"
    monosoup_cli.edit(*pair, tmp_path / "edited.safetensors")
    monosoup_cli.wise(*pair, tmp_path / "wise.safetensors", alpha=found["alpha"])
    edited, wise, tuned, start = (
        torch.cat([tensor.flatten() for _, tensor in sorted(content.items())])
        for content in (
            *(load_file(tmp_path / f"{name}.safetensors") for name in ("edited", "wise")),
            finetuned,
            base,
        )
    )
    norm = torch.dist(tuned, start)
    assert found["distance"] == pytest.approx(float(torch.dist(edited, wise) / norm), rel=1e-9)
    assert found["from_finetuned"] == pytest.approx(float(torch.dist(edited, tuned) / norm), rel=1e-9)
    alphas = found["alpha"] + np.array([-1e-4, 1e-4])
    others = [float(torch.dist(edited, torch.lerp(start, tuned, float(alpha))) / norm) for alpha in alphas]
    assert min(others) > found["distance"]


def row(**measures):
    """A layer of a report that was edited."""
    common = {
        "name": "w",
        "reason": None,
        "rank": 100,
        "k": 50,
        "relative_update": 0.1,
        "lambda_high": 0.9,
        "update_norm": 1.0,
        "equivalent_alpha": 0.9,
        "anisotropy": 0.01,
    }
    return {**common, **measures}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [row(equivalent_alpha=0.99, anisotropy=0.02)],
            "The edit barely changes the fine-tuned weights: it moves them by 2.2 %",
        ),
        (
            [row()],
            "The edit is nearly a plain mix of the base and the fine-tuned weights: the nearest plain"
            " interpolation (WiSE-FT, equivalent α = 0.9) is 1 % of ‖Δ‖ away.",
        ),
        (
            [row(anisotropy=0.1)],
            "The edit differs from every mix of the base and the fine-tuned weights: the nearest plain"
            " interpolation (WiSE-FT, equivalent α = 0.9) is 10 % of ‖Δ‖ away. Only scores tell whether it is"
            " better than that interpolation.",
        ),
        ([row(equivalent_alpha=0.8), row()], "(WiSE-FT, equivalent α = 0.85) is 5.1 % of ‖Δ‖ away."),
        (
            [row(update_norm=1e300), row(update_norm=1e-300, anisotropy=0.5)],
            "nearly a plain mix of the base and the fine-tuned weights: the nearest plain interpolation"
            " (WiSE-FT, equivalent α = 0.9)",
        ),
        ([row(equivalent_alpha=0.69)], "of ‖Δ‖ away. The edit goes 31 % of the way back to the base."),
    ],
)
def test_what_is_said_of_interpolation(rows, words):
    assert words in verdict.interpolation(rows)["sentence"]


def test_where_the_whole_differs_from_the_mean_of_the_layers_both_are_explained():
    """The α of the whole weighs layers by the square of their updates: 9 of 10 parts here."""
    told = {"anisotropy": 0.2, "reason": None}
    rows = [
        row(equivalent_alpha=0.5, update_norm=3.0, **told),
        row(equivalent_alpha=1.0, update_norm=1.0, **told),
    ]
    sentence = verdict.interpolation(rows)["sentence"]
    assert "equivalent α = 0.55)" in sentence
    assert "The plain means over the layers are 0.75 (equivalent α) and 0.2 (anisotropy)." in sentence
    alike = [{**rows[0], "update_norm": norm} for norm in (1.0, 3.0)]
    assert "means over the layers" not in verdict.interpolation(alike)["sentence"]


def test_the_way_back_is_not_said_of_a_small_step():
    assert "the way back" not in verdict.interpolation([row(equivalent_alpha=0.71)])["sentence"]


def test_nothing_edited_is_no_interpolation():
    rows = [row(reason="unchanged", k=None, equivalent_alpha=None, shape=[4, 4])]
    assert verdict.verdict_of({"command": "edit", "arguments": {}, "inputs": []}, rows) == {
        "findings": [
            {
                "kind": "frozen",
                "layers": ["w"],
                "figures": {},
                "sentence": "1 layer (w) did not change: frozen, or copied from the base.",
            }
        ],
        "size": None,
        "interpolation": None,
        "rounding_loss": None,
    }


@pytest.mark.parametrize(
    ("relative", "words"),
    [
        (
            (0.004, 0.0158),
            "Score the edit before you use it: fine-tuning changed the weights little (mean ‖Δ‖/‖W0‖ 0.0099)",
        ),
        ((0.01, 0.01), None),
        ((0.0499, 0.0499), None),
        ((0.08, 0.02), "The edit may help on data other than what the model was trained for: fine-tuning"),
        ((0.05, 1.2), None),  # a new head, or another base
    ],
)
def test_what_is_said_of_the_size_of_the_update(relative, words):
    rows = [row(relative_update=value) for value in relative]
    rows.append(row(reason="unchanged", k=None, relative_update=0.0))
    found = verdict.size(rows)
    assert (found and found["sentence"][: len(words or "")]) == words


def test_of_the_size_nothing_is_said_where_the_evidence_says_nothing(told, tmp_path):
    """It is on the default edit of one full fine-tune."""
    model = Model(3)
    finetuned = {name: weights + 0.01 * model.ordinary(weights.shape) for name, weights in model.base.items()}
    assert "little" in told(model.base, finetuned)["verdict"]["size"]["sentence"]
    assert told(model.base, finetuned, energy=0.8)["verdict"]["size"] is None
    assert told(model.base, finetuned, split="noise")["verdict"]["size"] is None
    base, one = tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"
    other = tmp_path / "other.safetensors"
    other.write_bytes(one.read_bytes())
    assert monosoup_cli.inspect_spectrum(base, [one, other])["verdict"]["size"] is None
    report = monosoup_cli.edit(base, one, tmp_path / "out", wise=0.5)
    assert verdict.verdict_of(report, rows_of(report))["size"] is None
    assert verdict.size([row(adapter_rank=8, relative_update=0.001)]) is None
    base = {name: weights.float() for name, weights in model.base.items()}
    merged = {
        name: weights + model.scaled(model.normal(len(weights), 3) @ model.normal(3, weights.shape[1]), 0.08)
        for name, weights in base.items()
    }
    found = told(base, {name: weights.float() for name, weights in merged.items()})["verdict"]
    assert [each["kind"] for each in found["findings"]] == ["lora"]
    assert found["size"] is None


def test_the_report_of_edit_tells_what_it_can(told, tmp_path):
    """It knows nothing of rounding, and all else alike."""
    model = Model(9)
    base = {name: weights.float() for name, weights in model.base.items()}
    finetuned = {name: (weights + model.ordinary(weights.shape)).float() for name, weights in base.items()}
    first = sorted(base)[0]
    finetuned[first] = base[first]
    inspected = told(base, finetuned)
    edited = monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", tmp_path / "out"
    )
    assert [each.kind for each in findings(rows_of(edited))] == ["frozen"]
    assert verdict.verdict_of(edited, rows_of(edited))["interpolation"]["alpha"] == pytest.approx(
        inspected["verdict"]["interpolation"]["alpha"]
    )


@pytest.mark.parametrize(
    "threshold",
    [
        "AS_LARGE",
        "LORA_RANKS",
        "LORA_GAP",
        "LORA_LAYERS",
        "ROUNDED",
        "WEAKENED",
        "SMALL_UPDATE",
        "LARGE_UPDATE",
        "NEAR",
        "MARGIN",
    ],
)
def test_the_thresholds_are_documented(threshold):
    text = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
    value = MARGIN if threshold == "MARGIN" else getattr(verdict, threshold)
    line = next(line for line in text.splitlines() if f"`{threshold}`" in line)
    assert f"| {value:g} |" in line


@pytest.mark.parametrize("step", [None, 0.5])
def test_an_edit_reports_the_verdict_that_an_inspection_has(pair, tmp_path, step):
    """Of a base and a model that are unrelated, and of an edit that goes on towards the base."""
    seen = monosoup_cli.inspect_spectrum(*pair)["verdict"]
    made = monosoup_cli.edit(*pair, tmp_path / "out", **({} if step is None else {"wise": step}))["verdict"]
    assert made["findings"][0]["kind"] == "wrong_base"
    assert made["findings"] == seen["findings"]
    alpha = seen["interpolation"]["equivalent_alpha"]
    assert made["interpolation"]["equivalent_alpha"] == pytest.approx(alpha * (step or 1.0), rel=1e-12)
