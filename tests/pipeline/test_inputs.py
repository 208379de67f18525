"""Inputs under the names of the first fine-tuned checkpoint: ties of one side, renames, what is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.pipeline.inputs import open_inputs

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


@pytest.fixture
def folder(tmp_path):
    """Write a folder of zeros in these shapes; of a tensor given as a name, the same as of that name."""

    def folder(name, shapes, config=None, metadata=None, *, pickled=False):
        path = tmp_path / name
        path.mkdir()
        tensors = {each: torch.zeros(shape) for each, shape in shapes.items() if not isinstance(shape, str)}
        tensors |= {each: tensors[same] for each, same in shapes.items() if isinstance(same, str)}
        if pickled:
            torch.save(tensors, path / "pytorch_model.bin")
        else:
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        return str(path)

    return folder


def names_of(base: str, finetuned: str, *renames: str) -> dict[str, str]:
    """How the base's tensors are read → what they are called in it."""
    with open_inputs(base, [finetuned], renames) as inputs:
        assert inputs.base is not None
        return {name: tensor.name for name, tensor in inputs.base.tensors.items()}


BOTH = {EMBEDDING: (10, 4), HEAD: (10, 4)}
ONE = {EMBEDDING: (10, 4)}
AS_EMBEDDING = {EMBEDDING: EMBEDDING, HEAD: EMBEDDING}


@pytest.mark.parametrize(
    ("base_config", "config", "is_tied"),
    [
        (TIED, UNTIED, True),
        (TIED, None, True),
        (UNTIED, TIED, False),
        (None, TIED, True),
        (None, UNTIED, False),
        (None, None, False),
        ({"text_config": TIED}, None, True),
    ],
)
def test_a_head_that_the_base_ties_as_its_config_says(folder, base_config, config, is_tied):
    """The base's own config, or where it has none the fine-tuned checkpoint's."""
    base, finetuned = folder("base", ONE, base_config), folder("finetuned", BOTH, config)
    assert names_of(base, finetuned) == (AS_EMBEDDING if is_tied else {EMBEDDING: EMBEDDING})


def test_a_tie_that_the_file_notes(folder):
    noted = {"z.weight": "x.weight"}
    base = folder("base", {"x.weight": (10, 4)}, metadata=noted)
    finetuned = folder("finetuned", {"x.weight": (10, 4), "z.weight": (10, 4)})
    assert names_of(base, finetuned) == {"x.weight": "x.weight", "z.weight": "x.weight"}


@pytest.mark.parametrize(
    ("order", "kept"), [(("x.weight", "z.weight"), "x.weight"), (("z.weight", "x.weight"), "z.weight")]
)
@pytest.mark.parametrize("left", ["x.weight", "z.weight"])
def test_a_tie_that_the_state_dict_of_the_fine_tuned_one_shows(folder, order, kept, left):
    """Whichever of the two names is the one that its elements stand under."""
    finetuned = folder("finetuned", {order[0]: (10, 4), order[1]: order[0]}, pickled=True)
    with open_inputs(None, [finetuned], []) as inputs:
        assert inputs.finetuned[0].files.shards[0].tied == {order[1]: kept}
    base = folder("base", {left: (10, 4)})
    assert names_of(base, finetuned) == {"x.weight": left, "z.weight": left}


def test_no_tie_is_made_of_names_that_are_not_wanted_or_that_both_have(folder):
    base, finetuned = folder("base", ONE, TIED), folder("finetuned", ONE, TIED)
    assert names_of(base, finetuned) == {EMBEDDING: EMBEDDING}
    both = folder("both", BOTH, TIED)
    assert names_of(both, folder("own", BOTH, TIED)) == {EMBEDDING: EMBEDDING, HEAD: HEAD}


@pytest.mark.parametrize(
    ("shape", "is_tied"), [((12, 4), True), ((8, 4), True), ((10, 5), False), ((4,), False)]
)
def test_of_a_tie_the_rows_may_differ_and_nothing_else(folder, shape, is_tied):
    base = folder("base", ONE, TIED)
    finetuned = folder("finetuned", {EMBEDDING: (10, 4), HEAD: shape}, UNTIED)
    assert names_of(base, finetuned) == (AS_EMBEDDING if is_tied else {EMBEDDING: EMBEDDING})


def test_ties_are_found_under_the_first_ones_names(folder):
    base = folder("base", {"module." + EMBEDDING: (10, 4), "module.norm": (4,)}, TIED)
    finetuned = folder("finetuned", {**BOTH, "norm": (4,)}, UNTIED)
    expected = dict.fromkeys((EMBEDDING, HEAD), "module." + EMBEDDING)
    assert names_of(base, finetuned) == {**expected, "norm": "module.norm"}


def test_a_second_fine_tuned_one_may_be_tied_too(folder):
    sources = [folder("first", BOTH, UNTIED), folder("second", ONE, TIED)]
    with open_inputs(None, sources, []) as inputs:
        assert (inputs.base, inputs.sources, inputs.hint) == (None, inputs.finetuned, None)
        assert {name: tensor.name for name, tensor in inputs.finetuned[1].tensors.items()} == AS_EMBEDDING
        assert inputs.notices == [
            f"{sources[1]}: names are read with '{HEAD}' taken from '{EMBEDDING}', to which it is tied",
            f"config.json: tie_word_embeddings is true in {sources[1]}, false in {sources[0]}",
        ]


