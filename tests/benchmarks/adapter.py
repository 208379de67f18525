"""An adapter of rank 16 over layers of 4096 × 4096, written to a folder, with `base` also its base; or the
wall time of editing one of its updates in its core, against torch's decomposition of the same update: JSON on
stdout."""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from monosoup_cli.methods.monosoup import MonoSoup, edit_product

SIDE, RANK, MODULES = 4096, 16, 64


def factors(generator):
    return torch.randn(SIDE, RANK, generator=generator), torch.randn(RANK, SIDE, generator=generator)


def write_base(file):
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"model.layers.{number}.self_attn.q_proj.weight": torch.empty(
            SIDE, SIDE, dtype=torch.bfloat16
        ).normal_(0.0, 0.02, generator=generator)
        for number in range(MODULES)
    }
    save_file(weights, file, {"format": "pt"})


def write(folder, modules=MODULES):
    generator, tensors = torch.Generator().manual_seed(0), {}
    for number in range(modules):
        module = f"base_model.model.model.layers.{number}.self_attn.q_proj"
        b, a = factors(generator)
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def timed(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main():
    b, a = (factor.double() for factor in factors(torch.Generator().manual_seed(0)))
    edit_product(b, a, [MonoSoup()])
    core = statistics.median(timed(edit_product, b, a, [MonoSoup()]) for _ in range(9))
    whole = timed(torch.linalg.svd, (b @ a).float())  # in float32, half of what float64 takes
    print(json.dumps({"core": core, "whole": whole}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
        if sys.argv[2:] == ["base"]:
            write(Path(sys.argv[1]) / "one", 1)
            write_base(Path(sys.argv[1]) / "base.safetensors")
    else:
        main()
