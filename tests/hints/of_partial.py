"""What hints lead to on a base that lacks most of the fine-tuned checkpoint, or that has more than it."""

from __future__ import annotations

import shlex

import torch
from safetensors.torch import load_file, save_file

from tests.hints.of_inputs import renamed
from tests.hints.table import Trial, follows


def matrices(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.randn(4, 4) for name in names}


def goes_on(at: Trial) -> None:
    """With --partial."""
    option = at.options(-1)
    assert option == ["--partial"]
    assert "edited      1 tensor," in at.loads(*at.edit, *option).err
    written, finetuned = load_file(at.out / "model.safetensors"), load_file(at.finetuned)
    new = finetuned.keys() - load_file(at.base).keys()
    assert all(torch.equal(written[name], finetuned[name]) for name in new)


@follows("pipeline/kinship.py", "check that this model was fine-tuned from it; --partial")
def a_base_that_lacks_most(at: Trial) -> None:
    save_file(matrices("a"), at.base)
    save_file(matrices("a", "b", "c"), at.finetuned)
    at.refused(*at.edit)
    goes_on(at)


@follows("pipeline/kinship.py", "no matrix that --include and --exclude leave")
def nothing_in_common_is_chosen(at: Trial) -> None:
    save_file(matrices("a", "b"), at.base)
    save_file(matrices("a", "c"), at.finetuned)
    at.refused(*at.edit, "--include", "c", "--partial")
    at.loads(*at.edit, "--include", "[ab]")
    at.loads(*at.edit, "--include", "c", "--rename", "b=c", "--overwrite")


@follows("pipeline/kinship.py", "in common; one has weight norm", "…; one has weight norm")
def weight_norm_in_one(at: Trial) -> None:
    """As torch folds it, weight and all."""
    shared = () if "common" in at.site.problem else ("a",)
    module = torch.nn.Sequential(*(torch.nn.Conv1d(4, 6, 3, bias=False) for _ in range(2)))
    for layer in module:
        torch.nn.utils.parametrizations.weight_norm(layer)
    save_file(module.state_dict() | matrices(*shared), at.base)
    for layer in module:
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    save_file({k: v + 0.01 for k, v in module.state_dict().items()} | matrices(*shared), at.finetuned)
    at.refused(*at.edit)
    save_file(module.state_dict() | matrices(*shared), at.base)
    at.loads(*at.edit)


@follows("pipeline/kinship.py", "no matrix name in common; check that this model was fine-tuned from it")
def a_base_of_another_kind(at: Trial) -> None:
    save_file(matrices("a", "b"), at.base)
    save_file({"c": torch.randn(4, 4), "d": torch.randn(5, 4)}, at.finetuned)
    at.refused(*at.edit)
    at.refused(*at.edit, "--partial")
    save_file({"c": torch.randn(4, 4), "d": torch.randn(5, 4)}, at.base)
    at.loads(*at.edit)


@follows("pipeline/kinship.py", "try …; --partial")
def a_base_of_other_names(at: Trial) -> None:
    renamed(at, 4, all_of_them=False)
    for path in (at.base, at.finetuned):
        save_file(load_file(path) | matrices("shared"), path)
    at.refused(*at.edit)
    assert at.options(0)[0] == "--rename"
    assert "not in the base" not in at.loads(*at.edit, *at.options(0)).err
    at.loads(*at.edit, *at.options(-1), "--overwrite")


@follows("pipeline/kinship.py", "…; to store them alike, load each with transformers")
def a_base_with_experts_one_by_one(at: Trial) -> None:
    """Those of no known model. of_experts has others stored alike."""
    experts_apart(at, "a")
    at.refused(*at.edit)
    goes_on(at)


def experts_apart(at: Trial, *shared: str) -> None:
    save_file(matrices(*shared, *(f"m.experts.{number}.v" for number in range(3))), at.base)
    save_file(matrices(*shared) | {f"m.experts.{name}": torch.randn(2, 3, 5) for name in "xyz"}, at.finetuned)


@follows("pipeline/kinship.py", "no matrix name in common; to store them alike")
def experts_alone(at: Trial) -> None:
    experts_apart(at)
    at.refused(*at.edit)
    at.refused(*at.edit, "--partial")
    save_file({f"m.experts.{name}": torch.randn(2, 3, 5) for name in "xyz"}, at.base)  # stored alike
    at.loads(*at.edit)


NAMES = {"layers.{}.att.wx": "h.{}.mixer.in", "layers.{}.ff.w7": "h.{}.mlp.out", "layers.{}.n.b": "h.{}.q.x"}
"""Names that differ in every part, of which no single rename explains enough."""
RENAMES = [
    word for one in ("layers=h", "att.wx=mixer.in", "ff.w7=mlp.out", "n.b=q.x") for word in ("--rename", one)
]


def named_otherwise(at: Trial, *shared: str) -> None:
    save_file(matrices(*shared, *(name.format(n) for n in range(2) for name in NAMES)), at.base)
    save_file(matrices(*shared, *(name.format(n) for n in range(2) for name in NAMES.values())), at.finetuned)


@follows("pipeline/kinship.py", "no matrix name in common; the shapes are alike")
def no_name_as_in_another_library(at: Trial) -> None:
    named_otherwise(at)
    at.refused(*at.edit)
    at.refused(*at.edit, "--partial")
    assert "edited      6 tensors," in at.loads(*at.edit, *RENAMES).err


@follows("pipeline/kinship.py", "for each; --partial")
def few_names_as_in_another_library(at: Trial) -> None:
    named_otherwise(at, "shared")
    at.refused(*at.edit)
    goes_on(at)
    assert "edited      7 tensors," in at.loads(*at.edit, *RENAMES, "--overwrite").err


@follows("pipeline/notices.py", "only in the base, and not written: …; --carry-base")
def tensors_that_training_dropped(at: Trial) -> None:
    dropped = matrices("mtp.[0].weight", "mtp.[0].norm")
    save_file(load_file(at.base) | dropped, at.base)
    at.noted(*at.edit)
    words = shlex.split(at.hint.partition("; ")[2].partition(" writes")[0])
    at.loads(*at.edit, *words, "--overwrite")
    written = load_file(at.out / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in dropped.items())
