"""Outputs load where their inputs did, with the oracle's weights: real libraries, tiny models of them."""

import copy
import json
import logging

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tests import oracle
from tests.models import MODELS, PIPELINES, build, sentence_model, step

OF_THE_WHOLE = {"modules.json", "config_sentence_transformers.json"}
SHARDS = {"max_shard_size": "20kB"}


@pytest.fixture(autouse=True)
def no_complaint(caplog):
    """The libraries warn of weights that are missing, left over or drawn anew: nothing may be said."""
    libraries = (transformers.logging, diffusers.logging)
    for library in libraries:
        library.enable_propagation()
    yield
    for library in libraries:
        library.disable_propagation()
    said = [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.INFO]
    assert not said


def tensors_in(folder):
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_edited(found, base, finetuned):
    """Every matrix is the oracle's, as far as its rows stand in the base; the rest is as fine-tuned."""
    assert found.keys() == finetuned.keys()
    for name, after in finetuned.items():
        assert found[name].dtype == after.dtype, name
        if after.ndim < 2 or name not in base:
            assert torch.equal(found[name], after), name
            continue
        rows = len(base[name])
        matrices = [t[:rows].double().reshape(rows, -1).numpy() for t in (base[name], after)]
        oracle.assert_weights_equal(found[name][:rows].reshape(rows, -1), oracle.edit(*matrices)[0])
        assert torch.equal(found[name][rows:], after[rows:]), name


def load(kind, folder, **options):
    assert (folder / "config.json").is_file()  # or a model of some billion parameters would be built
    model, info = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True, **options)
    assert not any(info.values()), info
    return model


def assert_loads_edited(kind, out, base, finetuned, **options):
    """What the library loads from `out`, saved by it again, is the edit of these tensors."""
    again = out.with_name("again")
    load(kind, out, **options).save_pretrained(again)
    assert_edited(tensors_in(again), base, finetuned)


@pytest.fixture
def folders(tmp_path):
    return [tmp_path / name for name in ("base", "finetuned", "out")]


def save(models, folders, **options):
    for model, folder in zip(models, folders, strict=False):
        model.save_pretrained(folder, **options)


def edit(run, folders, *options):
    base, finetuned, out = folders
    result = run("edit", base, finetuned, "-o", out, *options)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.float32, SHARDS), (torch.bfloat16, {})],
    ids=["one file", "shards", "bfloat16"],
)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_an_edited_model(run, folders, name, dtype, options):
    base = build(*MODELS[name]).to(dtype)
    save((base, step(copy.deepcopy(base))), folders, **options)
    assert len(list(folders[1].glob("*.safetensors"))) > 1 or not options
    edit(run, folders)
    assert_loads_edited(type(base), folders[2], *map(tensors_in, folders[:2]))


