"""`extract`: the update of a model as an adapter, against the singular value decomposition and peft."""

import json
import math
import random
import re
import warnings
from itertools import product

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.methods.extraction import spend
from monosoup_cli.report.words import size
from tests.models import MODELS, build, step
from tests.peft_adapters import load, make, tensors_in
from tests.schema import assert_valid


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a base and a fine-tune of it, whose layers moved by different amounts."""
    place = tmp_path_factory.mktemp("llama")
    model = build(*MODELS["llama"])
    model.save_pretrained(place / "base")
    step(model)
    with torch.no_grad():
        for number, (name, weights) in enumerate(model.named_parameters()):
            if "proj" in name:
                weights += (
                    0.02
                    * (number % 5)
                    * torch.outer(torch.ones(len(weights)), torch.linspace(0, 1, weights.shape[1]))
                )
    model.save_pretrained(place / "ft")
    return place


def updates(place):
    base, finetuned = (tensors_in(place / name) for name in ("base", "ft"))
    return {name: (finetuned[name].double() - base[name].double()).numpy() for name in base}


def products(adapter):
    """The update of every layer, from the factors and the configuration in the file, as peft reads them."""
    stored = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    patterns = config["alpha_pattern"]
    found = {}
    for key, a in stored.items():
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = len(a)
            alphas = (alpha for name, alpha in patterns.items() if re.match(name, module))
            alpha = next(alphas, config["lora_alpha"])
            b = stored[key.replace("lora_A", "lora_B")]
            found[f"{module}.weight"] = (alpha / rank) * (b.double() @ a.double()).numpy(), rank
    return found


def truncated(matrix, rank):
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank], values


def layers_of(adapter):
    report = json.loads((adapter / "monosoup_report.json").read_text())
    assert_valid(report)
    return {layer["name"]: layer for layer in report["layers"] if layer["action"] == "edited"}


@pytest.mark.parametrize(("rank", "scale"), [(1, 1.0), (5, 1.0), (5, -0.5), (64, 1.0)])
def test_factors_are_the_truncated_decomposition(llama, tmp_path, run, rank, scale):
    out = tmp_path / "adapter"
    result = run("extract", llama / "base", llama / "ft", "-o", out, "--rank", rank, f"--scale={scale}")
    assert result.code == 0, result.err
    found, layers = products(out), layers_of(out)
    assert len(found) == 15
    for name, update in updates(llama).items():
        if name not in found:
            continue
        expected, values = truncated(update, rank)
        made, kept = found[name]
        assert np.abs(made - scale * expected).max() < 1e-6 * values[0]
        assert (layers[name]["factor_rank"], kept) == (min(rank, len(values)), min(rank, len(values)))
        error = math.sqrt(sum(values[rank:] ** 2) / sum(values**2))
        assert layers[name]["factor_error"] == pytest.approx(error, abs=1e-7)
        norm = np.linalg.norm(tensors_in(llama / "base")[name].double())
        assert layers[name]["relative_update"] == pytest.approx(np.linalg.norm(update) / norm)


def test_what_peft_makes_of_it(llama, tmp_path, run):
    """At full rank the base with the adapter is the fine-tune, norms and embeddings included."""
    out = tmp_path / "adapter"
    assert run("extract", llama / "base", llama / "ft", "-o", out, "--rank", "64").code == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(llama / "base", local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(base, out).merge_and_unload().state_dict()
    expected = tensors_in(llama / "ft")
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_what_is_stored_whole_goes_as_far_as_the_updates(llama, tmp_path, run, scale):
    out = tmp_path / "adapter"
    words = ("extract", llama / "base", llama / "ft", "-o", out, "--rank", "3", "--scale", scale)
    assert run(*words).code == 0
    base, stored = tensors_in(llama / "base"), load_file(out / "adapter_model.safetensors")
    whole = {key.removeprefix("base_model.model."): t for key, t in stored.items() if "lora_" not in key}
    assert whole
    for name, update in updates(llama).items():
        if name in whole:
            expected = base[name].double() + scale * torch.from_numpy(update)
            torch.testing.assert_close(whole[name], expected.float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_the_smallest_rank_that_holds_an_energy(llama, tmp_path, run, energy):
    out = tmp_path / "adapter"
    assert run("extract", llama / "base", llama / "ft", "-o", out, "--energy", energy).code == 0
    for name, (_, rank) in products(out).items():
        squares = np.linalg.svd(updates(llama)[name], compute_uv=False) ** 2
        held = squares.cumsum() / squares.sum()
        assert held[rank - 1] >= energy - 1e-9
        assert rank == 1 or held[rank - 2] < energy


@pytest.mark.parametrize("size", [60_000, 70_000, 100_000])
def test_no_other_division_of_the_same_bytes_is_nearer(llama, tmp_path, run, size):
    """Than ranks that are all the same, exchanges of ranks, and random divisions."""
    out = tmp_path / "adapter"
    assert run("extract", llama / "base", llama / "ft", "-o", out, "--max-size", size).code == 0
    file = out / "adapter_model.safetensors"
    assert file.stat().st_size <= size
    squares = {
        name: np.linalg.svd(one, compute_uv=False) ** 2
        for name, one in updates(llama).items()
        if one.ndim == 2
    }
    ranks = {name: rank for name, (_, rank) in products(out).items()}
    costs = {name: 4 * sum(updates(llama)[name].shape) for name in squares}
    names = sorted(name for name in squares if "embed" not in name)
    ranks = {name: ranks.get(name, 0) for name in names}

    def error(of):
        return sum(squares[name][of[name] :].sum() for name in names)

    def cost(of):
        return sum(of[name] * costs[name] for name in names)

    assert size - file.stat().st_size < min(costs.values()) + 16 * 2 * len(names) + 8  # for headers
    budget, best = cost(ranks), error(ranks)
    others = [{name: min(rank, len(squares[name])) for name in names} for rank in range(32)]
    for less, more in product(names, names):
        for down, up in product((1, 2, 3), (1, 2, 3)):
            if less != more and ranks[less] >= down and ranks[more] + up <= len(squares[more]):
                others.append({**ranks, less: ranks[less] - down, more: ranks[more] + up})
    draw = random.Random(0)
    for _ in range(300):
        one = {name: draw.randrange(len(squares[name])) for name in names}
        while cost(one) > budget:
            name = draw.choice([name for name in names if one[name]])
            one[name] -= 1
        others.append(one)
    allowed = [one for one in others if cost(one) <= budget]
    assert len(allowed) > 300
    assert min(map(error, allowed)) >= best * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_spent_as_well_as_by_trying_all_divisions(seed):
    """To a part of what the largest rank that is left out gains; of one cost, exactly."""
    draw = random.Random(seed)
    names = "abcd"
    gains = {name: sorted((draw.random() ** 3 for _ in range(4)), reverse=True) for name in names}
    costs = dict.fromkeys(names, 3) if seed % 2 else {name: draw.randrange(2, 9) for name in names}
    budget = draw.randrange(5, 50)
    found = spend(gains, costs, budget)

    def gain(ranks):
        return sum(sum(gains[name][:rank]) for name, rank in zip(names, ranks, strict=True))

    def cost(ranks):
        return sum(costs[name] * rank for name, rank in zip(names, ranks, strict=True))

    mine = [found[name] for name in names]
    assert cost(mine) <= budget
    best = max(gain(ranks) for ranks in product(range(5), repeat=4) if cost(ranks) <= budget)
    assert gain(mine) == pytest.approx(best) if seed % 2 else gain(mine) >= 0.97 * best


@pytest.mark.parametrize(
    ("way", "rank", "options", "weights"),
    [
        ("cat", 8, "--weights 3,1", [0.75, 0.25]),
        ("svd", 3, "--weights 3,1", [0.75, 0.25]),
        ("cat", 8, "--scale 2", [1.0, 1.0]),
        ("cat", 8, "--weights 0.1,0.5 --scale 0.6", [0.1, 0.5]),
    ],
)
def test_several_adapters_as_one(tmp_path, run, way, rank, options, weights):
    """As peft's add_weighted_adapter: side by side where the rank has room for both, else decomposed."""
    one, two = (make("linear", tmp_path, seed) for seed in (1, 2))
    model = load(one)
    model.load_adapter(two.adapter, "two")
    model.add_weighted_adapter(["default", "two"], weights, "both", combination_type=way, svd_rank=rank)
    expected = {
        name.removeprefix("base_model.model."): module.get_delta_weight("both").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    out = tmp_path / "adapter"
    words = ("extract", one.base, one.adapter, two.adapter, "-o", out, "--rank", rank, *options.split())
    assert run(*words).code == 0
    found, layers = products(out), layers_of(out)
    assert len(found) == len(expected) == len(layers) == 4
    for name, (made, _) in found.items():
        wanted = expected[name.removesuffix(".weight")]
        assert np.abs(made - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_mean_of_whole_checkpoints_has_weights(llama, tmp_path, run):
    other = {name: t * 1.01 for name, t in tensors_in(llama / "ft").items()}
    save_file(other, tmp_path / "other.safetensors", {"format": "pt"})
    words = (
        "extract",
        llama / "base",
        llama / "ft",
        tmp_path / "other.safetensors",
        "-o",
        tmp_path / "adapter",
    )
    assert run(*words, "--rank", "2", "--weights", "1,3").code == 0
    base, finetuned = (tensors_in(llama / name) for name in ("base", "ft"))
    for name, (made, _) in products(tmp_path / "adapter").items():
        mean = 0.25 * finetuned[name].double() + 0.75 * other[name].double() - base[name].double()
        expected, values = truncated(mean.numpy(), 2)
        assert np.abs(made - expected).max() < 1e-6 * values[0]


def test_a_dry_run_tells_the_size_or_a_bound(llama, tmp_path, run):
    """Adapters' headers say what they leave. Whether vectors moved, only data tell."""
    made = make("linear", tmp_path)
    folders = {(made.base, made.adapter): "", (llama / "base", llama / "ft"): "at most "}
    for number, (inputs, bound) in enumerate(folders.items()):
        words = ("extract", *inputs, "--rank", "2", "-o", tmp_path / f"out{number}")
        planned = run(*words, "--dry-run")
        assert run(*words).code == 0
        size_of_file = (tmp_path / f"out{number}" / "adapter_model.safetensors").stat().st_size
        assert re.search(f"^write +{bound}{size(size_of_file)} in 1 file", planned.out, re.M), planned.out


def test_the_card_claims_no_edit(llama, tmp_path, run):
    assert run("extract", llama / "base", llama / "ft", "-o", tmp_path / "adapter", "--rank", "2").code == 0
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "extracted from the update of a model" in card
    assert "monosoup extract base ft --rank 2 -o adapter" in card
    assert "edited" not in card
    assert "2602.09689" not in card


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            (),
            "extract needs one of --rank, --energy and --max-size: found none of them; --rank 32 is a start",
        ),
        (("--rank", "2", "--energy", "1"), "--max-size: found --rank and --energy"),
        (("--max-size", "500"), "--max-size is too small for factors of rank 1: expected at least"),
        (("--max-size", "much"), "--max-size is not a size: expected a number and a unit"),
        (("--energy", "0"), "--energy is out of range"),
        (("--rank", "2", "--scale", "inf"), "--scale must be finite"),
        (
            ("--rank", "2", "--weights", "1,2"),
            "--weights needs one number for each checkpoint: expected 1 of them",
        ),
        (("--rank", "2", "--max-shard-size", "1GB"), "--max-shard-size is for whole checkpoints"),
    ],
)
def test_what_extract_refuses(llama, tmp_path, run, words, problem):
    refused = run("extract", llama / "base", llama / "ft", "-o", tmp_path / "adapter", *words)
    assert refused.code
    assert problem in refused.err
    assert not list(tmp_path.iterdir())


