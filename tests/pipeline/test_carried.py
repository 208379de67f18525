"""What travels with the weights: what a loader reads, without state of training and other copies."""

import json
import os
import pickle
import re
import shlex
import shutil
import warnings
from pathlib import Path

import joblib
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from monosoup_cli.outputs import side_files as module
from monosoup_cli.outputs.open_files import as_time
from tests.hub import Hub
from tests.models import CAUSAL, build, sentence_model, step
from tests.schema import assert_valid

NEEDED = ["tokenizer.json", "chat_template.jinja", "modeling_x.py", "spk_dict.pt", "voices/a.npz", "vae.pt"]
LEFT = {
    "optimizer_0/": "state of training",
    "wandb/": "state of training",
    "latest": "state of training",
    "pytorch_model_fsdp_0/": "state of training",
    "__pycache__/": "caches",
    "pytorch_model.bin": "other copies of the weights",
    "openvino_model.xml": "other copies of the weights",
    "onnx/": "other copies of the weights",
    ".git": "hidden",
    "README.md": "old model card or report",
}
MADE = ["README.md", "config.json", "model.safetensors", "monosoup_report.json"]


@pytest.fixture
def folders(tmp_path, pair):
    """A base file, a fine-tuned folder with everything that lies about, and OUT."""
    folder = tmp_path / "finetuned"
    names = [*NEEDED, *(f"{name}x.distcp" if name.endswith("/") else name for name in LEFT)]
    names[names.index(".git")] = ".git/config"
    for name in [*names, "config.json"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    shutil.copy(pair.finetuned, folder / "model.safetensors")
    return pair.base, folder, tmp_path / "out"


def edit(run, folders, *options, command="edit"):
    base, finetuned, out = folders
    result = run(command, base, finetuned, "-o", out, *options)
    assert result.code == 0, result.err
    return result


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def carried_in(out):
    return [name for name in files_in(out) if name not in {"monosoup_report.json", "README.md"}]


def test_a_run_carries_what_a_loader_reads_and_says_what_it_leaves_out(run, folders):
    result = edit(run, folders)
    assert files_in(folders[2]) == sorted([*MADE, *NEEDED])
    report = json.loads((folders[2] / "monosoup_report.json").read_text())
    assert report["output"]["side_files"] == sorted([*NEEDED, "config.json"])
    assert {one["name"]: one["why"] for one in report["output"]["left_out"]} == LEFT
    assert_valid(report)
    said = " ".join(result.err.split())
    assert "left out latest, optimizer_0/, pytorch_model_fsdp_0/, wandb/ (state of training)" in said
    assert "carried chat_template.jinja, config.json, modeling_x.py" in said
    assert "tokenizer.json, vae.pt, voices/a.npz" in said
    assert not [why for why in ("(hidden)", "(old model card or report)") if why in said]  # as always
    assert "not edited, and copied as fine-tuned: spk_dict.pt, vae.pt" in result.err


def test_the_times_in_the_report_are_those_of_the_beginning(run, folders, monkeypatch):
    files = [path for folder in folders[:2] for path in folder.glob("tokenizer.json")]

    def score(ready, *_):
        for path in files:
            os.utime(path)
        return [{} for _ in ready.variants]

    before = {as_time(path.stat().st_mtime_ns) for path in files}
    monkeypatch.setattr("monosoup_cli.pipeline.execute.score_variants", score)
    edit(run, folders)
    report = json.loads((folders[2] / "monosoup_report.json").read_text())
    others = [file for one in report["inputs"] for file in one.get("other_files", ())]
    assert {file["modified"] for file in others if file["name"] == "tokenizer.json"} <= before
    assert "tokenizer.json" in {file["name"] for file in others}


def test_a_dry_run_says_the_same(run, folders):
    planned = json.loads(edit(run, folders, "--dry-run", "--format", "json").out)
    plan = planned["output"]
    shown = edit(run, folders, "--dry-run").out
    edit(run, folders)
    report = json.loads((folders[2] / "monosoup_report.json").read_text())
    output = report["output"]
    assert planned["notes"] == report["notes"]
    assert "not edited, and copied as fine-tuned: spk_dict.pt, vae.pt" in planned["notes"]
    assert {name: plan[name] for name in ("side_files", "left_out")} == {
        name: output[name] for name in ("side_files", "left_out")
    }
    shown = " ".join(shown.split())
    assert "left out latest, optimizer_0/, pytorch_model_fsdp_0/, wandb/ (state of training)" in shown
    assert "carried chat_template.jinja, config.json, modeling_x.py" in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["none"], []),
        (["none", "*.json"], ["config.json", "tokenizer.json"]),
        (["wandb"], [*NEEDED, "config.json", "wandb/x.distcp"]),
        (["wandb/", "latest"], [*NEEDED, "config.json", "wandb/x.distcp", "latest"]),
        (["*.xml"], [*NEEDED, "config.json", "openvino_model.xml"]),
        (
            ["all"],
            [
                *(*NEEDED, "config.json", "latest", "openvino_model.xml", "pytorch_model.bin"),
                *(f"{name}x.distcp" for name in LEFT if name.endswith("/")),
            ],
        ),
    ],
)
def test_the_user_decides_otherwise(run, folders, options, expected):
    edit(run, folders, *(word for one in options for word in ("--side-files", one)))
    assert carried_in(folders[2]) == sorted([*expected, "model.safetensors"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["voices.npz"], "--side-files 'voices.npz' matches no file that can be carried"),
        ([".git"], "--side-files '.git' matches no file that can be carried"),
        (["all", "none"], "--side-files is all or none, not both"),
    ],
)
def test_what_cannot_be_carried_is_refused(run, folders, options, words):
    base, finetuned, out = folders
    options = [word for one in options for word in ("--side-files", one)]
    result = run("edit", base, finetuned, "-o", out, *options)
    assert (result.code, out.exists()) == (2, False)
    assert words in result.err


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    "example", re.findall(r"-o out (--side-files .*)", (DOCS / "storage.md").read_text(encoding="utf-8"))
)
def test_the_examples_work_in_a_folder_as_a_trainer_leaves_it(run, pair, tmp_path, example):
    folder = tmp_path / "finetuned"
    (folder / "checkpoint-5").mkdir(parents=True)
    shutil.copy(pair.finetuned, folder / "model.safetensors")
    for name in ("config.json", "training_args.bin", "checkpoint-5/config.json", "checkpoint-5/optimizer.pt"):
        (folder / name).write_text("{}")
    edit(run, (pair.base, folder, tmp_path / "out"), *shlex.split(example))
    asked = {"config.json"} if "none" in example else {"config.json", "training_args.bin"}
    assert {*carried_in(tmp_path / "out")} == {*asked, "model.safetensors"}


