"""What is carried along beside new weights, and of a pipeline its other parts."""

from __future__ import annotations

import json
import os

import pytest

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.outputs import side_files as module
from monosoup_cli.outputs.side_files import side_files
from monosoup_cli.sources.files import Files, Place
from monosoup_cli.sources.folders import LocalFolder
from monosoup_cli.sources.locate import parts_of
from tests.hub import cloned


@pytest.fixture
def carried(tmp_path):
    """Of a folder with these files, those that are carried along; content is {} unless told otherwise."""

    def carried(*names, inner="", wanted=(), **contents):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        for name, content in contents.items():
            (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
        found = side_files(Files(Place("in", LocalFolder(tmp_path / "in", "in"), inner), ()), wanted)
        assert not {one.name for one in found.left_out} & set(found.names)
        carried.left_out = {one.name: one.why for one in found.left_out}
        return sorted(found.names)

    return carried


WANTED = [
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "modeling_x.py",
    "figure.png",
    "glossary.png",
    "additional_chat_templates/tool.jinja",
    "1_Pooling/config.json",
    "deep/deeper/preprocessor_config.json",
    "model.safetensors.txt",
    "scheduler/scheduler_config.json",
    "my.original",
    "checkpoints.md",
    "spk_dict.pt",
    "model_head.pkl",
    "voices/a.pt",
    "voices/a.npz",
    "vae.pt",
    "vae.ckpt",
    "vocoder/model.safetensors",
    "other.safetensors",
    "2_Dense/pytorch_model.bin",
    "non_lora_trainables.bin",
    "label_map.pickle",
    "campplus.onnx",
    "graph.xml",
    "schema.json",
    "optimizer.py",
    "scheduler/x.json",
    "vision-lora/adapter_config.json",
    "vision-lora/adapter_model.safetensors",
    "lora_adapter/adapter_config.json",
    "lora_adapter/adapter_model.bin",
]
UNWANTED = [
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.fp16.bin",
    "diffusion_pytorch_model.non_ema.safetensors",
    "model_ema.pt",
    "ema.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "tf_model.h5",
    "model.onnx",
    "model.onnx_data",
    "model.gguf",
    "rust_model.ot",
    "model.tflite",
    "weights.00.npz",
    "a.nemo",
    "onnx/model.onnx",
    "decoder_model_merged.onnx",
    "openvino_model.xml",
    "openvino_model.bin",
    "ir.xml",
    "ir.bin",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_1.bin",
    "scheduler_0.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "random_states_0.pkl",
    "optimizer_0/__0_0.distcp",
    "shard.distcp",
    "pytorch_model_fsdp_0/.metadata",
    "pytorch_model_fsdp_0/__0_0.distcp",
    "wandb/run/files/config.yaml",
    "runs/a/x.json",
    "logs/x.txt",
    "mlruns/0/meta.yaml",
    "train.log",
    "__pycache__/a.cpython-312.pyc",
    "latest",
    "global_step500/mp_rank_00_model_states.pt",
    "mp_rank_00_model_states.pt",
    "zero_to_fp32.py",
    "all_results.json",
    "predict_results.json",
    "generated_predictions.jsonl",
    "eval_predictions.json",
    "eval_predictions.txt",
    "eval_nbest_predictions.json",
    "trainer_log.jsonl",
    "nohup.out",
    "ds_config.json",
    "ds_z3_config.json",
    "deepspeed_config.json",
    "loss.png",
    "eval_loss.png",
    "loss_curve.png",
    "training_loss.png",
    "training_eval_loss.png",
    "running_log.txt",
    "llamaboard_config.yaml",
    "training_args.yaml",
    "training_params.json",
    "model.safetensors.bak",
    "config.json.bak",
    "modeling_x.py~",
    "last.ckpt",
    "epoch=3-step=100.ckpt",
    ".git/config",
    "trainer_state.json",
    "README.md",
    "monosoup_report.json",
    ".gitattributes",
    ".cache/x.json",
    "deep/.hidden",
    "events.out.tfevents.1",
    "original/params.json",
    "checkpoint-500/config.json",
    "deep/original/x.json",
    "deep/checkpoint-1/x.json",
    "deep/README.md",
]


def test_what_is_carried_and_what_is_left_behind(carried):
    assert carried(*WANTED, *UNWANTED) == sorted(WANTED)


IN_FOLDERS = [
    *("a.json", "voices/a.json", "voices/a.npz", "optimizer.pt", "trainer_state.json"),
    *("checkpoint-1/a.json", "checkpoint-1/wandb/b.json", "checkpoint-1/deep/a.json", "voices/wandb/a.json"),
]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.json", ["a.json", "trainer_state.json", "voices/a.json"]),
        ("/*.json", ["a.json", "trainer_state.json"]),
        ("a.*", ["a.json", "voices/a.json", "voices/a.npz"]),
        ("opt*", ["optimizer.pt"]),
        ("voices", ["voices/a.json", "voices/a.npz", "voices/wandb/a.json"]),
        ("voices/*.npz", ["voices/a.npz"]),
        ("*/a.json", ["checkpoint-1/a.json", "voices/a.json"]),
        ("checkpoint-*", [name for name in IN_FOLDERS if name.startswith("checkpoint-1/")]),
        ("checkpoint-1/*.json", ["checkpoint-1/a.json"]),
        ("checkpoint-1/deep/", ["checkpoint-1/deep/a.json"]),
        ("wandb", ["voices/wandb/a.json"]),
        ("wandb/", ["voices/wandb/a.json"]),
    ],
)
def test_globs_are_as_in_gitignore_but_reach_into_what_is_left_out_only_by_its_name(carried, glob, expected):
    assert carried(*IN_FOLDERS, wanted=["none", glob]) == sorted(expected)


