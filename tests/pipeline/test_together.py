"""Small matrices of one shape are edited together: the output is that of one by one, also when resumed."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import NonfiniteError
from monosoup_cli.methods.monosoup import MonoSoup
from monosoup_cli.methods.together import edit_together
from monosoup_cli.spectral.together import decompose_together
from monosoup_cli.tensors.together import GROUP_ELEMENTS

SHAPES = [(16, 16), (7, 5), (5, 7), (33, 61), (1, 9), (3, 3, 3, 3), (64, 64)]
COUNT = 16


def tensors(dtype=torch.bfloat16):
    """(base, fine-tuned): `COUNT` matrices of every shape in turn; some unchanged, some of rank 1."""
    generator = torch.Generator().manual_seed(0)
    base, finetuned = {}, {}
    for number in range(COUNT * len(SHAPES)):
        shape = SHAPES[number % len(SHAPES)]
        weights = torch.randn(shape, generator=generator)
        update = 0.1 * torch.randn(shape, generator=generator)
        if number % 11 == 0:
            update.zero_()
        if number % 13 == 0:
            update.fill_(0.5)
        name = f"layers.{number:03}.weight"
        base[name], finetuned[name] = weights.to(dtype), (weights + update).to(dtype)
    return base, finetuned


def save_pair(folder, base, finetuned):
    folder.mkdir(parents=True, exist_ok=True)
    pair = folder / "base.safetensors", folder / "finetuned.safetensors"
    save_file(base, pair[0])
    save_file(finetuned, pair[1])
    return pair


@pytest.fixture
def pair(tmp_path):
    return save_pair(tmp_path / "inputs", *tensors())


@pytest.fixture
def calls(monkeypatch):
    """How many tensors each call of `edit_together` edited; the call itself is the real one."""
    found = []

    def watched(*arguments):
        edit = edit_together(*arguments)
        found.append(0 if edit is None else len(edit.numbers))
        return edit

    monkeypatch.setattr("monosoup_cli.methods.together.edit_together", watched)
    return found


@pytest.mark.once
def test_the_output_is_that_of_every_tensor_alone(pair, tmp_path, calls):
    report = monosoup_cli.edit(*pair, tmp_path / "out", workers=2)
    assert len(calls) == len(SHAPES)
    assert sum(calls) > 0.7 * COUNT * len(SHAPES)
    together = load_file(tmp_path / "out" / "model.safetensors")
    base, finetuned = (load_file(path) for path in pair)
    for layer in report["layers"]:
        name = layer["name"]
        alone = save_pair(tmp_path / name, {name: base[name]}, {name: finetuned[name]})
        (expected,) = monosoup_cli.edit(*alone, tmp_path / name / "out")["layers"]
        assert list(layer) == list(expected)
        for key, value in expected.items():
            is_measured = isinstance(value, (float, list)) and key != "shape"
            assert layer[key] == (pytest.approx(value, rel=1e-12, abs=1e-13) if is_measured else value)
        assert torch.equal(together[name], load_file(tmp_path / name / "out" / "model.safetensors")[name])
    assert len(calls) == len(SHAPES)  # a tensor alone is in no group


@pytest.mark.parametrize(
    ("weighting", "shape"),
    [
        ("monosoup", (16, 16)),
        ("monosoup", (40, 7)),
        ("monosoup", (7, 40)),
        ("low", (40, 7)),
        ("low", (7, 40)),
    ],
)
def test_the_edit_is_that_of_a_full_decomposition(weighting, shape):
    generator = torch.Generator().manual_seed(1)
    base, update = (torch.randn(30, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    edit = edit_together(base, update.clone(), [MonoSoup(weighting=weighting)], [1.0, 0.25], 0.0)
    assert edit.numbers
    whole, quarter = (results.clone() for results in edit.results)
    for place, number in enumerate(edit.numbers):
        left, values, right = np.linalg.svd(update[number].numpy(), full_matrices=False)
        share = values / values.sum()
        k = math.ceil(math.exp(-(share * np.log(share)).sum()) - 1e-9)
        tail = (values[k:] ** 2).sum() / (values**2).sum()
        rho = (values[k] / values[0]) ** 2 if k < len(values) else 0.0
        low = 1.0 if weighting == "low" else rho + (1 - rho) * math.sqrt(tail)
        weights = np.where(np.arange(len(values)) < k, 1 - low, low)
        edited = (left * (weights * values)) @ right
        assert edit.measures[place][0]["k"] == k
        assert edit.measures[place][1]["lambda_low"] == pytest.approx(low, rel=1e-10)
        np.testing.assert_allclose(whole[place], base[number].numpy() + edited, rtol=0, atol=1e-12)
        np.testing.assert_allclose(quarter[place], base[number].numpy() + edited / 4, rtol=0, atol=1e-12)


def test_only_what_needs_no_care_is_decomposed_together():
    matrices = torch.randn(7, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    matrices[1] = 0.0
    matrices[2, 3, 3] = math.nan
    matrices[3] *= 1e-160
    matrices[4] *= 1e160
    matrices[5, :, 3] = matrices[5, :, 2]
    numbers, values, vectors = decompose_together(matrices)
    assert numbers == [0, 6]
    for place, number in enumerate(numbers):
        expected = np.linalg.svd(matrices[number].numpy(), compute_uv=False)
        np.testing.assert_allclose(values[place], expected, rtol=1e-12)
        lengths = torch.linalg.vector_norm(matrices[number] @ vectors[place], dim=0)
        np.testing.assert_allclose(lengths, expected, rtol=1e-12)
    assert decompose_together(matrices[1:6])[0] == []


def test_a_sweep_is_that_of_its_members(pair, tmp_path, calls):
    monosoup_cli.edit(*pair, tmp_path / "out", energy=[0.5, 0.9], wise=[0.5, 1.0])
    assert sum(calls) > 0.7 * COUNT * len(SHAPES)
    for energy in (0.5, 0.9):
        for wise in (0.5, 1.0):
            one = tmp_path / f"{energy}-{wise}"
            monosoup_cli.edit(*pair, one, energy=energy, wise=wise)
            found = tmp_path / "out" / f"energy-{energy}-wise-{wise:g}" / "model.safetensors"
            assert found.read_bytes() == (one / "model.safetensors").read_bytes()


def test_the_places_and_the_dtype_of_the_base_do_not_matter(pair, tmp_path):
    monosoup_cli.edit(*pair, tmp_path / "out")
    base = {name: weights.float() for name, weights in load_file(pair[0]).items()}
    apart = {f"{name}.more": torch.ones(3) for name in list(base)[::3]}  # files are ordered by name
    monosoup_cli.edit(*save_pair(tmp_path, base | apart, load_file(pair[1])), tmp_path / "other")
    files = [tmp_path / out / "model.safetensors" for out in ("out", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_nonfinite_members_are_found(pair, tmp_path):
    base, finetuned = (load_file(path) for path in pair)
    name = sorted(finetuned)[44]
    finetuned[name].view(-1)[3] = math.nan
    damaged = save_pair(tmp_path / "damaged", base, finetuned)
    with pytest.raises(NonfiniteError) as caught:
        monosoup_cli.edit(*damaged, tmp_path / "out")
    assert caught.value.tensor == name
    monosoup_cli.edit(*damaged, tmp_path / "out", on_nonfinite="keep")
    monosoup_cli.edit(*pair, tmp_path / "whole")
    found, whole = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "whole"))
    assert found[name].view(torch.int16).equal(finetuned[name].view(torch.int16))
    assert all(found[other].equal(whole[other]) for other in whole if other != name)


@pytest.mark.parametrize("kept", [0, 0.3, 1])
def test_part_of_a_group_is_continued(pair, tmp_path, kept):
    monosoup_cli.edit(*pair, tmp_path / "whole")
    out = tmp_path / "out"

    def stop(tensor, is_done):
        if is_done and done.append(tensor.name) is None and len(done) > 2 * COUNT:
            raise RuntimeError

    done = []
    with pytest.raises(RuntimeError):
        monosoup_cli.edit(*pair, out, workers=1, progress=stop)
    journal = tmp_path / "out.partial" / "journal"
    first, *lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > COUNT
    lost = lines[int(kept * len(lines)) :]
    journal.write_bytes(first + b"".join(lines[: len(lines) - len(lost)]))
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as whole:
        assert set(whole.keys()) > {json.loads(line)["tensor"] for line in lost}
    report = monosoup_cli.edit(*pair, out, resume=True)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert report["timing"]["bytes_written"] < (out / "model.safetensors").stat().st_size or kept == 0


@pytest.mark.once
def test_a_group_has_a_limit(tmp_path, calls):
    count = 2 * GROUP_ELEMENTS // 256 + 1
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(count, 16, 16, generator=generator)
    stacks = base, base + torch.randn(count, 16, 16, generator=generator)
    pairs = [{f"w{number}": stack[number].clone() for number in range(count)} for stack in stacks]
    seen = []
    monosoup_cli.edit(
        *save_pair(tmp_path, *pairs),
        tmp_path / "out",
        workers=1,
        progress=lambda tensor, is_done: seen.append((tensor.name, is_done)),
    )
    assert calls == [count // 2, count // 2]  # the last one is alone
    assert len(seen) == len(set(seen)) == 2 * count
    assert all(seen.index((name, False)) < seen.index((name, True)) for name in pairs[0])


def test_float64_is_edited_alone(tmp_path, calls):
    monosoup_cli.edit(*save_pair(tmp_path, *tensors(torch.float64)), tmp_path / "out")
    assert calls == []