@pytest.mark.parametrize("pattern", ["a.npz", "voices", "voices/*.npz"])
def test_the_hint_on_patterns_works(run, folders, pattern):
    edit(run, folders, "--side-files", "none", "--side-files", pattern)
    assert carried_in(folders[2]) == ["model.safetensors", "voices/a.npz"]


def test_a_single_file_has_no_side_files(run, folders):
    base, finetuned, out = folders
    result = run("edit", base, finetuned, "-o", out.with_suffix(".safetensors"), "--side-files", "all")
    assert result.code == 2
    assert "--side-files needs a folder as output" in result.err


def test_what_is_too_large_is_named_and_the_hint_carries_it(run, folders, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDE_FILE_BYTES", 100)
    name = "voices [large].npz"
    (folders[1] / name).write_bytes(bytes(101))
    (folders[1] / "spk_dict.pt").write_bytes(bytes(101))
    result = edit(run, folders)
    assert "spk_dict.pt" in carried_in(folders[2])
    assert name not in carried_in(folders[2])
    hint = "--side-files 'voices [[]large].npz'"
    assert f"note: {name} is over 256 MiB and left out; {hint} carries it" in result.err
    edit(run, folders, "--overwrite", "--side-files", "voices [[]large].npz")
    assert name in carried_in(folders[2])


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_copied_and_never_opened(run, folders):
    content = pickle.dumps(Bomb())
    for name in ("model_head.pkl", "spk_dict.pt", "vae.ckpt"):
        (folders[1] / name).write_bytes(content)
    edit(run, folders)
    for name in ("model_head.pkl", "spk_dict.pt", "vae.ckpt"):
        assert (folders[2] / name).read_bytes() == content


def test_a_copy_under_another_name_is_known_by_its_tensors(run, folders):
    """Half of the names or more; a file with others is another model, whatever its name."""
    _, finetuned, out = folders
    tensors = load_file(finetuned / "model.safetensors")
    save_file(tensors, finetuned / "fp16_copy.safetensors")
    (finetuned / "best").mkdir()
    save_file(tensors, finetuned / "best" / "model-00001-of-00001.safetensors")
    (finetuned / "best" / "model.safetensors.index.json").write_text("{}")
    (finetuned / "vocoder").mkdir()
    for name in ("vocoder/model.safetensors", "mimi.safetensors"):
        save_file({"up.weight": torch.ones(3)}, finetuned / name)
    edit(run, folders)
    found = [name for name in carried_in(out) if ".safetensors" in name]
    assert found == ["mimi.safetensors", "model.safetensors", "vocoder/model.safetensors"]


def test_a_sentence_model_with_a_head_of_setfit(run, tmp_path):
    """SetFit reads the sentence model and model_head.pkl, which it writes with joblib."""
    model = sentence_model(tmp_path / "parts")
    model.save(str(tmp_path / "base"))
    step(model).save(str(tmp_path / "finetuned"))
    head = LogisticRegression().fit([[0.0] * 16, [1.0] * 16], ["no", "yes"])
    joblib.dump(head, tmp_path / "finetuned" / "model_head.pkl")
    (tmp_path / "finetuned" / "config_setfit.json").write_text('{"labels": ["no", "yes"]}')
    out = tmp_path / "out"
    edit(run, (tmp_path / "base", tmp_path / "finetuned", out))
    embedding = SentenceTransformer(str(out), device="cpu").encode(["a b"])
    assert joblib.load(out / "model_head.pkl").predict(embedding) in (["no"], ["yes"])
    assert (out / "config_setfit.json").is_file()


# -- adapters --------------------------------------------------------------------------------------


WORDS = ["<unk>", "<s>", "</s>", "a", "b"]


def save_tokenizer(folder, template, *added):
    tokenizer = transformers.LlamaTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture
def adapted(tmp_path):
    """A base and an adapter, each with a tokenizer; beside the adapter lies what trainers leave there."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build("LlamaForCausalLM", CAUSAL)
    model.save_pretrained(base)
    save_tokenizer(base, "of the base")
    (base / "added_tokens.json").write_text('{"<old>": 4}')
    (base / "generation_config.json").write_text('{"top_k": 1}')
    (base / "modeling_x.py").write_text("# of the base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        trained.save_pretrained(adapter)
    save_tokenizer(adapter, "of the adapter", "<tool>")
    for name in ("config.json", "modeling_x.py", "preprocessor_config.json", "trainer_state.json"):
        (adapter / name).write_text('{"of": "the adapter"}')
    torch.save({"mm_projector.weight": torch.ones(2)}, adapter / "non_lora_trainables.bin")
    save_file({"model.norm.weight": torch.ones(32)}, adapter / "model.safetensors")
    (adapter / "model.safetensors.index.json").write_text("{}")
    return base, adapter, tmp_path / "out"


def test_a_merged_model_has_the_adapters_tokenizer_and_the_bases_configuration(run, adapted):
    base, adapter, out = adapted
    result = edit(run, adapted)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "of the adapter"
    assert len(tokenizer("<tool>", add_special_tokens=False).input_ids) == 1
    for name in ("config.json", "modeling_x.py", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    for name in ("preprocessor_config.json", "non_lora_trainables.bin", "chat_template.jinja"):
        assert (out / name).read_bytes() == (adapter / name).read_bytes()
    assert not (out / "added_tokens.json").exists()  # of the other tokenizer
    assert not (out / "adapter_config.json").exists()
    left_out = json.loads((out / "monosoup_report.json").read_text())["output"]["left_out"]
    assert {(one["name"], one["why"]) for one in left_out} >= {
        ("added_tokens.json", "of the base; the adapter has its own"),
        ("config.json", "of the adapter; the base has its own"),
        ("modeling_x.py", "of the adapter; the base has its own"),
        ("adapter_config.json", "merged into the base"),
        ("model.safetensors", "a whole model beside the adapter"),
        ("model.safetensors.index.json", "a whole model beside the adapter"),
        ("trainer_state.json", "state of training"),
    }
    assert re.search(
        r"^left out +the base's added_tokens\.json.* \(the adapter has its own\)$", result.err, re.M
    )
    note = "note: trained beside the adapter, and carried but not merged: non_lora_trainables.bin"
    assert note in result.err
    assert "copied as fine-tuned" not in result.err
    _, info = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("of", ["base", "adapter"])
def test_an_adapter_in_a_folder_of_its_own_stays_whole(run, adapted, of):
    """verl writes one beside the model, and peft a reference beside the first."""
    base, adapter, out = adapted
    place = {"base": base, "adapter": adapter}[of] / "reference"
    place.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, place / name)
    result = edit(run, adapted)
    assert "note: reference/adapter_model.safetensors is an adapter, and carried but not merged" in result.err
    assert "copied as fine-tuned" not in result.err
    assert not (out / "adapter_config.json").exists()
    model = transformers.LlamaForCausalLM.from_pretrained(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(model, out / "reference")


def test_an_adapter_without_a_vocabulary_leaves_the_tokenizer_to_the_base(run, adapted):
    """Its chat template is its own all the same."""
    base, adapter, out = adapted
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    edit(run, adapted)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (out / "added_tokens.json").is_file()
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == "of the adapter"


def test_an_edited_adapter_keeps_what_lies_beside_it(run, adapted):
    base, _, out = adapted
    result = edit(run, adapted, "--as-adapter")
    assert carried_in(out) == [
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.json"),
        *("modeling_x.py", "non_lora_trainables.bin", "preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert "model.safetensors, model.safetensors.index.json (a whole model beside the adapter)" in " ".join(
        result.err.split()
    )
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(model, out)


def test_of_the_hub_only_what_is_carried_is_downloaded_and_pushed(adapted, tmp_path):
    base, adapter, _ = adapted
    for folder in (base, adapter):
        for name in ("optimizer.pt", "pytorch_model_fsdp_0/x.distcp", "onnx/model.onnx", "notes.txt"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x" * 100)
    with Hub(tmp_path / "hub") as hub:
        hub.add("org/base", base)
        hub.add("org/adapter", adapter)
        options = ("-o", tmp_path / "out", "--push", "owner/merged")
        result = hub.monosoup(
            "edit", "org/base", "org/adapter", *options, home=tmp_path / "home", HF_TOKEN=hub.token
        )
        assert result.returncode == 0, result.stderr
        pushed = {name: path.read_bytes() for name, path in hub.files("owner/merged").items()}
        asked = [request.path for request in hub.requests]
    pushed.pop(".gitattributes", None)
    assert sorted(pushed) == [
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("modeling_x.py", "monosoup_report.json", "non_lora_trainables.bin", "notes.txt"),
        *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert pushed["tokenizer_config.json"] == (adapter / "tokenizer_config.json").read_bytes()
    assert not [path for path in asked if "optimizer" in path or "fsdp" in path or "onnx" in path]


def test_an_extracted_adapter_carries_what_is_asked_for(run, tmp_path):
    model = build("LlamaForCausalLM", CAUSAL)
    model.save_pretrained(tmp_path / "base")
    step(model).save_pretrained(tmp_path / "finetuned")
    save_tokenizer(tmp_path / "finetuned", "x")
    folders = (tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    options = ("--as-adapter", "--adapter-rank", "2")
    edit(run, folders, *options)
    assert carried_in(folders[2]) == ["adapter_config.json", "adapter_model.safetensors"]
    edit(run, folders, *options, "--overwrite", "--side-files", "tokenizer*")
    assert carried_in(folders[2])[2:] == ["tokenizer.json", "tokenizer_config.json"]
