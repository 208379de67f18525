"""Doubts about a base: of real tiny models, none for what was trained from it, one for what was not."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import MismatchError
from monosoup_cli.pipeline.kinship import check_names, doubts_of_names, doubts_of_values
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.tensors.plan import Selection, make_plan
from tests.schema import assert_valid

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "vocab_size": 4000,
}


def model(kind, seed):
    torch.manual_seed(seed)
    kind = getattr(transformers, kind)
    if kind is transformers.GPT2LMHeadModel:
        made = kind(transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=2))
    else:
        made = kind(kind.config_class(**SMALL))
    return {name: tensor.contiguous().clone() for name, tensor in made.state_dict().items()}


def moved(tensors, step):
    """Every matrix by an update of `step` times its norm."""
    noise = torch.Generator().manual_seed(1)
    return {
        name: W if W.ndim < 2 else W + step * torch.randn(W.shape, generator=noise) * W.square().mean().sqrt()
        for name, W in tensors.items()
    }


def low_rank(tensors, scale):
    """Every matrix with B·A of rank 2 added, as a merged LoRA adapter leaves it."""
    noise = torch.Generator().manual_seed(1)
    found = dict(tensors)
    for name, W in tensors.items():
        if W.ndim > 1:
            B, A = (torch.randn(shape, generator=noise) for shape in ((len(W), 2), (2, W.shape[1])))
            found[name] = W + scale * W.norm() * (B @ A) / (B @ A).norm()
    return found


@pytest.fixture
def asked(tmp_path):
    """Doubts about a pair of checkpoints of these tensors."""

    def doubts(base, finetuned, plan):
        return [*doubts_of_names(plan, base.tensors), *doubts_of_values(base, [finetuned], plan)]

    def asked(base, finetuned, access="matrix", ask=doubts, **selection):
        paths = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
        for path, tensors in zip(paths, (base, finetuned), strict=True):
            save_file(tensors, path)
        with open_checkpoint(str(paths[0])) as one, open_checkpoint(str(paths[1])) as two:
            plan = make_plan(one.tensors, [two.tensors], Selection(**selection), access=access)
            return doubts_of_names(plan, one.tensors) if ask is doubts_of_names else ask(one, two, plan)

    return asked


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM"])
@pytest.mark.parametrize("view", ["matrix", "flat"])
def test_a_child_is_not_doubted_and_a_stranger_is(asked, kind, view):
    base, stranger = model(kind, 0), model(kind, 1)
    for child in (base, moved(base, 0.01), moved(base, 0.3), low_rank(base, 0.3)):
        assert asked(base, child, view) == []
    [doubt] = asked(base, stranger, view)
    assert "the updates are as large as the weights" in doubt
    assert float(re.search(r"is ([\d.]+) in a sample of 8 layers", doubt)[1]) == pytest.approx(1.41, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_ratio_is_that_of_the_whole_where_tensors_are_small(asked, dtype):
    generator = torch.Generator().manual_seed(2)
    base = {f"{n}.weight": 500 * torch.randn(40, 30 + n, generator=generator).to(dtype) for n in range(6)}
    finetuned = {
        name: (W - 1500 * torch.randn(W.shape, generator=generator)).float() for name, W in base.items()
    }
    flat = [torch.cat([T.double().flatten() for T in tensors.values()]) for tensors in (base, finetuned)]
    ratio = float((flat[1] - flat[0]).norm() / flat[0].norm())
    [doubt] = asked(base, finetuned)
    assert f"is {ratio:.2f} in a sample of 6 layers" in doubt


@pytest.mark.parametrize(("step", "count"), [(0.98, 0), (1.02, 1)])
def test_updates_are_doubted_from_the_size_of_the_weights_on(asked, step, count):
    base = {"a.weight": torch.ones(300, 300), "b.weight": 2 * torch.ones(4, 4)}
    finetuned = {name: (1 + step) * W for name, W in base.items()}
    assert len(asked(base, finetuned)) == count


def test_codes_without_their_scales_are_doubted_on_either_side(asked):
    """fp8 codes are hundreds. In the base, the update is as large as they are, and no larger."""
    weights = model("LlamaForCausalLM", 0)
    codes = {name: W if W.ndim < 2 else W * (448 / W.abs().max()) for name, W in moved(weights, 0.01).items()}
    for pair in ((weights, codes), (codes, weights)):
        [doubt] = asked(*pair)
        assert "the updates are as large as the weights" in doubt


def test_every_checkpoint_is_doubted_for_itself(asked):
    base, stranger = model("LlamaForCausalLM", 0), model("LlamaForCausalLM", 1)

    def ask(one, two, plan):
        return doubts_of_values(one, [one, two, one], plan)

    [doubt] = asked(base, stranger, ask=ask)
    assert re.match(r".*finetuned\.safetensors: the updates are as large", doubt)
    assert asked(base, moved(base, 0.01), ask=ask) == []


def test_the_sample_reaches_the_ends_of_large_tensors_and_of_the_plan(asked):
    base = {f"{n:02}.weight": torch.ones(600, 501 if n == 19 else 500) for n in range(20)}
    for name in (f"{n:02}.weight" for n in (0, 19)):
        for at in (0, -1):
            finetuned = {name: W.clone() for name, W in base.items()}
            # so far off that a few elements of a sample outweigh all others
            finetuned[name].view(-1)[at] = 1e6
            assert len(asked(base, finetuned)) == 1


def test_the_sample_takes_the_larger_tensors_and_little_of_each(asked):
    base = {
        f"{n:02}.{part}": torch.ones(size, size) for n in range(9) for part, size in (("a", 8), ("b", 400))
    }
    finetuned = {name: W if name.endswith("b") else 9 * W for name, W in base.items()}
    [doubt] = asked(base, finetuned)
    assert doubt.startswith("the updates of '*.a' (8.00) are as large as the weights")  # not of the model

    def read(one, two, plan):
        before = one.files.bytes_read, two.files.bytes_read
        doubts_of_values(one, [two] * 3, plan)
        return [each.files.bytes_read - start for each, start in zip((one, two), before, strict=True)]

    assert asked(base, finetuned, ask=read) == [4 * (8 * 65536 + 3 * 64) * times for times in (1, 3)]


def test_few_names_in_common_are_doubted(asked):
    base, finetuned = model("LlamaForCausalLM", 0), model("LlamaForCausalLM", 1)
    norms = {name: W for name, W in base.items() if W.ndim < 2}
    one = "model.layers.0.mlp.up_proj.weight"
    matrices = [name for name, W in finetuned.items() if W.ndim > 1]
    found = sum(finetuned[name].numel() for name in (one, *norms))
    share = found / sum(W.numel() for W in finetuned.values())
    assert asked(norms | {one: base[one]}, finetuned, ask=doubts_of_names) == [
        f"the base has only 1 of {len(matrices)} matrices ({share:.0%} of the parameters) under these names:"
        " was this model fine-tuned from it?"
    ]
    assert asked(norms | {one: base[one]}, finetuned, ask=doubts_of_names, include=(one,)) == []


def test_tensors_that_are_left_out_do_not_count(asked):
    base = {"a": torch.ones(3, 2)}
    finetuned = {"a": torch.ones(3, 2), "b": torch.ones(30, 20), "c": torch.ones(60, 20)}
    [doubt] = asked(base, finetuned, exclude=("c",))
    assert doubt.startswith("the base has only 1 of 2 matrices (1% of the parameters) ")


def test_a_new_head_or_a_resized_vocabulary_is_no_reason_to_doubt(asked):
    base = {"a.weight": torch.ones(30, 20), "embedding": torch.ones(40, 20)}
    finetuned = {"a.weight": torch.ones(30, 20), "embedding": torch.ones(44, 20), "head": torch.ones(50, 20)}
    assert asked(base, finetuned, on_mismatch="keep") == []
    grown = finetuned | {"head": torch.ones(80, 20)}
    assert len(asked(base, grown, on_mismatch="keep")) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_what_the_run_refuses_is_not_doubted(asked, value, place):
    pair = [{"a": torch.ones(30, 20)}, {"a": 9 * torch.ones(30, 20)}]
    pair[place]["a"][3, 3] = value
    assert asked(*pair) == []


def test_a_base_of_zeros_or_of_vectors_says_nothing(asked):
    ones = {"a": torch.ones(30, 20), "b": torch.ones(9)}
    assert asked({"a": torch.zeros(30, 20), "b": torch.ones(9)}, ones) == []
    assert asked(ones, {"a": torch.ones(30, 20), "b": 9 * torch.ones(9)}, "flat") == []
    assert asked({"b": torch.ones(9)}, {"b": 9 * torch.ones(9)}, "flat") == []
    assert asked({"a": torch.ones(0, 20)}, {"a": torch.ones(0, 20)}) == []


def test_rows_that_both_have_are_compared(asked):
    base = {"a": torch.ones(30, 20)}
    finetuned = {"a": torch.cat([torch.ones(30, 20), 9 * torch.ones(5, 20)])}
    assert asked(base, finetuned, on_mismatch="overlap") == []
    assert len(asked(base, {"a": 9 * finetuned["a"]}, on_mismatch="overlap")) == 1


def test_checkpoints_that_are_averaged_without_a_base_are_doubted_too(asked):
    def ask(one, two, plan):
        plan = make_plan(None, [one.tensors, two.tensors], Selection())
        return doubts_of_values(one, [two], plan)

    assert asked({"a": torch.ones(3, 2)}, {"a": 1.5 * torch.ones(3, 2)}, ask=ask) == []
    [doubt] = asked({"a": torch.ones(3, 2)}, {"a": 9 * torch.ones(3, 2)}, ask=ask)
    assert re.search(
        r"well below 1, .*; check that \S+/finetuned\S+ and \S+/base\S+ are fine-tunes of one model$", doubt
    )


def test_one_kind_of_layer_is_doubted_by_itself(asked):
    base = model("LlamaForCausalLM", 0)
    for part, size in (("self_attn.k_proj", 1.41), ("mlp.down_proj", 99)):
        finetuned = moved(base, 0.01)
        kind = [name for name in base if part in name]
        assert len(kind) == SMALL["num_hidden_layers"]
        for name in kind:
            finetuned[name] = (base[name] if size > 2 else finetuned[name].flip(0)) * (100 if size > 2 else 1)
        [doubt] = asked(base, finetuned)
        found = re.fullmatch(
            rf"the updates of 'model\.layers\.\*\.{part}\.weight' \(([\d.]+)\) are as large as the weights,"
            r" by ‖W1 − W0‖ / min\(‖W0‖, ‖W1‖\) in a sample; if one of the checkpoints"
            r" stores them in another form, --exclude keeps them as they are",
            doubt,
        )
        assert float(found[1]) == pytest.approx(size, abs=0.05)


def test_a_single_layer_that_is_new_is_not_doubted(asked):
    base, stranger = model("LlamaForCausalLM", 0), model("LlamaForCausalLM", 1)
    one = "model.layers.2.self_attn.q_proj.weight"
    assert asked(base, moved(base, 0.01) | {one: stranger[one]}) == []


def test_the_other_kinds_are_counted(asked):
    base = {f"{n}.{part}": torch.ones(9, 9) for n in range(3) for part in "abcdef"}
    base |= {f"{n}.z": torch.ones(99, 99) for n in range(3)}
    finetuned = {name: W if name.endswith("z") else 3 * W for name, W in base.items()}
    [doubt] = asked(base, finetuned)
    assert doubt.startswith("the updates of '*.a' (2.00), '*.b' (2.00), '*.c' (2.00) and 3 more are ")


@pytest.mark.parametrize("partial", [False, True])
def test_names_that_have_nothing_in_common_are_shown_as_a_pair(asked, partial):
    def ask(one, two, plan):
        check_names(plan, one.tensors, None, partial=partial)

    base, finetuned = (
        {name: torch.ones(2, 2) for name in names} for names in (["wte", "h.0.k"], ["e", "l.0.k"])
    )
    with pytest.raises(MismatchError, match="no matrix name in common") as refusal:
        asked(base, finetuned, ask=ask)
    assert (refusal.value.expected, refusal.value.found) == ("a name like 'h.0.k'", "'l.0.k'")


@pytest.mark.parametrize("step", [1.1, 1.5])
def test_a_doubt_is_in_the_report_and_refused_if_asked(run, tmp_path, step):
    """Also where nobody sees notes; and it is the doubt of `inspect-spectrum`."""
    tensors = model("LlamaForCausalLM", 0)
    for name, content in (("base", tensors), ("near", moved(tensors, 0.1)), ("far", moved(tensors, step))):
        save_file(content, tmp_path / f"{name}.safetensors")
    base, near, far = (tmp_path / f"{name}.safetensors" for name in ("base", "near", "far"))
    out = tmp_path / "out"
    quiet = run("edit", base, far, "-o", out, "--quiet", "--report", "-")
    report = json.loads(quiet.out)
    assert_valid(report)
    assert (quiet.err, len(report["doubts"])) == ("", 1)
    assert "as large as the weights" in report["doubts"][0]
    assert report["doubts"][0].endswith(f"check that {far} was fine-tuned from {base}")
    assert run("edit", base, far, "-o", tmp_path / "noted").code == 0
    assert json.loads((tmp_path / "noted" / "monosoup_report.json").read_text())["doubts"] == report["doubts"]
    with pytest.raises(MismatchError, match="as large as the weights"):
        monosoup_cli.edit(base, far, tmp_path / "python", strict=True)
    assert "Is BASE the model that was fine-tuned?" in run("inspect-spectrum", base, far).out
    refused = run("edit", base, far, "-o", tmp_path / "strict", "--strict")
    assert (refused.code, refused.err.count(report["doubts"][0])) == (1, 1)
    assert not (tmp_path / "strict").exists()
    assert not (tmp_path / "strict.partial").exists()
    assert run("edit", base, near, "-o", tmp_path / "strict", "--strict").code == 0
    assert "doubts" not in json.loads((tmp_path / "strict" / "monosoup_report.json").read_text())
