"""What stands in the place of a file of weights, or of its folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.catalogue.table import (
    AS_BASE,
    AS_FINETUNED,
    BAD,
    ROLES,
    Make,
    Row,
    accepted,
    both,
    file,
    given,
    raw,
    refused,
    refused_files,
    tensors,
)
from tests.hub import cloned

FOLDER_ROLES = (AS_FINETUNED, AS_BASE)
WHOLE = "in/model.safetensors"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "in/model.safetensors.index.json"


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.ones((2, 2)))
    return stream.getvalue()


def tar(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


FOREIGN = {
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git lfs pull",
    ),
    "a git-xet pointer": (b"# xet version 0\n", "a git-xet pointer"),
    "a web page": (b"<!DOCTYPE html><html>login</html>", "a web page"),
    "a web page after a byte-order mark": (b"\xef\xbb\xbf <HTML>", "a web page"),
    "an error in XML": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML document"),
    "a server's error": (b"Invalid username or password.", "a server's error"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(50), "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "npz": (npz(), "an archive of NumPy arrays"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(50), "a single NumPy array"),
    "ONNX": (b"\x08\x07\x12\x07pytorch" + bytes(20), "an ONNX graph"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model"),
    "msgpack": (b"\x81\xa6params\x80" + bytes(20), "a msgpack file"),
    "a tar archive": (tar("model_weights.ckpt"), "a tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "compressed by gzip"),
    "bzip2": (b"BZh91AY&SY" + bytes(20), "compressed by bzip2"),
    "xz": (b"\xfd7zXZ\0" + bytes(20), "compressed by xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd"),
    "zlib": (b"x\x9c" + bytes(20), "compressed by zlib"),
    "JSON": (b'{"model_type": "llama"}', "a JSON file"),
    "a list in JSON": (b"[1, 2, 3, 4, 5]", "a JSON file"),
    "text": (b"hello, this is not a checkpoint", "text, not weights"),
    "a shell script": (b"#!/bin/sh\ntouch canary\n", "text, not weights"),
    "Python": (b"import os\nos.system('touch canary')\n", "text, not weights"),
}


# -- what is no regular file -------------------------------------------------------------------------


def fifo(path: str = BAD) -> Make:
    return lambda: os.mkfifo(path)


def link(target: str, path: str = BAD) -> Make:
    return lambda: Path(path).symlink_to(target)


def folder(path: str) -> Make:
    return lambda: Path(path).mkdir(parents=True, exist_ok=True)


def listening(path: str) -> Make:
    def make() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)  # relative, because the name of a socket must be short

    return make


def device(kind: str) -> Make:
    return lambda: Path(BAD).symlink_to(f"/dev/{kind}")


SPECIAL: dict[str, tuple[Make, str]] = {
    "a FIFO": (fifo(), "not a regular file"),
    "a socket": (listening(BAD), "not a regular file"),
    "a link to a FIFO": (both(fifo("pipe"), link("pipe")), "not a regular file"),
    "/dev/zero": (device("zero"), "not a regular file"),
    "/dev/full": (device("full"), "not a regular file"),
    "/dev/null": (device("null"), "not a regular file"),
    "/dev/tty": (device("tty"), "not a regular file"),
    "the memory of the process": (link("/proc/self/mem"), "found 0 bytes"),
    "the environment of the process": (link("/proc/self/environ"), "found 0 bytes"),
    "a setting of the kernel": (link("/proc/sys/kernel/hostname"), "found 0 bytes"),
    "a link to nothing": (link("gone"), "a broken link"),
    "a link to itself": (link(BAD), "broken link"),
    "two links to each other": (both(link("two"), link(BAD, "two")), "broken link"),
    "a link through a file": (link("base.safetensors/x"), "a broken link"),
    "a link with a NUL's neighbour": (link("\x01\x1b[2J"), "a broken link"),
}


def with_special(path: str, make: Make) -> Make:
    """A folder of weights with something special at this path in it."""

    def made() -> None:
        file("", path)()
        tensors(WHOLE)()
        if Path(path).exists():
            Path(path).unlink()
        make()

    return made


def special_in(path: str) -> dict[str, Make]:
    return {
        f"a FIFO as {path}": with_special(path, fifo(path)),
        f"a folder as {path}": with_special(path, folder(path)),
        f"a device as {path}": with_special(path, link("/dev/zero", path)),
    }


# -- shards and indexes -------------------------------------------------------------------------------


def shards(weight_map: object = None, *, index: bytes | None = None, **files: str) -> Make:
    """Two shards of the small model, and an index: a truthful one, one of this map, or these bytes."""

    def make() -> None:
        tensors(f"in/{A}", head__weight=None)()
        tensors(f"in/{B}", block__weight=None, block__bias=None)()
        truth = {"block.weight": A, "block.bias": A, "head.weight": B}
        content = json.dumps({"weight_map": truth if weight_map is None else weight_map}).encode()
        Path(INDEX).write_bytes(content if index is None else index)

    return make


def without(path: str, *makes: Make) -> Make:
    """The shards without this file, then these in its place."""
    return both(shards(), lambda: Path(path).unlink(), *makes)


def cut(path: str) -> None:
    """Takes the last bytes from a file."""
    os.truncate(path, os.path.getsize(path) - 3)


TRUTH = {"block.weight": A, "block.bias": A, "head.weight": B}
OUT_OF = "the index must name safetensors files in its own folder"
OUTSIDE: dict[str, object] = {
    "the folder above": "../finetuned.safetensors",
    "a folder outside": "../../outside/model.safetensors",
    "a way out and in again": f"../in/{A}",
    "an absolute path": "/etc/model.safetensors",
    "a drive": "C:\\model.safetensors",
    "a file on a drive": "C:model.safetensors",
    "a share": "\\\\host\\share\\model.safetensors",
    "a subfolder": "sub/model.safetensors",
    "a subfolder of Windows": "sub\\model.safetensors",
    "the same folder": f"./{A}",
    "an address": "https://example.com/model.safetensors",
    "a file's address": f"file://{A}",
    "dots": "..",
    "a dot": ".",
    "nothing": "",
    "a NUL": f"{A}\0.safetensors",
    "a pickle": "model.bin",
    "a pickle behind the suffix": "model.safetensors.bin",
    "a suffix in capitals": "model.SAFETENSORS",
    "a number": 7,
    "null": None,
    "true": True,
    "a list": [A],
    "an object": {},
}
NO_INDEX: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "a list": (b"[]", "no weight_map"),
    "a number": (b"7", "no weight_map"),
    "null": (b"null", "no weight_map"),
    "an object of nothing": (b"{}", "no weight_map"),
    "an empty weight_map": (b'{"weight_map": {}}', "no weight_map"),
    "a weight_map that is a list": (b'{"weight_map": ["%s"]}' % A.encode(), "no weight_map"),
    "a weight_map that is text": (b'{"weight_map": "%s"}' % A.encode(), "no weight_map"),
    "two weight_maps, the second empty": (
        b'{"weight_map": {"x": "%s"}, "weight_map": {}}' % A.encode(),
        "no weight_map",
    ),
    "metadata that are a number": (b'{"metadata": 3, "weight_map": {"x": "%s"}}' % A.encode(), "metadata"),
    "5000 digits": (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "deep objects": (b'{"weight_map": ' * 5000, "nested too deeply"),
    "deep lists": (b"[" * 1_000_000, "nested too deeply"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not valid JSON"),
    "no UTF-8": (b"\xff\xfe", "not valid UTF-8"),
    "a byte-order mark": (b'\xef\xbb\xbf{"weight_map": {}}', "not valid JSON"),
    "half a character": (
        rb'{"weight_map": {"block.weight": "%s", "\ud800": "%s"}}' % (A.encode(), A.encode()),
        "not valid Unicode",
    ),
    "10,000,000 parts": (b'{"weight_map": [' + b"{}," * 10_000_000 + b"{}]}", "too many parts"),
}
LIES: dict[str, tuple[Make, str]] = {
    "a shard that is missing": (
        shards({**TRUTH, "x": "model-00003-of-00003.safetensors"}),
        "model-00003-of-00003.safetensors: a shard that the index names is missing",
    ),
    "a shard that is missing, of an evil name": (
        shards({**TRUTH, "x": "\x1b[2J\u202e.safetensors"}),
        "\\x1b[2J\\u202e.safetensors: a shard that the index names is missing",
    ),
    "a shard whose twin in capitals is there": (
        shards({**TRUTH, "x": A.capitalize()}),
        "a shard that the index names is missing",
    ),
    "a tensor in two shards": (both(shards(), tensors(f"in/{B}", block__weight=None)), "in two shards"),
    "a shard that is cut": (
        both(shards(), lambda: os.truncate(f"in/{B}", os.path.getsize(f"in/{B}") - 3)),
        "truncated",
    ),
    "a shard of noise": (both(shards(), file(b"\xff" * 40, f"in/{B}")), "header length is impossible"),
    "a shard that is a folder": (without(f"in/{B}", folder(f"in/{B}")), "not a regular file"),
    "a shard that is a FIFO": (without(f"in/{B}", fifo(f"in/{B}")), "not a regular file"),
    "a shard that is a broken link": (without(f"in/{B}", link("gone", f"in/{B}")), "a broken link"),
    "a shard that is a pickle": (
        both(shards(), file(b"PK\x03\x04" + bytes(100), f"in/{B}")),
        "a PyTorch pickle",
    ),
    "an index that is a FIFO": (without(INDEX, fifo(INDEX)), "not a regular file"),
    "an index that is a folder": (without(INDEX, folder(INDEX)), "not a regular file"),
    "an index that is a device": (without(INDEX, link("/dev/zero", INDEX)), "not a regular file"),
    "an index of 200 MB": (both(shards(), lambda: os.truncate(INDEX, 200_000_000)), "the index is too large"),
    "numbered shards of which one is missing": (
        both(
            tensors("in/model-00001-of-00003.safetensors", head__weight=None),
            tensors("in/model-00003-of-00003.safetensors", block__weight=None, block__bias=None),
        ),
        "shards are missing: model-00002-of-00003.safetensors",
    ),
    "a million numbered shards": (tensors("in/model-000001-of-999999.safetensors"), "shards are missing"),
}


def several(*names: str) -> Make:
    return both(*(tensors(f"in/{name}") for name in names))


AMBIGUOUS = {
    "a file and an index": ("model.safetensors", "model.safetensors.index.json"),
    "the files of two libraries": ("model.safetensors", "diffusion_pytorch_model.safetensors"),
    "two files": ("one.safetensors", "two.safetensors"),
    "shards of two stems": (A, "other-00002-of-00002.safetensors"),
    "shards of two counts": (A, "model-00002-of-00003.safetensors"),
    "a shard and a variant": (A, "model.fp16.safetensors"),
    "two indexes": ("model.fp16.safetensors.index.json", "model.fp32.safetensors.index.json"),
    "two twins in case": ("Weights.safetensors", "weights.safetensors"),
    "two twins in Unicode": ("e\u0301.safetensors", "\u00e9.safetensors"),
}


def a_clone(*makes: Make) -> Make:
    """A folder of shards that is a clone of a repository on the Hub, then these."""
    return both(shards(), lambda: cloned(Path("in")), *makes)


def moved_out(name: str) -> Make:
    """Moves a file of the folder outside, and puts a link in its place."""

    def make() -> None:
        target = Path("elsewhere") / name
        target.parent.mkdir(exist_ok=True)
        if Path("in", name).exists():
            shutil.move(f"in/{name}", target)
        else:
            target.write_text("{}")
        Path("in", name).symlink_to(f"../elsewhere/{name}")

    return make


def snapshot(name: str, target: str) -> Make:
    """A snapshot in the Hub's cache with a link to this place."""

    def make() -> None:
        place = Path("models--a--b/snapshots/c0ffee")
        tensors(f"{place}/model.safetensors")()
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return make


