"""What has to hold for any bytes: each reader gives an error of ours or a right result.

A target has a function that checks this for some bytes, valid inputs to begin with, and the words that inputs
of its kind are made of.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint

from monosoup_cli.errors import CheckpointError, MonosoupError, NonfiniteError, ResumeError
from monosoup_cli.formats.header import BITS, parse_header
from monosoup_cli.formats.npy import read_npy
from monosoup_cli.formats.pickles import DTYPES, read_pickle
from monosoup_cli.formats.state_dict import StateDict, read_state_dict
from monosoup_cli.outputs.journal import finished_line, note_line, read_journal
from monosoup_cli.sources.features import Features
from monosoup_cli.sources.locate import open_checkpoint

PATTERN = bytes(range(256)) * 256
OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')


class Memory:
    """A file in memory, as formats read it."""

    shown = "x.pt"

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        assert 0 <= offset <= offset + nbytes <= len(self.content)
        return self.content[offset : offset + nbytes]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.read(len(buffer), offset)


# -- headers --------------------------------------------------------------------------------------


def file_of(text: bytes) -> bytes:
    """A safetensors file with this header, and with the bytes that it asks for if these are few."""
    end = max((int(end[:9]) for end in OFFSETS.findall(text)), default=0)
    return struct.pack("<Q", len(text)) + text + PATTERN[:end]


def check_file(content: bytes) -> None:
    """What we accept, safetensors accepts, and finds the same in it."""
    (length,) = struct.unpack("<Q", content[:8])
    try:
        header = parse_header(content[: 8 + length], len(content), "x")
    except CheckpointError:
        return
    start = len(header.raw)
    assert {
        name: (tensor.dtype, list(tensor.shape), content[start + tensor.start : start + tensor.stop])
        for name, tensor in header.tensors.items()
    } == {
        name: (found["dtype"], found["shape"], bytes(found["data"]))
        for name, found in safetensors.deserialize(content)
    }


def check_header(text: bytes) -> None:
    """The same for the text of a header."""
    check_file(file_of(text))


def header_seeds() -> list[bytes]:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    other = {"dtype": "I8", "shape": [], "data_offsets": [24, 25], "more": {"é": [1.5e3, -0, None, True]}}
    empty = {"dtype": "F4", "shape": [0, 7], "data_offsets": [25, 25], "more": [[[[]]]]}
    each = [{"t": entry}, {"__metadata__": {"format": "pt"}, "a.b": entry, "\n": other, "c": empty}, {}]
    return [json.dumps(one, indent=indent).encode() for one in each for indent in (None, 1)]


HEADER_WORDS = (
    *('"dtype":', '"shape":', '"data_offsets":', '"__metadata__":', '"format":"pt"', '"more":', "\\ud83d"),
    *("[0,0]", "1e400", "1e308", "-0", "9" * 20, "NaN", "null", "true", "[[[[[[[[", "{}", "\\u0000", '":'),
    *BITS,
)


# -- indexes --------------------------------------------------------------------------------------

SHARDS = {"model-1.safetensors": ("a", "b"), "model-2.safetensors": ("c",), "model-3.safetensors": ("a",)}


@cache
def folder_of_shards() -> tuple[Path, Any]:
    """A folder with shards, and what removes it at the end."""
    held = tempfile.TemporaryDirectory(prefix="monosoup-fuzz-")
    folder = Path(held.name)
    for name, tensors in SHARDS.items():
        save_file({tensor: torch.ones(1) for tensor in tensors}, folder / name)
    return folder, held


def check_index(text: bytes) -> None:
    """Only shards of the folder are read, and of these every tensor."""
    folder, _ = folder_of_shards()
    (folder / "model.safetensors.index.json").write_bytes(text)
    try:
        opened = open_checkpoint(folder)
    except MonosoupError:
        return
    with opened.files:
        shards = set(json.loads(text)["weight_map"].values())
        assert shards <= SHARDS.keys()
        assert set(opened.tensors) == {tensor for shard in shards for tensor in SHARDS[shard]}


def index_seeds() -> list[bytes]:
    whole = {
        "metadata": {"total_size": 12},
        "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"},
    }
    more = {"weight_map": {**whole["weight_map"], "c": "model-2.safetensors", "d": "model-2.safetensors"}}
    twice = {"weight_map": {"a": "model-3.safetensors", "b": "model-1.safetensors"}}
    return [json.dumps(one, indent=indent).encode() for one in (whole, more, twice) for indent in (None, 1)]


INDEX_WORDS = (
    *(
        '"metadata":',
        '"weight_map":',
        '"total_size":',
        '"a":',
        '".."',
        "/",
        "\\\\",
        ".safetensors",
        "model-2",
    ),
    *("\\ud800", "\\u0000", "{}", "[]", "null", "NaN", "1e999", "[[[[[[[[", '{"":'),
)


# -- pickles, and archives ------------------------------------------------------------------------

STORAGES = 3
STORAGE_BYTES = 64


def archive_of(pickled: bytes) -> bytes:
    """An archive with this pickle, and with some storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        for key in range(STORAGES):
            archive.writestr(f"x/data/{key}", PATTERN[key : key + STORAGE_BYTES])
        archive.writestr("x/version", "3\n")
    return file.getvalue()