def test_of_a_folder_that_no_glob_names_only_the_name_is_listed(carried):
    carried(*IN_FOLDERS, wanted=["none", "wandb"])
    assert carried.left_out["checkpoint-1/"] == "state of training"
    assert not [name for name in carried.left_out if name.startswith("checkpoint-1/") and name[13:]]


def test_a_file_may_have_the_name_of_a_choice(carried):
    assert carried("none", "a.json", wanted=["none", "a.json"]) == ["a.json"]


def test_only_folders_are_left_behind_for_the_name_of_a_folder(carried):
    assert carried("original", "checkpoint-1") == ["checkpoint-1", "original"]


def test_a_large_file_is_left_behind(carried, tmp_path):
    carried("a.txt", "b.txt")
    os.truncate(tmp_path / "in" / "a.txt", 256 << 20)
    os.truncate(tmp_path / "in" / "b.txt", (256 << 20) + 1)
    assert carried() == ["a.txt"]


PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet"],
    "vae": ["diffusers", "VAE"],
    "text_encoder": ["transformers", "CLIP"],
    "scheduler": ["diffusers", "PNDM"],
    "tokenizer": ["x", "y"],
    "safety_checker": [None, None],
    "requires_safety_checker": True,
}
PARTS = [
    "unet/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00001.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
]
OTHER_PARTS = [
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.onnx",
    "text_encoder/pytorch_model.bin.index.json",
    "text_encoder/flax_model.msgpack",
    "tokenizer/.hidden",
    "v1-5-pruned.safetensors",
    "unrelated/model.safetensors",
    "vae/README.md",
    "vae_decoder/model.onnx",
]


def test_the_other_parts_of_a_pipeline_are_carried_in_one_format(carried):
    found = carried(*PARTS, *OTHER_PARTS, "notes/x.json", inner="unet/", model_index=PIPELINE)
    assert found == sorted([*PARTS, "model_index.json", "notes/x.json"])


def test_a_folder_that_a_pipeline_does_not_list_stays_whole(carried):
    names = ["unet_ema/config.json", "unet_ema/diffusion_pytorch_model.safetensors"]
    assert carried("unet/config.json", *names, inner="unet/", model_index=PIPELINE) == [
        *("model_index.json", "unet/config.json")
    ]
    assert carried.left_out == {"unet_ema/": "not in model_index.json"}
    found = carried(inner="unet/", wanted=["unet_ema"], model_index=PIPELINE)
    assert found == ["model_index.json", "unet/config.json", *names]


def test_weights_of_a_part_are_of_the_format_that_there_is(carried):
    names = ["vae/a.bin", "vae/a.bin.index.json", "vae/b.pt", "text_encoder/model.ckpt", "unet/a.bin"]
    found = carried(*names, "vae/inner/a.safetensors", inner="unet/", model_index=PIPELINE)
    expected = ["model_index.json", "text_encoder/model.ckpt", "vae/a.bin", "vae/a.bin.index.json"]
    assert found == [*expected, "vae/b.pt", "vae/inner/a.safetensors"]


