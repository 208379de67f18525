"""Descriptions of distributed checkpoints that lie, or take any time if they are hashed or shown."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from tests.catalogue.table import Make, given, refused
from tests.conftest import small_tensors

BAD = "run"
PLACEHOLDER = "PLACEHOLDER"
NONE = "does not describe a distributed checkpoint"
Change = Callable[[Any], object]


def described(change: Change, opcodes: bytes = b"") -> Make:
    """Makes a checkpoint whose description is changed, with opcodes in the place of the placeholder."""

    def make() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint.save({"model": small_tensors(1)}, checkpoint_id=BAD, no_dist=True)
        path = Path(BAD, ".metadata")
        content = pickle.loads(path.read_bytes())
        change(content)
        place = b"X" + struct.pack("<I", len(PLACEHOLDER)) + PLACEHOLDER.encode()
        path.write_bytes(pickle.dumps(content, protocol=2).replace(place, opcodes))

    return make


def first(content: Any) -> Any:
    return next(iter(content.state_dict_metadata.values()))


def nested(depth: int) -> bytes:
    """Opcodes that push a tuple in a tuple, and so on."""
    return b")" + b"\x85" * depth


def doubling(depth: int) -> bytes:
    """Opcodes that push a tuple of two, of the same two, and so on."""
    steps = (struct.pack("<cIcIc", b"r", 10**6 + n, b"j", 10**6 + n, b"\x86") for n in range(depth))
    return b")" + b"".join(steps)


def rename_first(content: Any) -> None:
    object.__setattr__(next(iter(content.storage_data)), "fqn", PLACEHOLDER)


def to(*path: object) -> Change:
    """The second tensor gets this path."""
    return lambda content: content.planner_data.update({list(content.planner_data)[1]: path})


def resize(size: tuple[int, ...]) -> Change:
    def edit(content: Any) -> None:
        first(content).size, first(content).chunks = size, []

    return edit


def cross(content: Any) -> None:
    """Chunks that are rows, and others that are columns."""
    size, count = torch.Size, 20_000
    rows = [ChunkStorageMetadata(size((n, 0)), size((1, count))) for n in range(count // 2)]
    columns = [ChunkStorageMetadata(size((0, n)), size((count, 1))) for n in range(count // 2)]
    first(content).size, first(content).chunks = size((count, count)), rows + columns


def first_name(content: Any) -> str:
    return next(iter(content.planner_data.values()))[1]


DESCRIPTIONS: dict[str, tuple[Make, str]] = {
    "a name that is nested": (described(rename_first, nested(300_000)), NONE),
    "a name that doubles": (described(rename_first, doubling(60)), NONE),
    "a path that is nested": (described(to("model", PLACEHOLDER), nested(300_000)), NONE),
    "a path that doubles": (described(to("model", PLACEHOLDER), doubling(60)), NONE),
    "a key that is no text": (
        described(lambda content: content.state_dict_metadata.update({5: first(content)})),
        NONE,
    ),
    "a tensor without a place": (described(lambda content: content.storage_data.clear()), "is in no file"),
    "many dimensions": (described(resize((0,) * 500)), NONE),
    "very many dimensions": (described(resize((2,) * 20_000)), NONE),
    "a huge dimension": (described(resize((1 << 70,))), NONE),
    "two keys with one path": (
        described(lambda content: to("model", first_name(content))(content)),
        "two keys for one tensor",
    ),
    "a tensor in the place of a dict": (described(to("model")), "two keys for one tensor"),
    "a file of another name": (
        described(
            lambda content: next(iter(content.storage_data.values())).__dict__.update(
                relative_path="\0.distcp"
            )
        ),
        NONE,
    ),
    "a file in another folder": (
        described(
            lambda content: next(iter(content.storage_data.values())).__dict__.update(
                relative_path="../bad.distcp"
            )
        ),
        NONE,
    ),
    "many chunks that cross": (described(cross), "its chunks are not the whole tensor"),
}

ROWS = [refused(name, make, BAD, words, lines=given(BAD)) for name, (make, words) in DESCRIPTIONS.items()]
