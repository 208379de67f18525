"""What models of 0.6B to 1T parameters take, how evenly one divides, and where more machines stop paying.

The headers are those of public shapes in bf16. Behind them are holes: the files take no space. Nothing is
computed: shares, cost and memory come from the plan, as in a run.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path

import monosoup_cli
from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.formats.header import build_header
from monosoup_cli.pipeline.memory import needs_of
from monosoup_cli.pipeline.ready import Ready, lay_out
from monosoup_cli.pipeline.shares import shares_of
from monosoup_cli.report.words import size

HIDDEN = 7168
"""Of DeepSeek-V3 and of Kimi K2."""
SHARDS = 163
CORES = 16
"""Of each machine."""
DISK = 1e9
"""Bytes per second that one machine reads or writes on the shared file system, or hashes."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Shapes = dict[str, tuple[int, ...]]


def shapes(
    layers: int = 61, dense: int = 3, experts: int = 256, heads: int = 128, vocabulary: int = 129280
) -> Shapes:
    """The tensors of DeepSeek-V3, or of a model like it, without layers that predict several tokens."""
    found: Shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        own = {
            "self_attn.q_a_proj": (1536, HIDDEN),
            "self_attn.q_b_proj": (heads * 192, 1536),
            "self_attn.kv_a_proj_with_mqa": (576, HIDDEN),
            "self_attn.kv_b_proj": (heads * 256, 512),
            "self_attn.o_proj": (HIDDEN, heads * 128),
            "self_attn.q_a_layernorm": (1536,),
            "self_attn.kv_a_layernorm": (512,),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        if layer < dense:
            own |= dict(_gated("mlp", 18432))
        else:
            own |= dict(_gated("mlp.shared_experts", 2048)) | {"mlp.gate": (experts, HIDDEN)}
            for expert in range(experts):
                own |= dict(_gated(f"mlp.experts.{expert}", 2048))
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def dense_shapes(
    layers: int, hidden: int, width: int, heads: int, key_heads: int, vocabulary: int, *, is_tied: bool
) -> Shapes:
    """The tensors of a Llama, or of a model like it, whose heads have 128 rows."""
    found: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        own = {
            "self_attn.q_proj": (heads * 128, hidden),
            "self_attn.k_proj": (key_heads * 128, hidden),
            "self_attn.v_proj": (key_heads * 128, hidden),
            "self_attn.o_proj": (hidden, heads * 128),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            **dict(_gated("mlp", width, hidden)),
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found if is_tied else found | {"lm_head.weight": (vocabulary, hidden)}


MODELS: dict[str, tuple[Callable[[], Shapes], int]] = {
    "Qwen3 0.6B": (lambda: dense_shapes(28, 1024, 3072, 16, 8, 151936, is_tied=True), 1),
    "Llama 3.1 8B": (lambda: dense_shapes(32, 4096, 14336, 32, 8, 128256, is_tied=False), 4),
    "Llama 3.1 70B": (lambda: dense_shapes(80, 8192, 28672, 64, 8, 128256, is_tied=False), 30),
    "DeepSeek-V3 671B": (shapes, SHARDS),
    "Kimi K2 1T": (lambda: shapes(61, 1, 384, 64, 163840), 61),
}
"""The tensors of models, and the number of their shards."""


def _gated(name: str, width: int, hidden: int = HIDDEN) -> Iterator[tuple[str, tuple[int, int]]]:
    yield f"{name}.gate_proj", (width, hidden)
    yield f"{name}.up_proj", (width, hidden)
    yield f"{name}.down_proj", (hidden, width)


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
    """Print the tables, and what a plan over many tensors takes."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if sys.argv[1:] == ["many"]:
            _many(root)
            return
        print("| model | parameters | bytes of a checkpoint | core-hours | memory of a worker |")
        print("| --- | --- | --- | --- | --- |")
        for model in MODELS:
            _model(root / model.replace(" ", "-"), model)
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


def _model(root: Path, model: str) -> None:
    """Print a row for an edit of a model."""
    tensors, shards = MODELS[model]
    root.mkdir()
    for name in ("base", "ft"):
        write_headers(root / name, tensors(), shards)
    with monosoup_cli.edit.prepare(root / "base", root / "ft", root / "out", device="cpu") as planned:
        ready = lay_out(planned)
        plan, form = ready.plan, ready.form
        (share, *_) = shares_of(plan, form.layout, {}, planned.inputs.finetuned, 1)
        needs = needs_of(plan.tensors, planned.method, planned.inputs.sources, Cpu(), form)
    parameters = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    held = max(need.host + need.device for need in needs)
    print(
        f"| {model} | {parameters / 1e9:,.1f} B | {size(form.layout.nbytes)} | {sum(share.costs) / 3600:.2g} "
        f"| {size(held)} |",
        flush=True,
    )
    shutil.rmtree(root)


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