# -- renames and notices ----------------------------------------------------------------------------


def test_renames_are_of_all_but_the_first(folder):
    shapes = {"old.a": (4, 4), "same.b": (4,)}
    base = folder("base", shapes)
    finetuned = [folder("first", {"new.a": (4, 4), "same.b": (4,)}), folder("second", shapes)]
    with open_inputs(base, finetuned, ["old=new"]) as inputs:
        assert [list(each.tensors) for each in inputs.sources] == [["new.a", "same.b"]] * 3
        assert [each.path for each in inputs.sources] == [base, *finetuned]
        assert [each.path for each in inputs.finetuned] == finetuned
        assert len(inputs.notices) == 2
        said = "names are read with 'old' replaced by 'new' (1 tensor)"
        assert inputs.notices == [f"{base}: {said}", f"{finetuned[1]}: {said}"]


def test_a_rename_leaves_alone_what_matches_without_it(folder):
    """A base from elsewhere, and fine-tunes that agree; the rename would fit all of them."""
    shapes = {"bert.a": (4, 4), "bert.b": (4,)}
    base = folder("base", {"a": (4, 4), "b": (4,)})
    finetuned = [folder("first", shapes), folder("second", shapes)]
    with open_inputs(base, finetuned, ["=bert"]) as inputs:
        assert [list(each.tensors) for each in inputs.sources] == [["bert.a", "bert.b"]] * 3
        assert len(inputs.notices) == 1


def test_a_copy_of_tied_weights_that_the_first_leaves_out_is_not_read(folder):
    sources = [folder("first", ONE), folder("second", {**ONE, HEAD: EMBEDDING}, pickled=True)]
    with open_inputs(None, sources, []) as inputs:
        assert list(inputs.finetuned[1].tensors) == [EMBEDDING]
        assert f"without '{HEAD}', which is tied to '{EMBEDDING}'" in inputs.notices[0]


def test_which_of_tied_tensors_comes_first_does_not_matter_nor_what_stands_before_it(tmp_path, folder):
    weights = torch.zeros(10, 4)
    torch.save({f"module.{HEAD}": weights, f"module.{EMBEDDING}": weights}, tmp_path / "second.pt")
    with open_inputs(None, [folder("first", ONE), str(tmp_path / "second.pt")], []) as inputs:
        assert list(inputs.finetuned[1].tensors) == [EMBEDDING]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_rename_that_one_input_needs_is_used(folder, count):
    """`count`: by how many of the two others the rename is used."""
    shapes = [{"old.a": (4, 4)} if number < count else {"new.a": (4, 4)} for number in range(2)]
    base, second = folder("base", shapes[0]), folder("second", shapes[1])
    sources = [folder("first", {"new.a": (4, 4)}), second]
    if count:
        with open_inputs(base, sources, ["old=new"]):
            pass
    else:
        with pytest.raises(
            UsageError, match="--rename old=new has no effect: it matches no additional names"
        ):
            open_inputs(base, sources, ["old=new"])


def test_the_first_rename_that_is_not_used_is_named(folder):
    base, finetuned = folder("base", {"old.a": (4, 4)}), folder("finetuned", {"new.a": (4, 4)})
    with pytest.raises(UsageError, match="--rename x=y has no effect: it matches no additional names"):
        open_inputs(base, [finetuned], ["old=new", "x=y", "z=w"])


def test_with_one_input_no_rename_is_used(folder):
    with pytest.raises(UsageError, match="--rename old=new has no effect: it matches no additional names"):
        open_inputs(None, [folder("first", {"old.a": (4, 4)})], ["old=new"])


def test_what_stands_beside_a_state_dict_is_said(folder, tmp_path):
    tensors = {"a.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": tensors, "ema_state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
    with open_inputs(None, [str(tmp_path / "a.pt")], []) as inputs:
        left = inputs.finetuned[0].files.shards[0].left_out
        assert left
        assert inputs.notices == [
            f"{tmp_path / 'a.pt'}: not part of the state dict, and left out: {', '.join(left)}"
        ]


def test_a_rename_is_hinted_at(folder):
    shapes = {f"layers.{number}.weight": (4, number + 2) for number in range(9)}
    base = folder("base", {f"deep.{name}": shape for name, shape in shapes.items()})
    finetuned = folder("finetuned", shapes)
    with open_inputs(base, [finetuned], []) as inputs:
        assert inputs.hint == "--rename deep="
        assert inputs.notices == []
    with open_inputs(base, [finetuned], ["deep="]) as inputs:
        assert inputs.hint is None


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_what_was_opened_is_closed_after_a_refusal(folder, tmp_path):
    base, finetuned = folder("base", ONE), folder("finetuned", ONE)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError):
        open_inputs(base, [finetuned, str(tmp_path / "absent")], [])
    with pytest.raises(UsageError):
        open_inputs(base, [finetuned], ["x=y"])
    assert len(os.listdir("/proc/self/fd")) == before
    with open_inputs(base, [finetuned], []):
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before
