"""The folder in which the examples of README.md and docs/ are run: what their names stand for.

A name means the same on every page. `base`, `base-model` (in shards) and `base.safetensors` are one small
Llama; `ft…`, `run/checkpoint-…` and `instruct` were made of it; `demo/` is what docs/demo.py leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint

from tests import warm
from tests.encodings.quantisers import mlx
from tests.lm_eval_files import of_lm_eval
from tests.models import MODELS, build, step

DOCS = Path(__file__).parents[1] / "docs"
LLAMA = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EVALUATION = """
import sys, zlib
from pathlib import Path

path = Path(sys.argv[1])
weights = path if path.is_file() else next(path.glob("*.safetensors"))
print(zlib.crc32(weights.read_bytes() + " ".join(sys.argv[2:]).encode()) % 1000 / 10)
"""
"""A score for every checkpoint and every data set."""
FEATURES = """
import sys
sys.path.insert(0, "docs")
import demo, numpy, pathlib, torch
from safetensors.torch import load_file

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
images = demo.split_digits()[2].images.repeat(demo.SHIFTED_COPIES, 1, 1, 1)
images, network = demo.shift(images), demo.make_network()
for name, file in (("base", "base"), ("finetuned", "finetuned"), ("edited", "edited/model")):
    network.load_state_dict(load_file(f"demo/{file}.safetensors"))
    folder, features = pathlib.Path("features", name), images
    folder.mkdir(parents=True)
    for number, layer in enumerate(network):
        features = layer(features)
        if hasattr(layer, "weight"):
            numpy.save(folder / f"linear-{number}.npy", features.detach().float().numpy())
"""
"""The features of the demo's networks on shifted digits."""
OUTCOMES = {
    "reviews": {"100": 88, "101": 16, "110": 19, "111": 926, "010": 53, "011": 295, "001": 1},
    "products": {"100": 142, "101": 142, "110": 18, "111": 784, "010": 108, "011": 95, "001": 4},
    "tweets": {"100": 144, "101": 153, "110": 16, "111": 797, "010": 90, "011": 99, "001": 2},
}
"""How many samples were right (1) or wrong (0) with the base, the fine-tuned and the edited model."""
MERGEKIT = """
merge_method: linear
models:
  - model: ft
    parameters:
      weight: 0.7
  - model: instruct
    parameters:
      weight: 0.3
"""

Weights = Mapping[str, torch.Tensor]


def make(place: Path, environment: dict[str, str]) -> None:
    """Put everything there. `monosoup` is on the PATH of the environment."""
    place.mkdir()
    (place / ".venv").symlink_to(sys.prefix)
    for name in ("demo.py", "features.py"):
        (place / "docs").mkdir(exist_ok=True)
        shutil.copy(DOCS / name, place / "docs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated, and of a base that is no repository
        _make_models(place)
        _make_odd_models(place)
    _make_scores(place)
    _run(["monosoup", "edit", "base-model", "ft-model", "-o", "edited-model"], place, environment)
    (place / "demo.log").write_text(_run([sys.executable, "docs/demo.py"], place, environment))
    features = warm.script(FEATURES, environment, place)
    assert features.returncode == 0, features.stderr


def _run(argv: list[str], place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _moved(base: Weights, seed: int, size: float = 0.1) -> dict[str, torch.Tensor]:
    """A fine-tune: an update of falling spectrum and noise in each projection."""
    chance = torch.Generator().manual_seed(seed)
    moved = dict(base)
    for name, weights in base.items():
        if "_proj" in name:
            left, right = (torch.randn(side, 16, generator=chance) for side in weights.shape)
            noise = 0.1 * torch.randn(weights.shape, generator=chance)
            update = (left * 0.8 ** torch.arange(16)) @ right.T + noise
            share = size * (0.5 + torch.rand((), generator=chance)) * weights.norm() / update.norm()
            moved[name] = weights + share * update
    return moved


def _model(folder: Path, weights: Weights, *, like: Path) -> None:
    """A folder as `like`, in one file with these weights."""
    folder.mkdir(parents=True)
    for file in like.glob("*.json"):
        if "index" not in file.name:
            shutil.copy(file, folder)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})


