"""The inputs of the cases: small checkpoints and adapters, made from fixed seeds when a case asks for them.

A maker is a function that fills a folder; its name is the folder's, and the first part of a word
such as `mixed/base.safetensors` in a command line.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MAKERS: dict[str, Callable[[Path], None]] = {}


def maker(function):
    MAKERS[function.__name__] = function
    return function


class Inputs:
    """A folder in which inputs appear, one folder a maker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def make(self, case) -> None:
        """Make what the case needs and is not there yet."""
        for name in case.inputs:
            folder = self.folder / name
            if not folder.exists():
                folder.mkdir()
                os.environ["TRANSFORMERS_VERBOSITY"] = "error"
                os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    MAKERS.get(name, adapter_of)(folder)


def noise_of(seed):
    return torch.Generator().manual_seed(seed)


def step(base, seed, size=0.05, dtype=None):
    """A fine-tune of `base`: noise in every floating tensor, of falling size along the rows.

    A part of the noise is the same in all fine-tunes, so that their updates have something in common.
    """
    noise, shared, tuned = noise_of(seed), noise_of(1000), {}
    for name, weights in base.items():
        tuned[name] = weights.clone()
        if weights.is_floating_point() and weights.numel():
            change = torch.randn(weights.shape, generator=noise)
            change += 0.5 * torch.randn(weights.shape, generator=shared)
            if weights.ndim > 1:
                change *= 0.97 ** torch.arange(len(weights)).view(-1, *[1] * (weights.ndim - 1))
            tuned[name] = (weights.double() + size * change).to(dtype or weights.dtype)
    return tuned


def save(tensors, path, metadata=None):
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata or {"format": "pt"})


def blocks(seed, dtypes=(torch.float32,), count=3):
    """A model with a tensor of every kind, its floating tensors in the dtypes, one after the other."""
    noise = noise_of(seed)
    shapes = {
        "embed.weight": (60, 24),
        "conv.weight": (12, 5, 3, 3),
        "conv1d.weight": (12, 6, 5),
        "row": (1, 70),
        "column": (70, 1),
        "scalar": (1, 1),
        "zero": (0, 8),
        "temperature": (),
    }
    for number in range(count):
        shapes |= {
            f"blocks.{number}.attn.weight": (24, 24),
            f"blocks.{number}.attn.bias": (24,),
            f"blocks.{number}.up.weight": (72, 24),
            f"blocks.{number}.down.weight": (24, 72),
            f"blocks.{number}.experts.gate_up_proj": (3, 24, 16),
        }
    shapes |= {"head.weight": (10, 24), "head.bias": (10,)}
    tensors = {
        name: torch.randn(shape, generator=noise).to(dtypes[number % len(dtypes)])
        for number, (name, shape) in enumerate(shapes.items())
    }
    tensors["position_ids"] = torch.arange(17)
    tensors["mask"] = torch.tensor([True, False, True])
    tensors["codes"] = torch.arange(24, dtype=torch.uint8).view(4, 6)
    return tensors


@maker
def plain(folder):
    """Float32: a base and four fine-tunes, one tensor of which did not move."""
    base = blocks(0)
    save(base, folder / "base.safetensors", {"format": "pt", "made": "by nobody"})
    for number in range(1, 5):
        tuned = step(base, number, size=0.03 + 0.01 * number)
        tuned["blocks.1.up.weight"] = base["blocks.1.up.weight"]
        save(tuned, folder / f"ft{number}.safetensors")
    scores = {
        f"../../in/plain/ft{number}.safetensors": [0, 0.5, 0.9, 0.7, 0.8][number] for number in range(1, 5)
    }
    (folder / "scores.json").write_text(json.dumps(scores))


@maker
def mixed(folder):
    """All floating dtypes in one file, and fine-tunes in one dtype, another than the base's."""
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.float16]
    base = blocks(10, dtypes)
    save(base, folder / "base.safetensors")
    for number in range(1, 4):
        save(step(base, 10 + number), folder / f"ft{number}.safetensors")
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f64", torch.float64)):
        save(step(base, 14, dtype=dtype), folder / f"{name}.safetensors")


