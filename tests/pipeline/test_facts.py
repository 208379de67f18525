"""What files say about the weights is true of the weights that are written."""

import hashlib
import io
import json

import pytest
import safetensors.torch
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from monosoup_cli.formats.header import build_header
from monosoup_cli.outputs.facts import true_facts, without_quantization
from monosoup_cli.outputs.layout import OutputFile, OutputLayout
from monosoup_cli.outputs.side_files import side_files
from monosoup_cli.sources.files import Files, Place
from monosoup_cli.sources.folders import LocalFolder
from monosoup_cli.sources.locate import open_checkpoint
from tests.models import CAUSAL, ENDS, TEXT, VISION, build, sentence_model, step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def folders(tmp_path):
    return [tmp_path / name for name in ("base", "finetuned", "out")]


def edit(run, folders, *options):
    base, finetuned, out = folders
    result = run("edit", base, finetuned, "-o", out, *options)
    assert result.code == 0, result.err
    return result


def save(folders, kind, options, dtype=torch.float32):
    model = build(kind, options).to(dtype)
    model.save_pretrained(folders[0])
    step(model).save_pretrained(folders[1])
    return getattr(transformers, kind)


# -- the dtype -------------------------------------------------------------------------------------


NESTED = {"text_config": {**TEXT, **ENDS}, "vision_config": VISION, "projection_dim": 24}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), [("LlamaForCausalLM", CAUSAL), ("CLIPModel", NESTED)])
def test_transformers_loads_the_dtype_that_is_asked_for(run, folders, kind, options, dtype):
    stored = torch.bfloat16 if dtype == "float32" else torch.float32
    kind = save(folders, kind, options, stored)
    edit(run, folders, "--dtype", dtype)
    model, info = kind.from_pretrained(folders[2], output_loading_info=True)
    assert not any(info.values()), info
    assert {weights.dtype for weights in model.parameters()} == {DTYPES[dtype]}
    written = load_file(folders[2] / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in written.items())


def test_sentence_transformers_loads_the_dtype_that_is_asked_for(run, tmp_path, folders):
    model = sentence_model(tmp_path / "parts")
    model.save(str(folders[0]))
    step(model).save(str(folders[1]))
    edit(run, folders, "--dtype", "float16")
    loaded = SentenceTransformer(str(folders[2]), device="cpu")
    assert {weights.dtype for weights in loaded[0].parameters()} == {torch.float16}


def write(folder, config, tensors, name="config.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


OLD = """{ "dtype": "torch.float32", "torch_dtype" : "float32",
  "note": "\\"dtype\\": \\"float32\\"", "time_step_limit": [0.0, 1e+300],
  "mamba_ssm_dtype": "float32", "text_config": {"torch_dtype":"bfloat16", "dtype": null},
  "vision_config": {"dtype": "auto"}, "quantised": {"dtype": "int8"}, "vocab_size": 7 }"""
NEW = OLD.replace('"torch.float32"', '"torch.float16"')
NEW = NEW.replace('"torch_dtype" : "float32"', '"torch_dtype" : "float16"').replace("bfloat16", "float16")


def test_only_the_dtype_changes_in_a_configuration(run, folders):
    """Whatever is not a dtype of weights stays to the byte, and nothing is added."""
    for seed, folder in enumerate(folders[:2]):
        write(folder, OLD, {"a.weight": torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))})
    edit(run, folders)
    assert (folders[2] / "config.json").read_text() == OLD
    edit(run, folders, "--overwrite", "--dtype", "float16")
    assert (folders[2] / "config.json").read_text() == NEW
    edit(run, folders, "--overwrite", "--dtype", "float16", "--side-files", "none")
    assert not (folders[2] / "config.json").exists()


def test_a_configuration_need_not_be_json(tmp_path):
    """transformers writes Infinity, and loads a file in which a key stands twice."""
    config = '{"time_step_limit": [0.0, Infinity], "x": NaN, "dtype": "float32", "dtype": "float32"}'
    (tmp_path / "config.json").write_text(config)
    files = Files(Place("in", LocalFolder(tmp_path, "in")), ())
    found = true_facts(files, OutputLayout((), None, False), side_files(files), "float16")
    assert found == {"config.json": config.replace("float32", "float16").encode()}