def _make_models(place: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    words = {f"word{number}": number for number in range(LLAMA["vocab_size"])}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "word0"}}
    base_model, base = place / "base-model", place / "base"
    model.save_pretrained(base_model, max_shard_size="2MB")
    (base_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    _model(base, weights, like=base_model)
    finetuned = _moved(weights, 1)
    _model(place / "ft", finetuned, like=base_model)
    _model(place / "instruct", _moved(weights, 2), like=base_model)
    model.load_state_dict(finetuned)
    shutil.copytree(base_model, place / "ft-model")
    model.save_pretrained(place / "ft-model", max_shard_size="2MB")
    for name, one in {"base": weights, "ft": finetuned}.items():
        save_file(dict(one), place / f"{name}.safetensors", metadata={"format": "pt"})
        for prefix in ("", "clip-"):
            torch.save(dict(one), place / f"{prefix}{name}.pt")
    for number in (1, 2, 3):
        save_file(_moved(weights, 1 + number), place / f"ft{number}.safetensors", metadata={"format": "pt"})
    for number in range(1, 9):
        saved = place / f"run/checkpoint-{500 * number}"
        _model(saved, _moved(weights, 1, number / 80), like=base_model)
        (saved / "training_args.bin").write_bytes(b"")
    fsdp = place / "run/checkpoint-500/pytorch_model_fsdp_0"
    checkpoint.save({"model": finetuned}, checkpoint_id=fsdp, no_dist=True)
    model.load_state_dict(weights)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    step(adapted)
    adapted.save_pretrained(place / "adapter")
    _change_config(place / "adapter" / "adapter_config.json", base_model_name_or_path="base")


def _make_odd_models(place: Path) -> None:
    """What the pages show messages of."""
    like, rows = place / "base-model", LLAMA["vocab_size"]
    base, finetuned = (load_file(place / f"{one}.safetensors") for one in ("base", "ft"))
    heads = {"mtp.norm.weight": torch.ones(128), "mtp.proj.weight": torch.eye(128)}
    _model(place / "mtp-base", {**base, **heads}, like=like)
    _model(place / "old-model", _renamed(base, ("model.layers", "h")), like=like)
    names = (("model.layers", "transformer.h"), ("model.norm", "model.ln_f"))
    _model(place / "old-base", _renamed(base, *names), like=like)
    grown = {name: torch.cat([one, one[:3]]) if len(one) == rows else one for name, one in finetuned.items()}
    _model(place / "big-vocab", grown, like=like)
    _change_config(place / "big-vocab/config.json", vocab_size=rows + 3)
    broken = finetuned["model.layers.1.mlp.up_proj.weight"].clone()
    broken[0, 0] = torch.nan
    _model(place / "nan-model", {**finetuned, "model.layers.1.mlp.up_proj.weight": broken}, like=like)
    codes = {
        f"{name.removesuffix('weight')}{end}": part
        for name, one in finetuned.items()
        for end, part in (mlx(one, 4) if one.ndim == 2 else {"weight": one}).items()
    }
    _model(place / "ft-mlx-4bit", codes, like=like)
    quantised = {"group_size": 64, "bits": 4, "mode": "affine"}
    _change_config(place / "ft-mlx-4bit/config.json", quantization=quantised, quantization_config=quantised)
    bert = build("BertModel", MODELS["bert"][1])
    classifier = build("BertForSequenceClassification", MODELS["bert"][1])
    bert.save_pretrained(place / "bert-base")
    step(classifier.bert)
    classifier.save_pretrained(place / "bert-classifier")
    experts = build(*MODELS["mixtral"])
    experts.save_pretrained(place / "mixtral")
    step(experts).save_pretrained(place / "my-mixtral", save_original_format=False)
    (place / "mergekit.yml").write_text(MERGEKIT)


def _renamed(weights: Weights, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    result = dict(weights)
    for old, new in pairs:
        result = {name.replace(old, new): one for name, one in result.items()}
    return result


def _change_config(config: Path, **entries: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))


def _make_scores(place: Path) -> None:
    """Score files, and a program that scores."""
    for right, name in enumerate(("base", "ft", "edited")):
        answers = ("1" * (10 + right)).ljust(20, "0")
        of_lm_eval(place / "evals" / name, gsm8k=("acc", True, answers), mmlu=("acc", True, answers))
    for number, name in enumerate(("base", "ft", "edited")):
        (place / "shop" / name).mkdir(parents=True)
        for task, outcomes in OUTCOMES.items():
            counts = {**outcomes, "000": 1500 - sum(outcomes.values())}
            answers = "".join(outcome[number] * count for outcome, count in counts.items())
            lines = [json.dumps({"id": at, "correct": int(answer)}) for at, answer in enumerate(answers)]
            (place / "shop" / name / f"{task}.jsonl").write_text("\n".join(lines))
    scores = {"ft": 0.8, "ft1": 0.81, "ft2": 0.82, "ft3": 0.79}
    files = {f"{name}.safetensors": score for name, score in scores.items()}
    (place / "scores.json").write_text(json.dumps(files))
    (place / "eval.py").write_text(EVALUATION)


def copy(place: Path, other: Path) -> None:
    """The same place again, in which small files may be changed; large ones are the same files."""
    shutil.copytree(place, other, copy_function=_link_or_copy, symlinks=True)


def _link_or_copy(source: str, target: str) -> None:
    if os.path.getsize(source) > 100_000:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