SNAPSHOT = "models--a--b/snapshots/c0ffee"
LINKS_OUT = {
    **{
        f"a clone whose {name} is a link out": (a_clone(moved_out(name)), "in")
        for name in (A, "model.safetensors.index.json", "config.json", "tokenizer.json")
    },
    "a clone with a folder that is a link out": (
        a_clone(folder("elsewhere"), link("../elsewhere", "in/sub")),
        "in",
    ),
    "a clone with an absolute link out": (a_clone(link("/etc/hostname", "in/vocab.txt")), "in"),
    "a snapshot whose weights are a link out": (
        snapshot("model.safetensors", "../../../finetuned.safetensors"),
        SNAPSHOT,
    ),
    "a snapshot whose config is a link to a file of the system": (
        snapshot("config.json", "/etc/hostname"),
        SNAPSHOT,
    ),
    "a snapshot whose tokenizer is a link to another repository": (
        both(file("{}", "models--c--d/blobs/1"), snapshot("tokenizer.json", "../../../models--c--d/blobs/1")),
        SNAPSHOT,
    ),
}

# -- folders -------------------------------------------------------------------------------------------


def beside(path: str, content: bytes | str = "{}") -> Make:
    """A folder of weights with another file in it."""
    return both(tensors(WHOLE), file(content, path))


