"""Codes of four and eight bits: what they stand for is, to the last bit, what the libraries make of them."""

import json
import signal
import subprocess
import sys
import time
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from monosoup_cli.encodings.table import decoded
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.read import read_float64
from tests import oracle
from tests.encoded import KINDS, SCHEMES, loaded, make, model_of, plain
from tests.models import build


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    made = {}

    def encoded(kind, *, is_finetuned=False):
        key = kind, is_finetuned
        if key not in made:
            made[key] = make(kind, tmp_path_factory.mktemp("codes") / "in", is_finetuned=is_finetuned)
        return made[key]

    return encoded


def read(folder):
    stored = open_checkpoint(str(folder))
    with stored.files:
        source = decoded(stored)
        return source.tensors, {name: read_float64(source, name) for name in source.tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(encoded, kind):
    made = encoded(kind)
    headers, values = read(made.folder)
    assert made.exact
    for name, exact in made.exact.items():
        assert headers[name].dtype == "BF16"
        assert headers[name].shape == tuple(exact.shape)
        assert torch.equal(values[name], exact.double()), name
        assert torch.equal(values[name].bfloat16(), made.rounded[name].bfloat16()), name
    if kind == "mxfp4" or kind in SCHEMES:
        theirs = loaded(kind, made.folder)
        assert all(torch.equal(theirs[name], made.rounded[name]) for name in made.rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_any_piece_is_what_it_is_in_the_whole(encoded, kind, monkeypatch):
    """Pieces begin and end within rows, blocks, bytes and experts."""
    made = encoded(kind)
    monkeypatch.setattr("monosoup_cli.encodings.codec.MAX_ELEMENTS", 300)
    stored = open_checkpoint(str(made.folder))
    noise = torch.Generator().manual_seed(0)
    with stored.files:
        source = decoded(stored)
        for name, exact in list(made.exact.items())[:7]:
            flat = exact.flatten()
            for size in (1, 5, 70, 301, 2000):
                first = int(torch.randint(len(flat) - size, (), generator=noise))
                assert torch.equal(
                    read_float64(source, name, first, first + size), flat[first : first + size].double()
                )
            source.forget()


def done(result):
    assert result.code == 0, result.err
    return result


def matrices(tensors):
    """Every matrix in float64: a tensor, or one expert of a stack."""
    for name, one in tensors.items():
        stack = one.double() if one.ndim == 3 else one.double()[None]
        yield from ((name, number, matrix.numpy()) for number, matrix in enumerate(stack))


def written(path, name, number):
    one = load_file(path)[name]
    return one[number] if one.ndim == 3 else one


def check_edit(run, base, finetuned, folder, before, after):
    """`edit`, its measures and those of `inspect-spectrum`, against the oracle; the two are exact tensors."""
    done(run("edit", base, finetuned, "-o", folder / "edited"))
    report = json.loads((folder / "edited" / "monosoup_report.json").read_text())
    shown = json.loads(done(run("inspect-spectrum", base, finetuned, "--format", "json")).out)
    layers = [{layer["name"]: layer for layer in each["layers"]} for each in (report, shown)]
    tensors = load_file(folder / "edited" / "model.safetensors")
    for (name, number, old), (_, _, new) in zip(matrices(before), matrices(after), strict=True):
        edited, measures = oracle.edit(old, new)
        found = tensors[name][number] if tensors[name].ndim == 3 else tensors[name]
        assert found.dtype == torch.bfloat16
        oracle.assert_weights_equal(found, edited)
        for each in layers:
            of_matrix = each[name]["slices"][number] if "slices" in each[name] else each[name]
            oracle.assert_measures_equal(of_matrix, measures)
    return tensors


def check_mean(run, command, path, wanted):
    done(run(*command, "-o", path))
    tensors = load_file(path)
    for name, mean in wanted.items():
        oracle.assert_weights_equal(tensors[name], mean.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_base(encoded, run, tmp_path, kind):
    base = encoded(kind)
    finetuned, tensors = plain(kind, tmp_path / "ft", is_finetuned=True)
    after = {name: tensors[name] for name in base.exact}
    edited = check_edit(run, base.folder, finetuned, tmp_path, base.exact, after)
    assert edited.keys() == tensors.keys()
    mixed = {name: 0.7 * one.double() + 0.3 * after[name].double() for name, one in base.exact.items()}
    command = "wise", base.folder, finetuned, "--alpha", 0.3
    check_mean(run, command, tmp_path / "wise.safetensors", mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_fine_tuned_one(encoded, run, tmp_path, kind):
    finetuned = encoded(kind, is_finetuned=True)
    base, before = plain(kind, tmp_path / "base")
    other, tensors = plain(kind, tmp_path / "other", is_finetuned=True)
    before = {name: before[name] for name in finetuned.exact}
    check_edit(run, base, finetuned.folder, tmp_path, before, finetuned.exact)
    mean = {name: (one.double() + tensors[name].double()) / 2 for name, one in finetuned.exact.items()}
    for number, pair in enumerate([(finetuned.folder, other), (other, finetuned.folder)]):
        check_mean(run, ("soup", *pair), tmp_path / f"soup-{number}.safetensors", mean)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_loads(encoded, run, tmp_path, kind):
    """As a model without codes, whose weights are those that the library decodes."""
    finetuned = encoded(kind)
    base, _ = plain(kind, tmp_path / "base", is_finetuned=True)
    done(run("edit", base, finetuned.folder, "--exclude", "*", "-o", tmp_path / "out"))
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(said.values()), said
    assert model.dtype == torch.bfloat16
    for name, rounded in finetuned.rounded.items():
        assert torch.equal(model.state_dict()[name], rounded.bfloat16()), name


def adapter_of(kind, exact, folder):
    """Write an adapter of what is encoded, trained over it; what peft merges, in float64."""
    model = build(*model_of(kind))
    model.load_state_dict(exact, strict=False)
    targets = {
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "target_modules": [],
    }
    options = targets if kind == "mxfp4" else {"target_modules": ["q_proj", "down_proj"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # parameters as targets are new
        adapted = peft.get_peft_model(model.double(), peft.LoraConfig(r=4, lora_alpha=7, **options))
        noise = torch.Generator().manual_seed(3)
        for key, weights in adapted.named_parameters():
            if "lora_" in key:
                weights += 0.05 * torch.randn(weights.shape, generator=noise, dtype=torch.float64)
            if "lora_A" in key:  # each row counts less than the one before it
                weights *= 0.4 ** (torch.arange(len(weights)) % 4).view(-1, 1)
            weights.copy_(weights.float())
        adapted.save_pretrained(folder)
        merged = adapted.merge_and_unload().state_dict()
    return {
        name: one
        for name, one in merged.items()
        if name in exact and not torch.equal(one, exact[name].double())
    }


@pytest.mark.parametrize("kind", KINDS)
def test_under_an_adapter(encoded, run, tmp_path, kind):
    base = encoded(kind)
    after = adapter_of(kind, base.exact, tmp_path / "adapter")
    before = {name: base.exact[name] for name in after}
    assert len(after) == 4
    tensors = check_edit(run, base.folder, tmp_path / "adapter", tmp_path, before, after)
    for name in base.rounded.keys() - after:
        assert torch.equal(tensors[name], base.rounded[name].bfloat16()), name


@pytest.mark.slow
def test_killed_and_resumed(encoded, run, tmp_path):
    """Layers of all codecs, in one file."""
    for path, is_finetuned in ((tmp_path / "base.safetensors", False), (tmp_path / "ft.safetensors", True)):
        tensors = {}
        for kind in KINDS:
            stored = load_file(encoded(kind, is_finetuned=is_finetuned).folder / "model.safetensors")
            for name, one in stored.items():
                if "layers.0." in name and "down_proj" in name:
                    tensors |= {f"{KINDS.index(kind)}.{n}.{name}": one.clone() for n in range(20)}
        save_file(tensors, path)
    words = ["edit", tmp_path / "base.safetensors", tmp_path / "ft.safetensors", "--device", "cpu"]
    out, journal = tmp_path / "out.safetensors", tmp_path / "out.safetensors.partial" / "journal"
    command = [sys.executable, "-m", "monosoup_cli", *map(str, words), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 40):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    done(run(*words, "-o", out, "--resume"))
    done(run(*words, "-o", tmp_path / "whole.safetensors"))
    assert len(load_file(out)) >= 20 * len(KINDS)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
