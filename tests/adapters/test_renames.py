"""`--rename OLD=NEW` for adapters: OLD in the base, and in further fine-tuned ones, becomes NEW."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.peft_adapters import make, merge


@pytest.fixture
def folders(tmp_path):
    return make("linear", tmp_path)


def rename_base(folder, change):
    path = folder / "model.safetensors"
    save_file({change(name): t for name, t in load_file(path).items()}, path, {"format": "pt"})


def assert_merged(out, expected, change):
    found = load_file(out / "model.safetensors")
    assert found.keys() == {change(name) for name in expected}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[change(name)], tensor, rtol=1e-6, atol=1e-6)


CHANGES = {
    "decoder.h=model.layers": lambda name: name.replace("model.layers", "decoder.h"),
    "net=": lambda name: f"net.{name}",
    "=model": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("rename", CHANGES)
def test_the_bases_names_become_the_adapters(run, tmp_path, folders, rename):
    change, expected = CHANGES[rename], merge(folders, tmp_path / "merged")
    rename_base(folders.base, change)
    command = ["wise", *folders, "--alpha", 1, "-o", tmp_path / "out", "--rename", rename]
    result = run(*command)
    assert result.code == 0, result.err
    assert "names are read" in result.err
    assert_merged(tmp_path / "out", expected, change)


def test_the_reverse_and_what_matches_nothing_are_refused(run, tmp_path, folders):
    rename_base(folders.base, CHANGES["net="])
    command = ["wise", *folders, "--alpha", 1, "-o", tmp_path / "out"]
    result = run(*command, "--rename", "model=net.model")
    assert result.code == 1
    assert "changes tensors that the base does not have" in result.err
    assert "--rename OLD=NEW replaces OLD in the names of the base" in result.err
    result = run(*command, "--rename", "net=", "--rename", "x=y")
    assert result.code == 2
    assert "--rename x=y has no effect" in result.err


@pytest.mark.parametrize("is_first_whole", [False, True])
def test_of_several_all_have_the_names_of_the_first(run, tmp_path, folders, is_first_whole):
    """The second adapter has the base's names, so the one rename is of the base and of the second."""
    change = CHANGES["decoder.h=model.layers"]
    expected = merge(folders, tmp_path / "merged")
    second = tmp_path / "second"
    second.mkdir()
    for path in folders.adapter.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    weights = load_file(second / "adapter_model.safetensors")
    renamed = {change(name): t for name, t in weights.items()}
    save_file(renamed, second / "adapter_model.safetensors", {"format": "pt"})
    rename_base(folders.base, change)
    first = tmp_path / "merged" if is_first_whole else folders.adapter
    command = ["soup", first, second, "--base", folders.base, "-o", tmp_path / "out"]
    result = run(*command, "--rename", "decoder.h=model.layers")
    assert result.code == 0, result.err
    assert_merged(tmp_path / "out", expected, (lambda name: name) if is_first_whole else change)