def raw_name(name: bytes) -> Make:
    """A folder of weights with a side file of this name."""

    def make() -> None:
        tensors(WHOLE)()
        Path(os.fsdecode(b"in/" + name)).write_bytes(b"{}")

    return make


def deep(levels: int) -> Make:
    def make() -> None:
        tensors(WHOLE)()
        here = os.getcwd()
        os.chdir("in")
        for _ in range(levels):
            os.mkdir("deep")
            os.chdir("deep")
        Path("vocab.txt").write_text("x")
        os.chdir(here)

    return make


def many_side_files() -> None:
    tensors(WHOLE)()
    for number in range(200):
        Path(f"in/vocab-{number}.txt").touch()


NO_WEIGHTS: dict[str, tuple[Make, str]] = {
    "an empty folder": (folder("in"), "no weights in this folder"),
    "a folder of hidden weights": (tensors("in/.model/model.safetensors"), "no weights in this folder"),
    "a folder with a configuration alone": (file("{}", "in/config.json"), "no weights in this folder"),
    "a folder of GGUF": (file(b"GGUF", "in/model.gguf"), "no weights in this folder, only model.gguf"),
    "a folder in a folder": (tensors("in/deep/model.safetensors"), "pass one that has some: deep"),
    "a folder of state of a training": (file(b"PK", "in/optimizer.pt"), "no weights in this folder"),
    "a repository in the cache without a snapshot": (folder("in/../models--a--b/snapshots"), "no weights"),
}
TAKEN: dict[str, Make] = {
    "a side file that is no UTF-8": raw_name(b"vocab\xff\xfe.txt"),
    "a side file of control characters": raw_name(b"vocab\x1b[2J\r\n.txt"),
    "a side file that turns text round": raw_name("vocab\u202etxt.json".encode()),
    "a side file of 255 bytes": raw_name(b"v" * 251 + b".txt"),
    "side files that are twins in case": both(beside("in/Vocab.txt"), file("", "in/vocab.txt")),
    "side files that are twins in Unicode": both(beside("in/e\u0301.txt"), file("", "in/\u00e9.txt")),
    "a side file with the name of the report": beside("in/monosoup_report.json"),
    "a side file with the name of a journal": beside("in/journal"),
    "a folder with the name of the report": both(tensors(WHOLE), file("", "in/monosoup_report.json/x")),
    "a link that leads up": both(tensors(WHOLE), link("..", "in/up")),
    "a link to its own folder": both(tensors(WHOLE), link(".", "in/self")),
    "two folders that link to each other": both(
        tensors(WHOLE), folder("in/a"), folder("in/b"), link("../b", "in/a/b"), link("../a", "in/b/a")
    ),
    "a broken link beside the weights": both(tensors(WHOLE), link("gone", "in/tokenizer.json")),
    "a link of the user's to weights elsewhere": both(folder("in"), link("../finetuned.safetensors", WHOLE)),
    "a link to a folder": both(tensors(WHOLE.replace("in/", "real/")), link("real", "in")),
    "code beside the weights": beside("in/modeling_evil.py", "open('canary', 'w')\n"),
    "code that config.json asks for": both(
        beside("in/config.json", '{"auto_map": {"AutoModel": "evil.Evil"}}'),
        file("open('canary', 'w')\n", "in/evil.py"),
    ),
    "a git hook": beside("in/.git/hooks/post-checkout", "#!/bin/sh\ntouch canary\n"),
    "a configuration of git that is a link to itself": both(
        tensors(WHOLE), folder("in/.git"), link("config", "in/.git/config")
    ),
    "a configuration of git that is noise": beside("in/.git/config", b"\xff\0[remote\nurl = \x1b"),
    "40 folders deep": deep(40),
    "200 side files": many_side_files,
    "a file without a suffix": both(tensors(WHOLE), file("", "in/LICENSE")),
    "an index of another name": beside("in/other.index.json"),
    "an index without metadata": shards(TRUTH),
    "an index whose total size is NaN": shards(
        index=b'{"metadata": {"total_size": NaN}, "weight_map": {"block.weight": "%s", "x": "%s"}}'
        % (A.encode(), B.encode())
    ),
    "an index that leaves a tensor out": shards({"block.weight": A, "head.weight": B}),
    "an index that names a tensor too many": shards({**TRUTH, "x": A}),
    "an index that mixes shards up": shards({"block.weight": B, "block.bias": A, "head.weight": A}),
    "an index of 11 MB": shards({**TRUTH, "x" * 11_000_000: A}),
    "an index of evil names": shards({**TRUTH, "\x1b[2J\u202e[red]": A}),
    "an index that names a tensor twice": shards(
        index=b'{"weight_map": {"block.weight": "x.bin", "block.weight": "%s", "head.weight": "%s"}}'
        % (A.encode(), B.encode())
    ),
    "numbered shards without an index": without(INDEX),
    "an empty shard": both(
        shards({**TRUTH, "x": "model-00003-of-00003.safetensors"}),
        file(raw({}), "in/model-00003-of-00003.safetensors"),
    ),
}