def test_the_function(llama, tmp_path):
    report = monosoup_cli.extract(llama / "base", llama / "ft", tmp_path / "adapter", max_size=70_000)
    assert report["command"] == "extract"
    assert report["arguments"]["max_size"] == 70_000


def test_an_error_far_below_rounding_is_no_zero(tmp_path, run):
    """It is a sum over what is left out, not a difference from 1."""
    values = torch.tensor([1.0] * 4 + [1e-9] * 4, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0] for _ in range(2))
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({name: torch.zeros(8, 8, dtype=torch.float64)}, tmp_path / "a.safetensors", {"format": "pt"})
    save_file({name: (u * values) @ v}, tmp_path / "b.safetensors", {"format": "pt"})
    pair = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run("extract", *pair, "-o", tmp_path / "out", "--rank", "4").code == 0
    assert layers_of(tmp_path / "out")[name]["factor_error"] == pytest.approx(1e-9, rel=1e-3)


def test_ranks_that_depend_on_updates_are_not_for_parts(llama, tmp_path, run):
    words = ("extract", llama / "base", llama / "ft", "-o", tmp_path / "adapter", "--part", "1/2")
    refused = run(*words, "--energy", "0.5")
    assert "give --rank, the same for all of them" in refused.err
    for part in ("1/2", "2/2"):
        assert run(*words[:-1], part, "--rank", "2").code == 0
    assert run("finish", tmp_path / "adapter").code == 0
    assert len(layers_of(tmp_path / "adapter")) > 14