@maker
def sharded(folder):
    """Folders in shards with an index, a configuration, a model card and other small files."""
    base = blocks(20, [torch.bfloat16])
    for number, tensors in enumerate([base, step(base, 21), step(base, 22)]):
        place = folder / (f"ft{number}" if number else "base")
        place.mkdir()
        names = list(tensors)
        weight_map = {}
        for shard in range(3):
            file = f"model-{shard + 1:05}-of-00003.safetensors"
            part = names[shard::3]
            save({name: tensors[name] for name in part}, place / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 1, "note": "ü"}, "weight_map": weight_map}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
        (place / "config.json").write_text(json.dumps(config))
        (place / "tokenizer.json").write_text('{"version": "1.0"}')
        (place / "processing").mkdir()
        (place / "processing" / "words.txt").write_text("a\nb\n")
        (place / "optimizer.pt").write_bytes(b"not copied")
        (place / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\ntags:\n- mine\n---\n\n# Ours\n")


@maker
def large(folder):
    """Matrices that are read by blocks: wide and tall, of more than 32 MB, and in bfloat16."""
    noise = noise_of(30)
    base = {
        "wide.weight": torch.randn(192, 60_000, generator=noise),
        "tall.weight": torch.randn(60_000, 160, generator=noise),
        "half.weight": torch.randn(80_000, 256, generator=noise).bfloat16(),
    }
    save(base, folder / "base.safetensors")
    for number in (1, 2):
        tuned = {}
        for name, weights in base.items():
            rows, columns = weights.shape
            change = 0.02 * torch.randn(weights.shape, generator=noise)
            change += (
                torch.outer(torch.randn(rows, generator=noise), torch.randn(columns, generator=noise)) * 0.01
            )
            tuned[name] = (weights.float() + change).to(weights.dtype)
        save(tuned, folder / f"ft{number}.safetensors")


@maker
def mismatch(folder):
    """Vocabularies of different sizes; a tensor on one side only; another shape altogether."""
    base = blocks(40)
    base["only.base"] = torch.ones(3, 3)
    save(base, folder / "base.safetensors")
    for number, rows in ((1, 66), (2, 63)):
        tuned = step(base, 40 + number)
        del tuned["only.base"]
        extra = torch.randn(rows - 60, 24, generator=noise_of(45 + number))
        tuned["embed.weight"] = torch.cat([tuned["embed.weight"], extra])
        tuned["head.bias"] = torch.cat([tuned["head.bias"], torch.ones(rows - 60)])
        if number == 1:
            tuned["only.tuned"] = torch.full((4, 4), 0.5)
        save(tuned, folder / f"ft{number}.safetensors")
    other = step(base, 43)
    other["head.weight"] = torch.randn(10, 32, generator=noise_of(44))
    save(other, folder / "other.safetensors")
    renamed = {name.replace("blocks.", "encoder.layer."): each for name, each in step(base, 46).items()}
    save(renamed, folder / "renamed.safetensors")


@maker
def nonfinite(folder):
    base = blocks(50)
    save(base, folder / "base.safetensors")
    for number in (1, 2):
        tuned = step(base, 50 + number)
        tuned["blocks.0.up.weight"][3, 4] = math.nan
        tuned["blocks.1.attn.bias"][2] = math.inf
        if number == 2:
            tuned["blocks.2.experts.gate_up_proj"][1, 0, 0] = math.inf
        save(tuned, folder / f"ft{number}.safetensors")


@maker
def states(folder):
    """State dicts: files with tensors in every order of memory, and a folder in shards."""
    base = {name: each for name, each in blocks(60).items() if name not in ("zero", "codes")}
    for number, tensors in enumerate([base, step(base, 61), step(base, 62)]):
        tensors = dict(tensors)
        tensors["blocks.0.up.weight"] = tensors["blocks.0.up.weight"].t().contiguous().t()
        tensors["conv.weight"] = tensors["conv.weight"].contiguous(memory_format=torch.channels_last)
        tensors["blocks.1.attn.weight"] = torch.cat([tensors["blocks.1.attn.weight"]] * 2)[:24]
        name = f"ft{number}" if number else "base"
        torch.save({"state_dict": tensors, "epoch": 3} if number == 2 else tensors, folder / f"{name}.pt")
        place = folder / name
        place.mkdir()
        names, weight_map = list(tensors), {}
        for shard in range(2):
            file = f"pytorch_model-{shard + 1:05}-of-00002.bin"
            torch.save({key: tensors[key] for key in names[shard::2]}, place / file)
            weight_map |= dict.fromkeys(names[shard::2], file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (place / "config.json").write_text('{"model_type": "bert"}')


@maker
def many(folder):
    """Four hundred layers, so that there is time to be killed in; and an adapter of them."""
    noise = noise_of(70)
    names = [f"layers.{number}.proj" for number in range(400)]
    base = {f"{name}.weight": torch.randn(32, 24, generator=noise) for name in names}
    save(base, folder / "base.safetensors")
    for number in (1, 2):
        save(step(base, 70 + number), folder / f"ft{number}.safetensors")
    factors = {}
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, 24, generator=noise)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(32, 4, generator=noise)
    (folder / "adapter").mkdir()
    save(factors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


@maker
def kohya(folder):
    """A LoRA in one file in kohya's form, one that diffusers wrote, and the folder of their UNet."""
    from diffusers.utils import convert_state_dict_to_kohya
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from tests.models import unet_pipeline

    pipeline = unet_pipeline()
    pipeline.unet.save_pretrained(folder / "unet")
    torch.manual_seed(1)
    targets = ["to_q", "conv1", "proj_in"]
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=targets))
    layers = get_peft_model_state_dict(pipeline.unet)
    for name, factor in layers.items():
        if "lora_A" in name:  # a spectrum that is split within the rank
            factor *= 0.4 ** torch.arange(4).view(-1, *[1] * (factor.ndim - 1))
    pipeline.save_lora_weights(folder / "diffusers", unet_lora_layers=layers)
    named = convert_state_dict_to_kohya({f"unet.{name}": each for name, each in layers.items()})
    for name in named:
        if name.endswith(".alpha"):
            named[name] = torch.tensor(6.0)
    save(named, folder / "kohya.safetensors")


