"""How evenly the work on a model of 671B parameters divides, and where more machines stop paying.

The headers are those of DeepSeek-V3's public shapes in bf16. Behind them are holes: the files take no space.
Nothing is computed: shares and their cost come from the plan, as in a run.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path

import monosoup_cli
from monosoup_cli.formats.header import build_header
from monosoup_cli.pipeline.ready import Ready, lay_out
from monosoup_cli.pipeline.shares import shares_of

LAYERS, DENSE, EXPERTS, HIDDEN, HEADS = 61, 3, 256, 7168, 128
SHARDS = 163
CORES = 16
"""Of each machine."""
DISK = 1e9
"""Bytes per second that one machine reads or writes on the shared file system, or hashes."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Shapes = dict[str, tuple[int, ...]]


def shapes() -> Shapes:
    """The tensors of DeepSeek-V3 without the multi-token prediction layer."""
    found: Shapes = {"model.embed_tokens.weight": (129280, HIDDEN)}
    for layer in range(LAYERS):
        own = {
            "self_attn.q_a_proj": (1536, HIDDEN),
            "self_attn.q_b_proj": (HEADS * 192, 1536),
            "self_attn.kv_a_proj_with_mqa": (576, HIDDEN),
            "self_attn.kv_b_proj": (HEADS * 256, 512),
            "self_attn.o_proj": (HIDDEN, HEADS * 128),
            "self_attn.q_a_layernorm": (1536,),
            "self_attn.kv_a_layernorm": (512,),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        if layer < DENSE:
            own |= dict(_gated("mlp", 18432))
        else:
            own |= dict(_gated("mlp.shared_experts", 2048)) | {"mlp.gate": (EXPERTS, HIDDEN)}
            for expert in range(EXPERTS):
                own |= dict(_gated(f"mlp.experts.{expert}", 2048))
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (129280, HIDDEN)}


def _gated(name: str, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    yield f"{name}.gate_proj", (width, HIDDEN)
    yield f"{name}.up_proj", (width, HIDDEN)
    yield f"{name}.down_proj", (HIDDEN, width)


def many_shapes() -> Shapes:
    """200,000 small matrices and vectors."""
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": shape
        for layer, expert in product(range(200), range(250))
        for name, shape in (("up", (64, 32)), ("down", (32, 64)), ("gate", (64, 32)), ("norm", (32,)))
    }


def write_headers(folder: Path, tensors: Shapes, shards: int) -> None:
    """Write a model in shards of about one size, whose tensors are holes."""
    folder.mkdir()
    total, filled, homes = sum(map(math.prod, tensors.values())), 0, {}
    groups: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    for name, shape in tensors.items():
        groups[min(filled * shards // total, shards - 1)].append((name, "BF16", shape))
        filled += math.prod(shape)
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        header = build_header(group, {"format": "pt"})
        with (folder / file).open("wb") as opened:
            opened.write(header.raw)
            opened.truncate(len(header.raw) + header.data_bytes)
        homes |= dict.fromkeys((name for name, _, _ in group), file)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """Print the table, and what a plan over many tensors takes."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if sys.argv[1:] == ["many"]:
            _many(root)
            return
        for name in ("base", "ft"):
            write_headers(root / name, shapes(), SHARDS)
        with monosoup_cli.edit.prepare(root / "base", root / "ft", root / "out", device="cpu") as planned:
            _table(lay_out(planned))
    subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", "many"], check=True)


def _many(root: Path) -> None:
    for name in ("base", "ft"):
        write_headers(root / name, many_shapes(), 1000)
    gc.disable()  # as the command line does
    import_module("torch")
    before, started = _peak(), time.perf_counter()
    inputs = (root / "base", root / "ft", root / "out")
    with monosoup_cli.edit.prepare(*inputs, device="cpu", part="3/64") as planned:
        ready = lay_out(planned)
    seconds, megabytes = time.perf_counter() - started, (_peak() - before) / 1e6
    count = len(ready.plan.tensors)
    print(f"\nA plan over {count:,} tensors: {seconds:.1f} s, {megabytes:.0f} MB beyond torch.")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(ready: Ready) -> None:
    plan, layout = ready.plan, ready.form.layout
    finetuned = ready.planned.inputs.finetuned
    print("| machines | largest share / mean | files cut | hours, parts | hours, finish |")
    print("| --- | --- | --- | --- | --- |")
    for count in COUNTS:
        shares = shares_of(plan, layout, {}, finetuned, count)
        costs = shares[0].costs
        cut = {file for share in shares for file in share.pieces.values()}
        copied = sum(file.nbytes for file in layout.files if file.name in cut)
        parts = max(costs) / CORES / 3600
        finish = (layout.nbytes + 2 * copied) / DISK / 3600
        uneven = max(costs) * count / sum(costs)
        print(f"| {count} | {uneven:.3f} | {len(cut)} | {parts:.2f} | {finish:.2f} |")


if __name__ == "__main__":
    main()
