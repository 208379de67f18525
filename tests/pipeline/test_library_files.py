"""Files that belong to libraries are read as those libraries read them."""

import copy
import json
import shutil
from argparse import Namespace
from collections import OrderedDict
from pathlib import PurePosixPath

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models import CAUSAL, build, step

MAMBA = {
    "hidden_size": 16,
    "num_heads": 4,
    "head_dim": 8,
    "state_size": 4,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "n_groups": 1,
}


@pytest.fixture
def llamas(tmp_path):
    """A base and a fine-tuned model of transformers, each in shards with an index."""
    base = build("LlamaForCausalLM", CAUSAL)
    folders = [tmp_path / "base", tmp_path / "finetuned"]
    for model, folder in zip((base, step(copy.deepcopy(base))), folders, strict=True):
        model.save_pretrained(folder, max_shard_size="20kB")
    return folders


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return index["weight_map"]


def loaded(folder, kind=transformers.LlamaForCausalLM):
    """The weights that transformers loads from a folder, and the names of those that it did not find."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    return model.state_dict(), info["missing_keys"]


def test_a_config_with_infinity_and_a_key_that_stands_twice(run, tmp_path):
    """As transformers 4 wrote Mamba-2 and Nemotron: version 5 still loads it."""
    base = build("Mamba2ForCausalLM", MAMBA)
    for model, name in ((base, "base"), (step(copy.deepcopy(base)), "finetuned")):
        model.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text()) | {"time_step_limit": [0.0, float("inf")]}
        path.write_text('{"head_dim": 99, "note": NaN, "low": -Infinity, ' + json.dumps(config)[1:])
    result = run("edit", tmp_path / "base", tmp_path / "finetuned", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    weights, missing = loaded(tmp_path / "out", transformers.Mamba2ForCausalLM)
    assert not missing
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in written.items())


def test_an_index_with_infinity_and_a_key_that_stands_twice(run, llamas, tmp_path):
    path = llamas[1] / "model.safetensors.index.json"
    text = path.read_text()
    path.write_text('{"metadata": {"loss": NaN, "best": Infinity}, "weight_map": {"absent": 3}, ' + text[1:])
    result = run("edit", *llamas, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert not loaded(tmp_path / "out")[1]
    path.write_text(text.replace('"metadata": {', '"metadata": {"best": Infinity, '))
    assert run("edit", *llamas, "-o", tmp_path / "out", "--overwrite").code == 0
    assert not loaded(tmp_path / "out")[1]


def test_the_configuration_of_an_adapter_with_nan(run, pair, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {"lora_A": torch.randn(2, 6), "lora_B": torch.randn(8, 2)}
    save_file(
        {f"base_model.model.block.{name}.weight": factor for name, factor in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["block"], "note": float("nan")}
    (adapter / "adapter_config.json").write_text('{"r": 9, ' + json.dumps(config)[1:])
    result = run("edit", pair.base, adapter, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    result = run("edit", pair.base, adapter, "-o", tmp_path / "again", "--as-adapter")
    assert result.code == 0, result.err


# -- indexes and shards ---------------------------------------------------------------------------


def test_an_index_that_leaves_tensors_out_and_names_others(run, llamas, tmp_path):
    """transformers reads the shards that the index names, and everything that is in them."""
    weight_map = edit_index(llamas[1], lambda names: names.update({"absent.weight": names["lm_head.weight"]}))
    some = [name for name in weight_map if name.startswith("model.layers.0.mlp")]
    other = next(shard for shard in weight_map.values() if shard != weight_map["lm_head.weight"])
    edit_index(llamas[1], lambda names: [names.pop(name) for name in some])
    edit_index(llamas[1], lambda names: names.update({"lm_head.weight": other}))
    extra = llamas[1] / "model-00099-of-00099.safetensors"
    save_file({"model.norm.weight": torch.full((32,), 9.0)}, extra)
    expected, missing = loaded(llamas[1])
    assert not missing
    assert not torch.equal(expected["model.norm.weight"], torch.full((32,), 9.0))
    result = run("wise", *llamas, "-o", tmp_path / "out", "--alpha", "1")
    assert result.code == 0, result.err
    for words in (
        "none of its shards: absent.weight",
        "the index leaves out are read all the same: model.layers.0.mlp",
        "another shard than the index says, and are read there: lm_head.weight",
        f"not read: {extra.name}",
    ):
        assert words in " ".join(result.err.split())
    found, missing = loaded(tmp_path / "out")
    assert not missing
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_shard_is_refused_as_transformers_refuses_it(refuse, llamas):
    weight_map = edit_index(llamas[1], lambda names: None)
    (llamas[1] / weight_map["lm_head.weight"]).unlink()
    with pytest.raises(FileNotFoundError):
        loaded(llamas[1])
    line = refuse(*llamas)
    assert weight_map["lm_head.weight"] in line
    assert "missing" in line


def saved(folder, suffix):
    """The shards of a folder in another format."""
    for path in folder.glob("*.safetensors"):
        if suffix == ".bin":
            torch.save(load_file(path), path.with_name(f"pytorch_{path.stem}{suffix}"))
            path.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_numbered_shards_without_an_index_are_read_together(run, llamas, tmp_path, suffix):
    expected = run("edit", *llamas, "-o", tmp_path / "expected")
    assert expected.code == 0, expected.err
    saved(llamas[1], suffix)
    (llamas[1] / "model.safetensors.index.json").unlink()
    result = run("edit", *llamas, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "numbered shards without an index are read together" in " ".join(result.err.split())
    found, missing = loaded(tmp_path / "out")
    assert not missing
    assert all(torch.equal(found[name], one) for name, one in loaded(tmp_path / "expected")[0].items())


def test_numbered_shards_of_which_one_is_missing(refuse, run, llamas, tmp_path):
    (llamas[1] / "model.safetensors.index.json").unlink()
    shards = sorted(llamas[1].glob("*.safetensors"))
    assert len(shards) > 2
    kept = tmp_path / "kept"
    kept.mkdir()
    for count in (1, len(shards) - 1):  # all but one, and a single one
        for path in shards[1 : 1 + count]:
            shutil.move(path, kept / path.name)
        line = refuse(*llamas)
        assert shards[1].name in line
        assert "missing" in line
        for path in kept.iterdir():
            shutil.move(path, shards[0].parent / path.name)
    result = run("edit", llamas[0] / shards[1].name, shards[1], "-o", tmp_path / "part")
    assert result.code == 0  # as somebody may want it, who is told
    assert "one shard of several" in " ".join(result.err.split())


def test_numbers_from_zero_and_a_set_of_one(run, pair, tmp_path):
    base = load_file(pair.base)
    for number, name in enumerate(base):
        (tmp_path / "parts").mkdir(exist_ok=True)
        save_file(
            {name: base[name]}, tmp_path / "parts" / f"weights_{number:02}_of_{len(base):02}.safetensors"
        )
    assert run("edit", pair.base, tmp_path / "parts", "-o", tmp_path / "out", "--dry-run").code == 0
    (tmp_path / "one").mkdir()
    shutil.copy(pair.finetuned, tmp_path / "one" / "model-00001-of-00001.safetensors")
    assert run("edit", pair.base, tmp_path / "one", "-o", tmp_path / "out").code == 0


# -- the files of ranks ---------------------------------------------------------------------------

RANK_FILES = {
    "verl": ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "optim_world_size_2_rank_0.pt"],
    "Meta": ["consolidated.00.pth", "consolidated.01.pth"],
    "DeepSpeed": [
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "zero_pp_rank_1_mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
    "Megatron": ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
    "vLLM": ["model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"],
}
WAYS_OUT = {
    "verl": "python -m verl.model_merger merge --backend fsdp",
    "Meta": "convert_llama_weights_to_hf.py",
    "DeepSpeed": "python zero_to_fp32.py . NEW",
    "Megatron": "AutoBridge.export_ckpt",
    "vLLM": "use the model that it was made from",
}


@pytest.mark.parametrize("program", RANK_FILES)
def test_the_files_of_ranks_are_called_what_they_are(refuse, pair, tmp_path, program):
    (tmp_path / "ranks").mkdir()
    for name in RANK_FILES[program]:
        (save_file if name.endswith(".safetensors") else torch.save)(
            load_file(pair.finetuned), tmp_path / "ranks" / name
        )
    line = refuse(pair.base, tmp_path / "ranks")
    assert program in line
    assert WAYS_OUT[program] in line
    assert "pass" not in line


@pytest.mark.parametrize("program", RANK_FILES)
def test_one_file_of_several_ranks_is_no_checkpoint(refuse, pair, tmp_path, program):
    """By the files beside it; and alone by its name, unless it may be the only one."""
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    for folder in (beside, alone):
        folder.mkdir()
        for name in RANK_FILES[program]:
            (save_file if name.endswith(".safetensors") else torch.save)(
                load_file(pair.finetuned), folder / name
            )
    weights = [name for name in RANK_FILES[program] if "optim" not in name]
    for name in weights:
        assert WAYS_OUT[program] in refuse(pair.base, beside / name)
    for name in RANK_FILES[program]:
        if name != weights[-1]:
            (alone / name).unlink()
    assert WAYS_OUT[program] in refuse(pair.base, alone / weights[-1])


@pytest.mark.parametrize(
    "name",
    [
        "consolidated.00.pth",
        "model_world_size_1_rank_0.pt",
        "mp_rank_00_model_states.pt",
        "mp_rank_00/model_optim_rng.pt",
    ],
)
def test_the_only_file_of_a_rank_is_a_checkpoint(run, pair, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    torch.save(load_file(pair.finetuned), path)
    assert run("edit", pair.base, path, "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("name", "words"), [("__0_0.distcp", "pass its folder: "), ("zero_to_fp32.py", "zero_to_fp32.py . NEW")]
)
def test_the_only_file_of_another_format(refuse, pair, tmp_path, name, words):
    (tmp_path / name).write_bytes(b"import torch\n")
    assert words in refuse(pair.base, tmp_path / name)


def test_a_file_in_the_folder_of_a_rank(refuse, pair, tmp_path):
    for rank in ("mp_rank_00", "mp_rank_01"):
        (tmp_path / rank).mkdir()
        torch.save(load_file(pair.finetuned), tmp_path / rank / "model_optim_rng.pt")
    for rank in ("mp_rank_00", "mp_rank_01"):
        assert "Megatron" in refuse(pair.base, tmp_path / rank / "model_optim_rng.pt")


@pytest.mark.parametrize(
    "suffix", [".gguf", ".h5", ".onnx", ".msgpack", ".npz", ".pt", ".bin", ".GGUF", ".PTH"]
)
def test_an_output_is_not_called_by_a_format_that_is_not_written(run, pair, tmp_path, suffix):
    result = run("edit", *pair, "-o", tmp_path / f"out{suffix}")
    assert result.code == 2
    assert "the output must be a .safetensors file or a folder" in result.err
    assert not (tmp_path / f"out{suffix}").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mp_rank_00/", "mp_rank_01/"], "Megatron"),
        (["iter_0000100/", "latest_checkpointed_iteration.txt"], "Megatron"),
        (["global_step10/", "latest", "zero_to_fp32.py"], "zero_to_fp32.py . NEW"),
    ],
)
def test_folders_of_ranks_are_called_what_they_are(refuse, pair, tmp_path, names, words):
    for name in names:
        path = tmp_path / "run" / name
        path.mkdir(parents=True) if name.endswith("/") else path.write_text("")
    assert words in refuse(pair.base, tmp_path / "run")


def test_what_deepspeed_saves_without_zero_3(run, pair, tmp_path):
    """As its engine writes it; what is in its optimizer's files is not looked at."""
    states = tmp_path / "global_step10"
    states.mkdir()
    weights = load_file(pair.finetuned)
    content = {
        "module": weights,
        "buffer_names": ["a"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, one.shape) for name, one in weights.items())],
        "shared_params": {},
        "sparse_tensor_module_names": set(),
        "args": Namespace(deepspeed=True, output=PurePosixPath("/out")),
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.17.0",
    }
    torch.save(content, states / "mp_rank_00_model_states.pt")
    (states / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"anything")
    result = run("edit", pair.base, states, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert "holds objects that are not read: 'argparse.Namespace', 'pathlib.PurePosixPath'" in said
    assert run("edit", *pair, "-o", tmp_path / "expected").code == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert all(torch.equal(found[name], one) for name, one in expected.items())


# -- several state dicts in one file --------------------------------------------------------------


@pytest.fixture
def averaged(pair, tmp_path):
    """A file of a trainer: other weights as they are, and the fine-tuned ones as their average."""
    base, finetuned = load_file(pair.base), load_file(pair.finetuned)
    live = {name: one + 1 for name, one in base.items()}
    torch.save({"state_dict": live, "state_dict_ema": finetuned, "epoch": 3}, tmp_path / "ft.pt")
    return tmp_path / "ft.pt"


def test_the_average_is_chosen(run, pair, averaged, tmp_path):
    """Of the file that has one; the base is read as it is, a plain file or a file with a state dict alone."""
    assert run("edit", *pair, "-o", tmp_path / "expected.safetensors").code == 0
    torch.save({"state_dict": load_file(pair.base), "epoch": 0}, tmp_path / "base.pt")
    for base in pair.base, tmp_path / "base.pt":
        out = tmp_path / "out.safetensors"
        result = run("edit", base, averaged, "-o", out, "--state-dict", "state_dict_ema", "--overwrite")
        assert result.code == 0, result.err
        found, expected = load_file(out), load_file(tmp_path / "expected.safetensors")
        assert all(torch.equal(found[name], one) for name, one in expected.items())
        report = json.loads((tmp_path / "out.report.json").read_text())
        assert report["arguments"]["state_dict"] == "state_dict_ema"


def test_a_note_says_that_there_is_an_average(run, pair, averaged, tmp_path):
    result = run("edit", pair.base, averaged, "-o", tmp_path / "out.safetensors")
    said = " ".join(result.err.split())
    assert "the tensors of 'state_dict' are read; --state-dict chooses others: 'state_dict_ema'" in said


@pytest.mark.parametrize("command", ["inspect-spectrum", "soup", "stock", "sfgs", "wise"])
def test_every_command_has_the_choice(run, pair, averaged, tmp_path, command):
    other = [] if command in ("inspect-spectrum", "wise") else [pair.finetuned]
    base = [] if command in ("soup", "sfgs") else [pair.base]
    output = [] if command == "inspect-spectrum" else ["-o", tmp_path / "out"]
    words = [command, *base, *other, averaged, *output]
    words += ["--alpha", "0.5"] if command == "wise" else []
    if command == "sfgs":
        words[1:2] = [pair.base, pair.finetuned]
        words += ["--threshold", "0.5"]
    result = run(*words, "--state-dict", "state_dict_ema")
    assert "No such option" not in result.err
    assert "chooses others: 'state_dict'" in " ".join(result.err.split()), result


def test_a_choice_that_no_input_has(run, pair, averaged, tmp_path):
    result = run("edit", pair.base, averaged, "-o", tmp_path / "out", "--state-dict", "ema")
    assert result.code == 1
    assert "no state dict 'ema': found 'state_dict', 'state_dict_ema'" in " ".join(result.err.split())
    result = run("edit", *pair, "-o", tmp_path / "out", "--state-dict", "ema")
    assert result.code == 2
    assert "no input has a state dict 'ema'; without --state-dict" in " ".join(result.err.split())
    torch.save({"model": load_file(pair.finetuned), "epoch": 1}, averaged)
    result = run("edit", pair.base, averaged, "-o", tmp_path / "out", "--state-dict", "ema")
    assert result.code == 2
    assert "no input has a state dict 'ema': expected model" in " ".join(result.err.split())


def test_hints_that_name_a_choice_lead_to_it(run, pair, tmp_path):
    assert run("edit", *pair, "-o", tmp_path / "expected.safetensors").code == 0
    weights = load_file(pair.finetuned)
    for content in {"net": weights, "epoch": 3}, {"model": weights, "module": weights}:
        torch.save(content, tmp_path / "ft.pt")
        words = ["edit", pair.base, tmp_path / "ft.pt", "-o", tmp_path / "out.safetensors", "--overwrite"]
        result = run(*words)
        assert result.code == 1
        said = " ".join(result.err.split())
        choice = said.partition("--state-dict ")[2].split()[0]
        assert run(*words, "--state-dict", choice).code == 0
        found, expected = (load_file(tmp_path / f"{name}.safetensors") for name in ("out", "expected"))
        assert all(torch.equal(found[name], one) for name, one in expected.items())


# -- what ZeRO-3 leaves ---------------------------------------------------------------------------


def test_the_empty_tensors_of_zero_3_are_called_what_they_are(refuse, run, pair, tmp_path):
    """Matrices are parts; what is below its threshold (parameter persistence) is whole."""
    weights = load_file(pair.finetuned)
    left = {name: one if one.ndim < 2 else one.new_zeros(0) for name, one in weights.items()}
    save_file(left, tmp_path / "left.safetensors")
    torch.save({"module": left}, tmp_path / "left.pt")
    for file in "left.safetensors", "left.pt":
        for inputs in (pair.base, tmp_path / file), (tmp_path / file, pair.finetuned):
            for options in ([], ["--on-mismatch", "keep"]):
                line = refuse(*inputs, *options)
                assert f"{file}: tensor 'block.weight': empty tensors in place of weights (2 of 3)" in line
                assert "python zero_to_fp32.py . NEW" in line
                assert "stage3_gather_16bit_weights_on_model_save" in line
    save_file({**weights, "none": torch.zeros(0)}, tmp_path / "own.safetensors")  # a buffer that is so
    assert run("edit", pair.base, tmp_path / "own.safetensors", "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize("part", [1, 3])
def test_the_flat_tensors_of_fsdp_are_called_what_they_are(refuse, run, pair, tmp_path, part):
    """The first rank has the first of all elements, of which some matrices get none."""
    weights = load_file(pair.finetuned)
    matrix = weights["block.weight"]
    rank = {
        **weights,
        "block.weight": matrix.flatten()[: matrix.numel() // part].clone(),
        "head.weight": torch.zeros(0),
    }
    save_file(rank, tmp_path / "rank.safetensors")
    for inputs in (pair.base, tmp_path / "rank.safetensors"), (tmp_path / "rank.safetensors", pair.finetuned):
        for options in ([], ["--on-mismatch", "keep"], ["--exclude", "*.weight"]):
            line = refuse(*inputs, *options)
            assert (
                "rank.safetensors: tensor 'block.weight': flat tensors in place of matrices (1 of 3)" in line
            )
            assert "give the run's CHECKPOINT/pytorch_model_fsdp_0" in line
            assert "FULL_STATE_DICT" in line


@pytest.mark.parametrize(
    ("one", "other"), [((8,), (1, 8)), ((8,), (8, 1, 1)), ((8,), (8, 6)), ((64,), (8, 6))]
)
def test_a_vector_that_is_no_part_of_a_matrix(run, tmp_path, one, other):
    weights = {"w": torch.eye(4)}
    save_file({**weights, "x": torch.ones(one)}, tmp_path / "ft.safetensors")
    save_file({**weights, "x": torch.ones(other)}, tmp_path / "base.safetensors")
    inputs = tmp_path / "base.safetensors", tmp_path / "ft.safetensors"
    result = run("edit", *inputs, "-o", tmp_path / "out", "--on-mismatch", "keep")
    assert result.code == 0, result.err


def test_an_adapter_of_zero_3(refuse, pair, tmp_path):
    (tmp_path / "adapter").mkdir()
    factors = {f"base_model.model.block.{name}.weight": torch.zeros(0) for name in ("lora_A", "lora_B")}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["block"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert "empty tensors in place of weights (2 of 2)" in refuse(pair.base, tmp_path / "adapter")