@maker
def whole(folder):
    """A tiny Llama and two whole fine-tunes, for extraction."""
    from tests.models import MODELS, build

    for kind in ("llama", "gpt2", "qwen3-moe"):
        model = build(*MODELS[kind])
        (folder / kind).mkdir()
        model.save_pretrained(folder / kind / "base", save_original_format=False)
        for number in (1, 2):
            noise = noise_of(80 + number)
            with torch.no_grad():
                for weights in model.parameters():
                    weights += 0.05 * torch.randn(weights.shape, generator=noise)
            model.save_pretrained(folder / kind / f"ft{number}", save_original_format=False)


ADAPTERS = {
    "linear": "linear",
    "rslora": "rslora",
    "patterns": "patterns",
    "bf16_adapter": "bfloat16",
    "embedding": "embedding",
    "tied_embedding": "embedding, tied",
    "conv1d_gpt2": "conv1d of gpt2",
    "convolution_1d": "convolution, 1-d",
    "convolution_2d": "convolution, 2-d",
    "dora": "dora",
    "dora_gpt2": "dora of gpt2",
    "dora_embedding": "dora of an embedding",
    "dora_convolution": "dora of a convolution, 2-d",
    "lora_bias": "lora_bias",
    "bias_all": "bias, all",
    "modules_to_save": "modules_to_save",
    "tokens": "tokens, named",
    "tokens_tied": "tokens, tied",
    "parameters": "parameters",
    "experts": "experts and linear",
    "experts_patterns": "experts, patterns",
    "experts_transposed": "experts, transposed",
}
"""The name of an input → its case in tests/adapters.py."""

SEVERAL = ("linear", "experts", "modules_to_save")
"""Of which there are two adapters."""


def adapter_of(folder):
    """A base and an adapter (or two) that peft wrote, in `base`, `adapter-1` and `adapter-2`."""
    from tests.peft_adapters import make

    for seed in (1, 2) if folder.name in SEVERAL else (1,):
        made = make(ADAPTERS[folder.name], folder, seed)
    if folder.name == "linear":  # one in which NaN is met, and one of a folder without configuration
        broken = folder / "broken"
        shutil.copytree(made.adapter, broken)
        factors = load_file(broken / "adapter_model.safetensors")
        first = min(name for name in factors if "lora_B" in name)
        factors[first][0, 0] = math.nan
        save(factors, broken / "adapter_model.safetensors")