def check_archive(content: bytes) -> None:
    """What torch loads, we read equal or refuse."""
    try:
        ours = read_state_dict(Memory(content))
    except CheckpointError:
        return
    try:
        theirs: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch raises all kinds of errors; nothing is promised of what it refuses
        return
    if hasattr(theirs, "state_dict"):
        theirs = theirs.state_dict()
    found = theirs_at(theirs, ours.path)
    assert found is not None
    expected = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    assert list(ours.tensors) == list(expected)
    for name, tensor in expected.items():
        assert_same(of_archive(content, ours, name), tensor)


def theirs_at(content: Any, path: str) -> Mapping[str, Any] | None:
    """The dict at a path, whose keys may have dots of their own."""
    if not path:
        return content if isinstance(content, Mapping) else None
    for key, inner in content.items() if isinstance(content, Mapping) else ():
        if isinstance(key, str) and f"{path}.".startswith(f"{key}."):
            found = theirs_at(inner, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


def of_archive(content: bytes, state: StateDict, name: str) -> torch.Tensor:
    """A tensor of what we read, made by torch from the bytes where we say that they are."""
    info = state.tensors[name]
    dtype = next(getattr(torch, theirs) for theirs, ours in DTYPES.items() if ours == info.dtype)
    if info.elements == 0:
        return torch.empty(info.shape, dtype=dtype)
    strided = state.strided.get(name)
    nbytes = info.nbytes if strided is None else strided.span
    flat = torch.frombuffer(bytearray(content[info.start : info.start + nbytes]), dtype=dtype)
    return flat.view(info.shape) if strided is None else flat.as_strided(info.shape, strided.strides)


def assert_same(first: torch.Tensor, second: torch.Tensor) -> None:
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    in_order = [
        torch.empty(one.numel(), dtype=one.dtype).copy_(one.detach().reshape(-1)) for one in (first, second)
    ]
    assert torch.equal(*(one.view(torch.uint8) for one in in_order))


def check_pickle(pickled: bytes) -> None:
    """A pickle alone, then in an archive."""
    try:
        read_pickle(pickled, "x")
    except CheckpointError:
        return
    check_archive(archive_of(pickled))


def states() -> list[Any]:
    """What training scripts save, over a few storages."""
    first, second = torch.arange(16.0), torch.arange(32).to(torch.int16)
    weights = {
        "a": first.view(4, 4),
        "b": first.view(4, 4).T,
        "c": second[3:5],
        "d": first[2],
        "e": second[:0],
    }
    half, owned = torch.arange(32).bfloat16(), torch.nn.Parameter(first.view(2, 8))
    return [
        weights,
        OrderedDict(weights),
        {"state_dict": weights, "epoch": 3, "lr": 0.1, "args": [None, True, b"x", (1, 2, 3), {4}]},
        {"model": {"module": weights}, "model_ema": weights, "optimizer": {0: {"step": first[:1]}}},
        {"a": owned, "b": half[::2], "c": owned[0].detach(), "d": half, "e_extra_state": None},
        [first],
    ]


def archive_seeds() -> list[bytes]:
    made = []
    for state in states():
        file = io.BytesIO()
        torch.save(state, file)
        made.append(file.getvalue())
    return made


def pickle_seeds() -> list[bytes]:
    made = [zipfile.ZipFile(io.BytesIO(one)).read("archive/data.pkl") for one in archive_seeds()]
    return made + [pickle.dumps({"a": [1, 2.5, "é"], "b": (None, {1})}, protocol) for protocol in range(2, 6)]


PICKLE_WORDS = (
    *(
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ctorch\nFloatStorage\n",
        "ccollections\nOrderedDict\n",
        "X\x01\0\0\x000",
    ),
    *(
        "X\x07\0\0\0storage",
        "ctorch._utils\n_rebuild_parameter\n",
        "ctorch\nSize\n",
        "cos\nsystem\n",
        "Q",
        "tR",
        "RRRR",
    ),
    *(
        "ctorch._tensor\n_rebuild_from_type_v2\n",
        "ctorch._utils\n_rebuild_tensor_v3\n",
        "K\0",
        "J\xff\xff\xff\xff",
    ),
    *(
        "h\0",
        "q\0",
        "(",
        "t",
        "u",
        "}",
        "]",
        "e",
        "\x85",
        "\x86",
        "\x87",
        "\x94",
        "\x93",
        "\x81",
        "b",
        "0",
        "2",
        "\x8a\x09",
    ),
)
ARCHIVE_WORDS = (
    "PK\x03\x04",
    "PK\x01\x02",
    "PK\x05\x06",
    "PK\x06\x06",
    "PK\x06\x07",
    "archive/data.pkl",
    "data/0",
    "byteorder",
)


# -- journals -------------------------------------------------------------------------------------

IDENTITY = {"version": 1, "inputs": {"base": {"commit": "0"}}}


def check_journal(text: bytes) -> None:
    """What is kept are whole lines that hold, also where every line has the checksum that belongs to it."""
    check_kept(text)
    check_kept(b"".join(sealed(line) for line in text.split(b"\n")))


def check_kept(text: bytes) -> None:
    journal = folder_of_shards()[0] / "journal"
    journal.write_bytes(text)
    try:
        entries, kept = read_journal(journal, IDENTITY)
    except ResumeError:
        return
    assert text[:kept].endswith(b"\n") == bool(kept)
    lines = [line + b"\n" for line in text[:kept].split(b"\n")[:-1]]
    assert len(lines) == len(entries) + bool(kept)
    assert [*map(sealed, lines)] == lines
    for line, entry in zip(lines[1:], entries, strict=True):
        assert json.dumps({**json.loads(line), "crc32": 0}) == json.dumps({**entry, "crc32": 0})


def sealed(line: bytes) -> bytes:
    """The line with the checksum that belongs to it."""
    body = re.sub(rb', "crc32": \d*}?\n?$', b"", line)
    return b'%s, "crc32": %d}\n' % (body, zlib.crc32(body))


def journal_seeds() -> list[bytes]:
    first = sealed(json.dumps({"identity": IDENTITY})[:-1].encode())
    done = finished_line("a.b", [3, 2**32 - 1], [{"name": "a.b", "lambda_high": 1.25, "k": None}] * 2)
    lines = [first, done, note_line("score é", 0.5), note_line("gram", [[1.5, -2e-7], []])]
    return [first, first + done, b"".join(lines), b"".join(lines * 2), b"".join(lines)[:-9]]


JOURNAL_WORDS = (
    *('{"identity": ', ', "crc32": ', '"tensor": "a"', '"checksums": [1]', '"records": []', '"note": "a"'),
    *('"content": ', "}\n", "\n", "NaN", "[[[[[[[[", '"inputs": ', '"commit": ', "null", "1e999", "\\ud800"),
)


# -- arrays ---------------------------------------------------------------------------------------


def check_array(content: bytes) -> None:
    """A matrix that we accept, NumPy loads, and finds the same in it."""
    file = Memory(content)
    try:
        array = read_npy(file)
        features = Features("x", file, array.tensor, array.tensor.start, array.is_swapped)
        found = features.read(*map(range, features.shape))
    except (CheckpointError, NonfiniteError):
        return
    theirs = np.load(io.BytesIO(content), allow_pickle=False)
    assert np.array_equal(found.numpy(), theirs.astype(np.float64))


def array_seeds() -> list[bytes]:
    arrays = [np.arange(6.0).reshape(2, 3).astype(dtype) for dtype in ("<f2", ">f4", "<f8", "<i4")]
    seeds = []
    for array in (*arrays, np.asfortranarray(arrays[0]), np.arange(3.0), np.array([[None]])):
        for version in ((1, 0), (2, 0), (3, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version)
            seeds.append(file.getvalue())
    return seeds


ARRAY_WORDS = (
    *(
        "'descr': ",
        "'<f4'",
        "'>f8'",
        "'|O'",
        "'fortran_order': ",
        "False",
        "True",
        "'shape': ",
        "(2, 3)",
        "(6,)",
    ),
    *("{", "}", ",", "(", ")", "\n", "\x93NUMPY\1\0", "[('a', '<f4')]", "0", "9" * 19),
)


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        check: Checks what has to hold, for some bytes.
        seeds: Makes valid inputs.
        words: What inputs are made of.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[str]


# -- distributed checkpoints ----------------------------------------------------------------------

CHUNKED = {
    "a": torch.arange(12.0).view(3, 4),
    "b.weight": torch.arange(6).to(torch.int16),
    "c": torch.ones(()),
}


@cache
def folder_of_chunks() -> tuple[Path, bytes, Any]:
    """A folder with a distributed checkpoint, its description, and what removes it at the end."""
    held = tempfile.TemporaryDirectory(prefix="monosoup-fuzz-")
    folder = Path(held.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(
            {"model": CHUNKED, "optimizer": {"lr": 0.1}, "step": 3}, checkpoint_id=folder, no_dist=True
        )
    return folder, (folder / ".metadata").read_bytes(), held


def check_chunks(description: bytes) -> None:
    """Whatever a description says, each tensor that is read has the bytes of one that was saved."""
    folder, _, _ = folder_of_chunks()
    (folder / ".metadata").write_bytes(description)
    stored = {tensor.numpy().tobytes() for tensor in CHUNKED.values()}
    try:
        with open_checkpoint(folder) as source:
            for name, tensor in source.tensors.items():
                found = bytearray(tensor.nbytes)
                source.reader(name).read_into(memoryview(found), 0)
                assert bytes(found) in stored or not found
    except MonosoupError:
        return


def chunk_seeds() -> list[bytes]:
    description = folder_of_chunks()[1]
    return [description, pickle.dumps(pickle.loads(description), protocol=2)]


CHUNK_WORDS = (
    *(
        "model.a",
        "X\x07\0\0\0model.a",
        "\x8c\x07model.a",
        "offsets",
        "sizes",
        "size",
        "chunks",
        "fqn",
        "index",
    ),
    *("relative_path", "__0_0.distcp", "../__0_0.distcp", "offset", "length", "planner_data", "storage_data"),
    *(
        "ctorch\nSize\n",
        "ctorch\nfloat64\n",
        "K\0",
        "K\x01",
        "M\xff\xff",
        ")",
        "\x85",
        "\x86",
        "N",
        "\x8a\x09",
    ),
)

TARGETS = {
    "header": Target(check_header, header_seeds, HEADER_WORDS),
    "index": Target(check_index, index_seeds, INDEX_WORDS),
    "pickle": Target(check_pickle, pickle_seeds, PICKLE_WORDS),
    "archive": Target(check_archive, archive_seeds, ARCHIVE_WORDS),
    "array": Target(check_array, array_seeds, ARRAY_WORDS),
    "chunks": Target(check_chunks, chunk_seeds, CHUNK_WORDS),
    "journal": Target(check_journal, journal_seeds, JOURNAL_WORDS),
}