# -- the vocabulary --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "config", "expected"),
    [
        (7, '{"vocab_size": 5}', '{"vocab_size": 7}'),
        (7, '{"text_config": {"vocab_size":5}, "vocab_size" : 5 }', None),
        (7, '{"codec": {"vocab_size": 50}, "vocab_size": 9, "size": 5}', "same"),
        (5, '{"vocab_size": 5}', "same"),
        (3, '{"vocab_size": 5\n}', '{"vocab_size": 3\n}'),
    ],
)
def test_the_vocabulary_is_that_of_the_embedding(tmp_path, rows, config, expected):
    """Where the output has another number of rows than the files that the configuration belongs to."""
    expected = {None: '{"text_config": {"vocab_size":7}, "vocab_size" : 7 }', "same": config}.get(
        expected, expected
    )
    write(tmp_path / "in", config, {"embed.weight": torch.ones(5, 4), "norm.weight": torch.ones(5)})
    header = build_header([("embed.weight", "F32", (rows, 4)), ("norm.weight", "F32", (5,))], None)
    layout = OutputLayout((OutputFile("model.safetensors", header),), None, False)
    with open_checkpoint(tmp_path / "in") as checkpoint:
        files = checkpoint.files
        found = true_facts(files, layout, side_files(files), "keep")
    assert found == ({} if expected == config else {"config.json": expected.encode()})


# -- the index -------------------------------------------------------------------------------------


def test_the_index_counts_the_bytes_that_are_written_and_the_same_parameters(run, folders):
    kind = save(folders, "LlamaForCausalLM", {**CAUSAL, "tie_word_embeddings": True})
    for folder in folders[:2]:
        kind.from_pretrained(folder).save_pretrained(folder, max_shard_size="20kB")
        (folder / "model.safetensors").unlink()
    index = "model.safetensors.index.json"
    old = json.loads((folders[1] / index).read_text())["metadata"]
    edit(run, folders, "--dtype", "bfloat16", "--max-shard-size", "10kB")
    new = json.loads((folders[2] / index).read_text())["metadata"]
    nbytes = sum(t.nbytes for path in folders[2].glob("*.safetensors") for t in load_file(path).values())
    assert new == {**old, "total_size": nbytes}
    model = kind.from_pretrained(folders[2])
    assert new["total_parameters"] == model.num_parameters()


# -- hashes ----------------------------------------------------------------------------------------


def kohyas_hashes(tensors, metadata):
    """kohya-ss sd-scripts, library/train_util.py, `precalculate_safetensors_hashes`."""
    kept = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    file = io.BytesIO(safetensors.torch.save(tensors, kept))
    start = 8 + int.from_bytes(file.read(8), "little")
    model = hashlib.sha256(file.getvalue()[start:]).hexdigest()
    legacy = hashlib.sha256(file.getvalue()[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": model, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{model}"}


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def save_hashed(path, seed, rows=300, **more):
    noise = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(rows, 1000, generator=noise) for name in ("a.weight", "b.weight")}
    metadata = {"ss_network_dim": "4", "ss_tag_frequency": "ü" * 5, "modelspec.title": "x", **more}
    save_file(tensors, path, {**metadata, **kohyas_hashes(tensors, metadata)})
    return path


@pytest.fixture(params=[300, 8])
def hashed(tmp_path, request):
    """Files with hashes, as trainers write them: with more than a MiB, and with less."""
    inputs = (save_hashed(tmp_path / f"{seed}.safetensors", seed, request.param) for seed in range(2))
    return (*inputs, tmp_path / "out")


def assert_true_hashes(path):
    found, tensors = metadata_of(path), load_file(path)
    assert found == {**found, **kohyas_hashes(tensors, found)}
    assert {"format": "pt", "ss_tag_frequency": "ü" * 5, "modelspec.title": "x"}.items() <= found.items()
    return tensors


@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16")])
def test_hashes_are_those_of_the_tensors_that_are_written(run, hashed, options):
    edit(run, hashed, *options)
    file = hashed[2] / "model.safetensors"
    assert_true_hashes(file)
    (noted,) = json.loads((hashed[2] / "monosoup_report.json").read_text())["output"]["files"]
    assert noted["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_every_shard_and_every_checkpoint_has_its_own_hashes(run, hashed):
    edit(run, hashed, "--energy", "0.3,0.9", "--max-shard-size", str(load_file(hashed[0])["a.weight"].nbytes))
    files = sorted(hashed[2].glob("*/*.safetensors"))
    assert len(files) == 4
    for path in files:
        assert_true_hashes(path)
    assert len({metadata_of(path)["sshs_model_hash"] for path in files}) == 4


def test_an_edited_lora_file_has_the_hashes_of_its_own_tensors(run, tmp_path):
    """As kohya's trainers write it."""
    noise = torch.Generator().manual_seed(0)
    tensors = {"lora_unet_x.alpha": torch.tensor(4.0)}
    for name, shape in (("down", (4, 24)), ("up", (32, 4))):
        tensors[f"lora_unet_x.lora_{name}.weight"] = torch.randn(shape, generator=noise)
    metadata = {"ss_network_dim": "4", "ss_tag_frequency": "ü" * 5, "modelspec.title": "x"}
    path, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path, {**metadata, **kohyas_hashes(tensors, metadata)})
    save_file({"x.weight": torch.randn(32, 24, generator=noise)}, tmp_path / "base.safetensors")
    edit(run, (tmp_path / "base.safetensors", path, out), "--as-adapter")
    edited = assert_true_hashes(out)
    assert not torch.equal(edited["lora_unet_x.lora_up.weight"], tensors["lora_unet_x.lora_up.weight"])


