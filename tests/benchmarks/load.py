"""Checkpoints of unusual sizes, each in two sizes, to see what grows faster than they do.

The files are laid out by hand: `safetensors` would hold all of a large one in memory. Most of one is a
hole, which reads as zeros.
"""

import json
import random
import shutil
import struct
from zlib import crc32

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPARSE = 1 << 28
"""Bytes of data above which a file is a hole, but for its first values."""


def write(path, shapes, seed):
    """A file of float32 tensors, of normal numbers or mostly of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    filled = end if end < SPARSE else 1 << 20
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(np.random.default_rng(seed).standard_normal(filled // 4, dtype="float32").tobytes())
        file.truncate(8 + len(text) + end)


def pair(folder, shapes, *, renamed=None):
    """BASE and FINETUNED, the base under other names if `renamed` says so."""
    base, finetuned = folder / "base.safetensors", folder / "finetuned.safetensors"
    write(base, {renamed(name): shape for name, shape in shapes.items()} if renamed else shapes, 0)
    write(finetuned, shapes, 1)
    return ["edit", base, finetuned]


def blocks(count, shape=(2, 2)):
    """Seven matrices a block."""
    return {f"model.layers.{n // 7}.part{n % 7}.weight": shape for n in range(count)}


def tensors(folder, count):
    """Many small matrices."""
    return pair(folder, blocks(count))


def plan(folder, count):
    """A dry run over many tensors."""
    return [*pair(folder, blocks(count)), "--dry-run"]


def shards(folder, count):
    """Many shards of seven matrices."""
    for seed, name in enumerate(("base", "finetuned")):
        (folder / name).mkdir()
        places = {}
        for number in range(count):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            shapes = {f"model.layers.{number}.part{part}.weight": (2, 2) for part in range(7)}
            write(folder / name / file, shapes, seed + 2 * number)
            places |= dict.fromkeys(shapes, file)
        index = {"metadata": {"total_size": 16 * len(places)}, "weight_map": places}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["edit", folder / "base", folder / "finetuned"]


def one_tensor(folder, gigabytes):
    """One tall matrix, mostly of zeros."""
    return pair(folder, {"embed.weight": (gigabytes * 1_000_000, 250)})


def checkpoints(folder, count):
    """The mean of many checkpoints of 40 MB."""
    paths = [folder / f"{number}.safetensors" for number in range(count)]
    for seed, path in enumerate(paths):
        write(path, blocks(10, (1000, 1000)), seed)
    return ["soup", *paths]


def long_names(folder, megabytes):
    """Names of 10 kB, and so a long header."""
    random.seed(0)
    return pair(
        folder, {f"{''.join(random.choices(LETTERS, k=9900))}.{n}": (2, 2) for n in range(100 * megabytes)}
    )


def strangers(folder, count):
    """No name in common, so that renames are looked for."""
    words = pair(folder, blocks(count), renamed=lambda name: name.replace("model.layers", "other.blocks"))
    return [*words, "--rename", "other.blocks=model.layers"]


def unmatched(folder, count):
    """No name and no ending in common: nothing to suggest, and the run is refused."""
    return pair(folder, blocks(count), renamed=lambda name: f"x.{crc32(name.encode())}.y")


def stack(folder, count):
    """A stack of many small matrices."""
    return [*pair(folder, {"experts.weight": (count, 4, 4)}), "--stacked", "experts.weight"]


LOADS = {
    "tensors of 2 × 2": (tensors, 25_000, 100_000),
    "tensors in a dry run": (plan, 62_500, 250_000),
    "shards": (shards, 250, 1000),
    "GB in one tensor": (one_tensor, 2, 8),
    "checkpoints of 40 MB, averaged": (checkpoints, 18, 70),
    "MB of header, of names of 10 kB": (long_names, 22, 90),
    "tensors under other names, refused": (unmatched, 25_000, 100_000),
    "tensors under other names, renamed": (strangers, 25_000, 100_000),
    "matrices of 4 × 4 in a stack": (stack, 250_000, 1_000_000),
}
"""What there is much of: who makes it, few and many."""


def runs(folder, only=()):
    """Yield what there is much of, how much, and the command, one at a time: they need disk."""
    for name, (make, *counts) in LOADS.items():
        if only and make.__name__ not in only:
            continue
        for count in counts:
            place = folder / "load"
            place.mkdir()
            words = make(place, count)
            yield name, make is unmatched, count, [*words, "-o", place / "out", "--quiet"]
            shutil.rmtree(place)
