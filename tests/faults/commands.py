"""The command lines that faults meet, over tiny inputs, and how these inputs are made."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

SCORER = """
import glob, os, sys, zlib
path = sys.argv[1]
files = sorted(glob.glob(path + "/*.safetensors")) if os.path.isdir(path) else [path]
print(sum(zlib.crc32(open(file, "rb").read()[-200:]) for file in files))
"""

SCORE = f"{sys.executable} -I -S in/scorer.py {{}}"

TABLE = """
edit                edit in/base in/ft1 -o out
edit to a file      edit in/base.safetensors in/ft1.safetensors -o out.safetensors
edit several        edit in/base.safetensors in/ft1.safetensors in/ft2.safetensors in/ft3.safetensors -o out
edit again          edit in/base.safetensors in/ft1.safetensors -o out --overwrite
edit a file again   edit in/base.safetensors in/ft1.safetensors -o out.safetensors --overwrite
edit, report        edit in/base in/ft1 -o out --report elsewhere/report.json
edit, report again  edit in/base in/ft1 -o out --report elsewhere/report.json --overwrite
edit, stdout        edit in/base.safetensors in/ft1.safetensors -o out --report -
edit sweep          edit in/base.safetensors in/ft1.safetensors -o out --energy 0.5,0.8
edit sweep again    edit in/base in/ft1 -o out --wise 0.3,0.5 --overwrite
edit hashes         edit in/base.safetensors in/hashed.safetensors -o out.safetensors
edit states         edit in/base.pt in/ft1.pt -o out
edit in shards      edit in/base.safetensors in/ft1.safetensors -o out --max-shard-size 1KB
stock               stock in/base in/ft1 in/ft2 -o out
soup                soup in/ft1.safetensors in/ft2.safetensors -o out --dtype bfloat16
soup, greedy        soup in/ft1 in/ft2 -o out $GREEDY
soup, greedy, file  soup in/ft1.safetensors in/ft2.safetensors -o out.safetensors $GREEDY
sfgs                sfgs in/base in/ft1 in/ft2 -o out --threshold -1
wise                wise in/base.safetensors in/ft1.safetensors -o out --alpha 0.3 --dtype float16
wise sweep          wise in/base in/ft1 -o out --alpha 0:1:0.5
wise, scored        wise in/base in/ft1 -o out --alpha 0.3,0.5 $SCORE
search              search in/base in/ft1 -o out --budget 2 $SCORE
lines               lines in/base.safetensors in/ft1.safetensors -o out --alpha 0.3 --beta 0.7
merge               edit in/base in/adapter -o out
edit an adapter     edit - in/adapter -o out --as-adapter
extract             edit in/base.safetensors in/ft1.safetensors -o out --as-adapter --adapter-rank 2
extract by energy   edit in/base.safetensors in/ft1.safetensors -o out --as-adapter --adapter-energy 0.5
"""


@dataclass(frozen=True)
class Command:
    """A command line that writes an output.

    Attributes:
        name: What it is called here.
        words: Its arguments; paths are inside the folder in which it runs.
    """

    name: str
    words: tuple[str, ...]

    @property
    def out(self) -> str:
        return self.words[self.words.index("-o") + 1]

    @property
    def replaces(self) -> bool:
        """Whether an older output is there before."""
        return "--overwrite" in self.words

    @property
    def report(self) -> str | None:
        """The report, where it is outside of the output."""
        if "--report" in self.words:
            path = self.words[self.words.index("--report") + 1]
            return None if path == "-" else path
        return self.out.replace(".safetensors", ".report.json") if "." in self.out else None


def read_commands() -> dict[str, Command]:
    commands = {}
    for line in TABLE.strip().splitlines():
        name, words = line[:20].strip(), line[20:].split()
        if words[-1] == "$GREEDY":
            words[-1:] = ["--greedy", "--score-command", SCORE]
        elif words[-1] == "$SCORE":
            words[-1:] = ["--score", SCORE]
        commands[name] = Command(name, (*words, "--device", "cpu", "--workers", "2"))
    return commands


COMMANDS = read_commands()


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """A base (seed 0) or a fine-tune of it."""
    made = {}
    for noise, scale in [(0, 1.0)] + ([(10, 0.1), (seed, 0.05)] if seed else []):
        generator = torch.Generator().manual_seed(noise)
        shapes = {"embed.weight": (12, 8), "blocks.0.bias": (10,)}
        shapes |= {f"blocks.{n}.proj.weight": (10, 8) for n in range(3)} | {"head.weight": (6, 8)}
        for name, shape in shapes.items():
            made[name] = made.get(name, 0) + scale * torch.randn(shape, generator=generator)
    made = {name: each.bfloat16() if "embed" in name else each for name, each in made.items()}
    return made | {"position_ids": torch.arange(5)}


def make_inputs(folder: Path) -> None:
    """Make the inputs of all commands: files, folders in shards, state dicts and an adapter."""
    folder.mkdir()
    (folder / "scorer.py").write_text(SCORER)
    for number in range(4):
        name, values = f"ft{number}" if number else "base", tensors(number)
        save_file(values, folder / f"{name}.safetensors", {"format": "pt"})
        if number < 2:
            torch.save(values, folder / f"{name}.pt")
        if number < 3:
            _in_shards(values, folder / name)
    save_file(tensors(1), folder / "hashed.safetensors", {"sshs_model_hash": "0" * 64})
    _adapter(folder / "adapter")


def _in_shards(values: dict[str, torch.Tensor], folder: Path) -> None:
    (folder / "extra").mkdir(parents=True)
    weight_map = {}
    for shard in range(2):
        name = f"model-{shard + 1:05}-of-00002.safetensors"
        part = list(values)[shard::2]
        save_file({each: values[each] for each in part}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "mine", "torch_dtype": "float32"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra" / "words.txt").write_text("a\n")


def _adapter(folder: Path) -> None:
    folder.mkdir()
    generator, factors = torch.Generator().manual_seed(20), {}
    for n in range(3):
        prefix = f"base_model.model.blocks.{n}.proj"
        factors[f"{prefix}.lora_A.weight"] = torch.randn(4, 8, generator=generator)
        factors[f"{prefix}.lora_B.weight"] = torch.randn(10, 4, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