def test_what_is_left_out_is_not_in_the_adapter(llama, tmp_path, run):
    """Neither as factors nor whole."""
    out = tmp_path / "adapter"
    words = ("extract", llama / "base", llama / "ft", "-o", out, "--rank", "2")
    assert run(*words, "--include", "*_proj*", "--exclude", "*.0.*").code == 0
    stored = load_file(out / "adapter_model.safetensors")
    assert len(stored) == 2 * 7
    assert all("layers.1." in name and "_proj.lora_" in name for name in stored)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_layers_without_room_are_named_so(llama, tmp_path, run):
    out = tmp_path / "adapter"
    words = ("extract", llama / "base", llama / "ft", "-o", out, "--include", "*_proj*")
    refused = run(*words, "--max-size", "100")
    least = int(refused.err.partition("expected at least ")[2].split()[0].replace(",", ""))
    assert run(*words, "--max-size", least).code == 0
    assert (out / "adapter_model.safetensors").stat().st_size <= least
    report = json.loads((out / "monosoup_report.json").read_text())
    assert_valid(report)
    kept = report["summary"]["kept"]
    assert kept["no_room"] == 14 - report["summary"]["edited"] > 0


def test_what_a_base_lacks_or_has_in_another_shape_is_said(tmp_path, run):
    """The adapter has it whole; peft drops the first without a word, and refuses the second."""
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "base")
    tensors = {name: one + 0.1 * torch.randn_like(one) for name, one in tensors_in(tmp_path / "base").items()}
    tensors["extra.weight"] = torch.randn(4, 4)
    tensors["lm_head.weight"] = torch.cat([tensors["lm_head.weight"], torch.randn(3, 32)])
    save_file(tensors, tmp_path / "ft.safetensors", {"format": "pt"})
    words = ("extract", tmp_path / "base", tmp_path / "ft.safetensors", "--rank", 4, "--on-mismatch", "keep")
    result = run(*words, "-o", tmp_path / "adapter")
    assert result.code == 0, result.err
    assert (
        "not in the base, and stored whole: 1 tensor: extra.weight; models without it ignore it" in result.err
    )
    assert "in other shapes than the base has: 1 tensor: lm_head.weight; peft loads it into" in result.err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="size mismatch"):
            peft.PeftModel.from_pretrained(build(*MODELS["llama"]), tmp_path / "adapter")
        resized = build(*MODELS["llama"])
        resized.resize_token_embeddings(102)
        loaded = peft.PeftModel.from_pretrained(resized, tmp_path / "adapter").base_model.model
    stored = loaded.lm_head.modules_to_save["default"].weight
    assert torch.equal(stored, tensors["lm_head.weight"])


