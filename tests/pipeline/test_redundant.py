"""A tied head that some checkpoints hold once more: the same result, whichever do and in any order."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models import MODELS, build, step
from tests.sampling import first

HEADS = {
    "llama, tied": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen3, tied": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "whisper": ("model.decoder.embed_tokens.weight", "proj_out.weight"),
}
"""The model, the embedding that it stores, and the head that it does not."""


@pytest.fixture(params=HEADS)
def family(request, tmp_path):
    """A base and three fine-tunes in folders, the name of the class, of the embedding and of the head."""
    kind, options = MODELS[request.param]
    model = build(kind, options)
    for name in ("base", "a", "b", "c"):
        model.save_pretrained(tmp_path / name)
        step(model)
    embedding, head = HEADS[request.param]
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert embedding in stored
    assert head not in stored
    return tmp_path, kind, embedding, head


def add_head(folder, embedding, head, times=1.0):
    """Store the head too: a copy of the embedding, or a head of its own."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, head: times * tensors[embedding]}, path, metadata={"format": "pt"})


def remove_head(folder, head):
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != head}
    save_file(tensors, path, metadata={"format": "pt"})


def assert_loads(kind, folder):
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.state_dict()


PLACES = [(), ("a",), ("c",), ("b", "c"), ("base",), ("base", "b"), ("base", "a", "b", "c")]
"""Which checkpoints hold the head once more."""


@pytest.mark.parametrize("command", first(2, ["soup", "edit", "stock"]))
def test_a_redundant_head_changes_nothing_in_any_order(run, family, command):
    folder, kind, embedding, head = family
    expected, base = {}, [] if command == "soup" else [folder / "base"]
    for holders in PLACES:
        for name in ("base", "a", "b", "c"):
            remove_head(folder / name, head)
        for name in holders:
            add_head(folder / name, embedding, head)
        for order in ("abc", "cab", "bca"):
            out = folder / "out"
            inputs = [*base, *(folder / name for name in order)]
            assert run(command, *inputs, "-o", out, "--overwrite").code == 0
            found = load_file(out / "model.safetensors")
            assert (head in found) is (order[0] in holders)
            assert torch.equal(found.pop(head, found[embedding]), found[embedding])
            same = expected.setdefault(order, found)  # where no checkpoint has a copy
            assert found.keys() == same.keys()
            assert all(torch.equal(found[name], same[name]) for name in found)
            for name, tensor in expected["abc"].items():  # the order of a sum may change its last bit
                torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8)
        assert torch.equal(assert_loads(kind, out)[head], found[embedding])


def test_what_is_no_copy_is_refused_or_kept_and_never_dropped(run, family):
    folder, kind, embedding, head = family
    add_head(folder / "b", embedding, head, times=1.5)
    files = folder / "a", folder / "b", folder / "c"
    result = run("soup", *files, "-o", folder / "out")
    assert result.code == 1
    assert (
        f"error: {files[1]}: tensor '{head}': has other values than '{embedding}', to which the first"
        " fine-tuned checkpoint ties it; give number 2 first to keep it" in result.err
    )
    assert not (folder / "out").exists()
    assert run("inspect-spectrum", folder / "base", *files).code == 1
    assert run("inspect-spectrum", folder / "base", *files, "--layer", embedding).code == 0
    assert run("soup", files[1], files[0], files[2], "-o", folder / "out").code == 0
    found = load_file(folder / "out" / "model.safetensors")
    a, b, c = (load_file(file / "model.safetensors") for file in files)
    mean = (a[embedding].double() + b[head].double() + c[embedding].double()) / 3
    torch.testing.assert_close(found[head].double(), mean, rtol=1e-6, atol=1e-7)
    loaded = assert_loads(kind, folder / "out")  # transformers ties only what is equal
    assert torch.equal(loaded[head], found[head])
    assert torch.equal(loaded[embedding], found[embedding])


def test_a_head_of_the_bases_own_is_said_and_not_written(run, family):
    folder, _, embedding, head = family
    assert run("edit", folder / "base", folder / "a", "-o", folder / "expected").code == 0
    add_head(folder / "base", embedding, head, times=1.5)
    result = run("edit", folder / "base", folder / "a", "-o", folder / "out")
    assert f"only in the base, and not written: 1 tensor: {head}" in result.err
    made = [(folder / name / "model.safetensors").read_bytes() for name in ("expected", "out")]
    assert made[0] == made[1]


def test_a_dry_run_reads_no_values_for_it(run, family):
    folder, _, embedding, head = family
    add_head(folder / "b", embedding, head, times=1.5)
    result = run("soup", folder / "a", folder / "b", "-o", folder / "out", "--dry-run")
    assert result.code == 0
    assert f"without '{head}', a copy of '{embedding}', to which it is tied" in result.err