def test_weights_of_a_part_may_be_large_and_their_neighbours_not(carried, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDE_FILE_BYTES", 1)
    assert carried("vae/a.safetensors", "vae/a.json", inner="unet/", model_index=PIPELINE) == [
        "vae/a.safetensors"
    ]


def test_the_weights_of_an_adapter_beside_are_carried_with_its_configuration(carried, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDE_FILE_BYTES", 2)
    names = ["lora_adapter/adapter_config.json", "lora_adapter/adapter_model.bin"]
    assert carried(*names) == names
    monkeypatch.undo()
    assert carried(*names, inner="unet/", model_index=PIPELINE) == [*names, "model_index.json"]


def test_of_sentence_transformers_the_edited_part_is_not_carried(carried):
    names = ["1_Dense/model.safetensors", "1_Dense/config.json", "model.safetensors", "config.json"]
    modules = [{"path": ""}, {"path": "1_Dense"}]
    assert carried(*names, modules=modules) == [
        "1_Dense/config.json",
        "1_Dense/model.safetensors",
        "config.json",
        "modules.json",
    ]
    moved = ["0_BERT/model.safetensors", "0_BERT/config.json"]
    modules = [{"path": "0_BERT"}, {"path": "1_Dense"}]
    found = carried(*moved, inner="0_BERT/", modules=modules)
    assert "0_BERT/config.json" in found
    assert "1_Dense/model.safetensors" in found
    assert "0_BERT/model.safetensors" not in found


def test_links_out_of_a_users_own_folder_are_followed_to_files_and_parts(carried, tmp_path):
    """Not to other folders, which may hold anything; out of what is from the Hub, nowhere."""
    carried("unet/config.json", model_index=PIPELINE)
    (tmp_path / "else" / "deep").mkdir(parents=True)
    for name in ("config.json", "deep/x.json", "vocab.json"):
        (tmp_path / "else" / name).write_text("{}")
    for name, target in (("vae", "else"), ("data", "else/deep"), ("vocab.json", "else/vocab.json")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    parts = ["vae/config.json", "vae/deep/x.json", "vae/vocab.json"]
    assert carried(inner="unet/") == sorted(["model_index.json", "unet/config.json", *parts, "vocab.json"])
    cloned(tmp_path / "in")
    with pytest.raises(CheckpointError, match="out of the folder"):
        carried(inner="unet/")


def test_broken_links_are_left_out_whatever_is_asked(carried, tmp_path):
    carried("a.json", "vae/b.json")
    links = (
        "checkpoint-last",
        "optimizer.pt",
        "x.json",
        "vae/y.json",
        "model.bin",
        "style-00001-of-00002.safetensors",
    )
    for name in (*links, ".hidden"):
        (tmp_path / "in" / name).symlink_to("gone")
    (tmp_path / "in" / "style.safetensors.index.json").write_text("{}")
    for wanted in ((), ("all",)):
        assert carried(wanted=wanted) == ["a.json", "style.safetensors.index.json", "vae/b.json"]
        assert carried.left_out == {**dict.fromkeys(links, "a broken link"), ".hidden": "hidden"}
    with pytest.raises(UsageError, match="matches no file"):
        carried(wanted=("x.json",))


def test_links_that_lead_up_are_walked_once(carried, tmp_path):
    carried("a.json", "deep/b.json")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to(".")
    assert carried() == ["a.json", "deep/b.json"]


# -- the parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, []),
        ({"model_index": PIPELINE}, ["unet", "vae"]),
        ({"model_index": {"vae": ["a", "b"], "unet": ["a", "b"]}}, ["vae", "unet"]),
        ({"model_index": {"vae": "vae", "unet": {"a": 1}, "file.txt": ["a", "b"]}}, []),
        ({"model_index": {"../in": ["a"], "..": ["a"], ".": ["a"], "vae/..": ["a"], "/": ["a"]}}, []),
        ({"model_index": {"unet/deep": ["a"], "absent": ["a"], "a\0b": ["a"]}}, []),
        ({"model_index": ["unet"]}, []),
        ({"model_index": 3, "modules": [{"path": "vae"}]}, []),
        ({"modules": [{"path": ""}, {"path": "vae"}]}, ["", "vae"]),
        ({"modules": [{"path": "vae"}, {"path": "unet"}]}, ["vae", "unet"]),
        ({"modules": [{"path": "../in"}, {"path": ".."}, {"path": 3}, {"path": None}, {}, "vae", None]}, []),
        ({"modules": [{"path": ["vae"]}, {"path": "file.txt"}, {"path": "unet/deep"}, {"path": "/"}]}, []),
        ({"modules": {"path": "vae"}}, []),
        ({"modules": None}, []),
    ],
)
def test_the_parts_of_a_pipeline_are_folders_in_it(tmp_path, contents, expected):
    for name in ("unet/deep", "vae", "other"):
        (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / "file.txt").touch()
    for name, content in contents.items():
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
    assert parts_of(LocalFolder(tmp_path / "in", "in")) == expected