def test_the_least_size_is_the_one_that_is_told(llama, tmp_path, run):
    words = ("extract", llama / "base", llama / "ft", "-o", tmp_path / "adapter", "--max-size")
    least = int(re.search(r"at least ([\d,]+) bytes", run(*words, "500").err)[1].replace(",", ""))
    assert run(*words, least - 1).code == 2
    result = run(*words, least)
    assert result.code == 0
    assert re.search(r"no room for \d+ layers", result.err)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size <= least


@pytest.mark.parametrize("size", [3_000, 9_000, 12_000, 15_000, 30_000])
def test_small_adapters_take_most_of_their_size(llama, tmp_path, run, size):
    """Layers without room take none, in the header either. A larger size never has a larger error."""
    errors = []
    for number, each in enumerate((size, size + 4_000)):
        out = tmp_path / f"adapter{number}"
        assert run("extract", llama / "base", llama / "ft", "-o", out, "--max-size", each).code == 0
        written = (out / "adapter_model.safetensors").stat().st_size
        assert 0.75 * each < written <= each
        held = {name: product for name, (product, _) in products(out).items()}
        layers = json.loads((out / "monosoup_report.json").read_text())["layers"]
        names = [one["name"] for one in layers if one["action"] == "edited" or one["reason"] == "no_room"]
        left = {name: updates(llama)[name] - held.get(name, 0.0) for name in names}
        errors.append(sum(float(np.square(one).sum()) for one in left.values()))
    assert errors[1] <= errors[0] * (1 + 1e-9)