def in_folder(table: Mapping[str, tuple[Make, str]]) -> list[Row]:
    """Rows of the folder `in`, which is refused as the base and as the fine-tuned checkpoint."""
    roles = given("in", FOLDER_ROLES)
    return [refused(name, make, "in", words, lines=roles) for name, (make, words) in table.items()]


ROWS = [
    *refused_files({f"{name} as safetensors": row for name, row in FOREIGN.items()}, roles=[AS_FINETUNED]),
    *refused_files({f"{name} as a state dict": row for name, row in FOREIGN.items()}, "bad.pt"),
    *refused_files(SPECIAL, roles=ROLES),
    *(
        refused(name, make, "in/", "not a regular file", lines=given("in", FOLDER_ROLES))
        for path in (WHOLE, "in/config.json")
        for name, make in special_in(path).items()
    ),
    *(
        refused(name, make, "in/deep/vocab.txt", "not a regular file", lines=given("in", [AS_FINETUNED]))
        for name, make in special_in("in/deep/vocab.txt").items()
        if "folder" not in name
    ),
    *(
        refused(
            f"an index that names {name}",
            shards({**TRUTH, "evil": place}),
            INDEX,
            "'evil'",
            OUT_OF,
            lines=given("in", FOLDER_ROLES),
        )
        for name, place in OUTSIDE.items()
    ),
    *(
        refused(f"an index of {name}", shards(index=content), INDEX, words, lines=given("in", [AS_FINETUNED]))
        for name, (content, words) in NO_INDEX.items()
    ),
    *in_folder(LIES),
    *(
        refused(
            f"a folder of {name}", several(*files), "more than one", *files, lines=given("in", [AS_FINETUNED])
        )
        for name, files in AMBIGUOUS.items()
    ),
    *(
        refused(name, make, "a link that leads out of the folder", lines=given(place, [AS_FINETUNED]))
        for name, (make, place) in LINKS_OUT.items()
    ),
    *in_folder(NO_WEIGHTS),
    *(accepted(name, make, lines=given("in", FOLDER_ROLES)) for name, make in TAKEN.items()),
]