@pytest.mark.parametrize("options", [{}, SHARDS], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", ["base", "finetuned"])
def test_weights_tied_on_one_side(run, folders, tied, options):
    """An untied head is compared with the embedding that its base has in its place."""
    base, finetuned = (
        build(*MODELS["llama, tied" if side == tied else "llama"]) for side in ("base", "finetuned")
    )
    own = {"lm_head.weight"} if tied == "finetuned" else set()
    finetuned.load_state_dict({n: t for n, t in base.state_dict().items() if n not in own}, strict=False)
    save((base, step(finetuned)), folders, **options)
    edit(run, folders)
    before = tensors_in(folders[0])
    before.setdefault("lm_head.weight", before["model.embed_tokens.weight"])
    assert_loads_edited(type(base), folders[2], before, tensors_in(folders[1]))


@pytest.mark.parametrize(
    ("base", "finetuned", "prefix", "options"),
    [
        (MODELS["bert"], "BertForSequenceClassification", "", []),
        (("BertModel", MODELS["bert"][1]), "BertForSequenceClassification", "bert.", ["--rename", "=bert"]),
        (("LlamaModel", MODELS["llama"][1]), "LlamaForCausalLM", "model.", []),
    ],
    ids=["bert", "bert without its prefix", "llama without its prefix"],
)
def test_a_new_head_on_an_old_body(run, folders, base, finetuned, prefix, options):
    base, finetuned = build(*base), build(finetuned, base[1])
    body = finetuned.get_submodule(prefix.rstrip("."))
    body.load_state_dict(base.state_dict(), strict=False)
    save((base, step(finetuned)), folders)
    edit(run, folders, *options)
    before = {prefix + name: tensor for name, tensor in tensors_in(folders[0]).items()}
    assert_loads_edited(type(finetuned), folders[2], before, tensors_in(folders[1]))


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_a_vocabulary_that_grew(run, folders, name):
    base = build(*MODELS[name])
    finetuned = copy.deepcopy(base)
    finetuned.resize_token_embeddings(107, mean_resizing=False)
    save((base, step(finetuned)), folders)
    edit(run, folders, "--on-mismatch", "overlap")
    assert_loads_edited(type(base), folders[2], *map(tensors_in, folders[:2]))


def save_pickled(model, folder, count):
    """A folder as transformers wrote it before safetensors: every name of the state dict, tied or not."""
    model.config.save_pretrained(folder)
    names = list(model.state_dict())
    files = ["pytorch_model.bin"]
    if count > 1:
        files = [f"pytorch_model-{n:05}-of-{count:05}.bin" for n in range(1, count + 1)]
        weight_map = {name: files[number % count] for number, name in enumerate(names)}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for number, file in enumerate(files):
        torch.save({name: model.state_dict()[name] for name in names[number::count]}, folder / file)


@pytest.mark.parametrize("count", [1, 2], ids=["one file", "shards"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_pickled_weights_become_safetensors_that_load(run, tmp_path, folders, name, count):
    base = build(*MODELS[name])
    models = base, step(copy.deepcopy(base))
    for model, folder in zip(models, folders, strict=False):
        save_pickled(model, folder, count)
    edit(run, folders)
    assert not [*folders[2].glob("*.bin"), *folders[2].glob("*.bin.index.json")]
    same = [tmp_path / "base-same", tmp_path / "finetuned-same"]
    save(models, same)
    assert_loads_edited(type(base), folders[2], *map(tensors_in, same))


@pytest.mark.parametrize("options", [{}, SHARDS], ids=["one file", "shards"])
@pytest.mark.parametrize("part", PIPELINES)
def test_diffusers_loads_an_edited_denoiser(run, folders, part, options):
    base = getattr(PIPELINES[part](), part)
    save((base, step(copy.deepcopy(base))), folders, **options)
    edit(run, folders)
    assert_loads_edited(type(base), folders[2], *map(tensors_in, folders[:2]), low_cpu_mem_usage=False)


@pytest.mark.parametrize("options", [{}, SHARDS], ids=["one file", "shards"])
@pytest.mark.parametrize("part", PIPELINES)
def test_of_a_pipeline_the_denoiser_is_edited(run, tmp_path, folders, part, options):
    pipeline = PIPELINES[part]()
    pipeline.save_pretrained(folders[0], **options)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            step(component)
    pipeline.save_pretrained(folders[1], **options)
    edit(run, folders)
    base, finetuned, out = folders
    loaded = diffusers.DiffusionPipeline.from_pretrained(out, local_files_only=True, low_cpu_mem_usage=False)
    loaded.save_pretrained(tmp_path / "again")
    assert_edited(*(tensors_in(folder / part) for folder in (tmp_path / "again", base, finetuned)))
    files = {path.relative_to(finetuned) for path in finetuned.rglob("*") if path.is_file()}
    made = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert {str(path) for path in made ^ files} <= {"README.md", "monosoup_report.json"}
    for path in files:
        if path.parts[0] != part or path.suffix != ".safetensors":
            assert (out / path).read_bytes() == (finetuned / path).read_bytes(), path


@pytest.mark.parametrize("inner", ["", "0_Transformer"], ids=["newer layout", "older layout"])
def test_sentence_transformers_encodes_as_the_oracle_does(run, tmp_path, folders, inner):
    model = sentence_model(tmp_path / "parts")
    for folder in folders[:2]:
        model.save(str(folder), create_model_card=False)
        if inner:
            move_into(folder, inner)
        step(model)
    base, finetuned, out = folders
    edit(run, folders)
    assert_edited(*(tensors_in(folder / inner) for folder in (out, base, finetuned)))
    dense = "2_Dense/model.safetensors"
    assert (out / dense).read_bytes() == (finetuned / dense).read_bytes()
    loaded = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    expected = SentenceTransformer(str(finetuned), device="cpu", local_files_only=True)
    before, after = (tensors_in(folder / inner) for folder in (base, finetuned))
    for name, weights in expected[0].model.named_parameters():
        if weights.ndim > 1:
            edited, _ = oracle.edit(before[name].double().numpy(), after[name].double().numpy())
            weights.data = torch.from_numpy(edited).float()
    np.testing.assert_allclose(
        loaded.encode(["a b", "b"]), expected.encode(["a b", "b"]), rtol=1e-5, atol=1e-6
    )


def move_into(folder, inner):
    """The layout of sentence-transformers before 2: the model in a folder of its own."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in OF_THE_WHOLE]
    (folder / inner).mkdir()
    for path in files:
        path.rename(folder / inner / path.name)
    (folder / "modules.json").write_text(json.dumps(modules))