def test_hashes_of_an_unchanged_file_stay(run, hashed):
    edit(run, hashed, "--include", "a.*", "--min-update", "1e9")
    assert metadata_of(hashed[2] / "model.safetensors") == {**metadata_of(hashed[1]), "format": "pt"}


def test_a_resumed_run_writes_the_same_hashes(run, hashed, monkeypatch, tmp_path):
    from monosoup_cli.outputs.writer import PartialOutput

    edit(run, hashed, "--workers", "1")
    whole = (hashed[2] / "model.safetensors").read_bytes()
    publish = PartialOutput.publish

    def stop(*_):
        raise SystemExit(130)

    monkeypatch.setattr(PartialOutput, "publish", stop)
    base, finetuned, out = *hashed[:2], tmp_path / "again"
    assert run("edit", base, finetuned, "-o", out, "--workers", "1").code == 130
    monkeypatch.setattr(PartialOutput, "publish", publish)
    edit(run, (base, finetuned, out), "--workers", "1", "--resume")
    assert (out / "model.safetensors").read_bytes() == whole


def test_hashes_by_other_algorithms_are_removed_and_named(run, tmp_path):
    inputs = [
        save_hashed(tmp_path / f"{n}.safetensors", n, 8, **{"modelspec.hash_md5": "0xab"}) for n in (0, 1)
    ]
    result = edit(run, (*inputs, tmp_path / "out"))
    assert "modelspec.hash_md5" not in metadata_of(tmp_path / "out" / "model.safetensors")
    note = "note: removed from __metadata__, since new weights make it false: modelspec.hash_md5"
    assert note in result.err


@pytest.mark.parametrize("metadata", [None, {"note": "x"}, {"format": "tf"}])
def test_a_rebuilt_header_has_a_format(run, tmp_path, metadata):
    """Without one, transformers refuses the file."""
    for seed in range(2):
        tensors = {"a.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))}
        save_file(tensors, tmp_path / f"{seed}.safetensors", metadata)
    folders = (tmp_path / "0.safetensors", tmp_path / "1.safetensors", tmp_path / "out")
    edit(run, folders)
    assert metadata_of(tmp_path / "out" / "model.safetensors") == metadata
    edit(run, folders, "--overwrite", "--dtype", "bfloat16")
    assert metadata_of(tmp_path / "out" / "model.safetensors") == {"format": "pt", **(metadata or {})}


# -- codes -----------------------------------------------------------------------------------------

CONFIGS = {
    '{"a": 1, "quantization_config": {"b": [1, {"c": "}"}]}, "d": 2}': '{"a": 1, "d": 2}',
    '{"quantization_config": {}, "d": 2}': '{"d": 2}',
    '{"a": 1, "compression_config": null}': '{"a": 1}',
    '{"quantization_config": {"b": 1}}': "{}",
    '{\n  "a": 1,\n  "quantization_config": {\n    "b": 1\n  },\n  "c": 2\n}': '{\n  "a": 1,\n  "c": 2\n}',
    '{\n  "a": 1,\n  "quantization_config": {}\n}': '{\n  "a": 1\n}',
    '{"text_config": {"quantization_config": {"b": 1}, "a": Infinity}}': '{"text_config": {"a": Infinity}}',
    '{"quantization_config": {}, "compression_config": {}, "é": 1}': '{"é": 1}',
    r'{"a": "\"quantization_config\": {}, é"}': r'{"a": "\"quantization_config\": {}, é"}',
    '{"a": "quantization_config"}': '{"a": "quantization_config"}',
    '{"a": 1, "quantization_config": {"b"': '{"a": 1, "quantization_config": {"b"',
}


@pytest.mark.parametrize(("old", "new"), CONFIGS.items())
def test_what_configurations_say_about_codes_is_left_out(old, new):
    assert without_quantization(old.encode()).decode() == new
    assert without_quantization(b"\xff" + old.encode()) == b"\xff" + new.encode()
