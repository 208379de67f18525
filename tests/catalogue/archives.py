"""Archives of torch.save that lie, and what in them is no state dict."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.catalogue.table import AS_FINETUNED, Make, accepted, file, given, refused, refused_files
from tests.conftest import small_tensors

BAD = "bad.pt"
SMALL = small_tensors(1)


class Runs:
    """Makes a file, `canary`, where a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def saved(content: object, path: str = BAD, **options: Any) -> Make:
    """Makes what torch.save writes."""

    def make() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = content() if callable(content) and not isinstance(content, torch.nn.Module) else content
            torch.save(value, path, **options)

    return make


def changed(change: Callable[[str, bytes], bytes | None], *, more: Mapping[str, bytes] | None = None) -> Make:
    """Makes an archive whose records are others; None leaves a record out."""

    def make() -> None:
        saved(SMALL)()
        with zipfile.ZipFile(BAD) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(BAD, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a record that is there twice
            for name, content in records.items():
                new = change(name.partition("/")[2], content)
                if new is not None:
                    archive.writestr(name, new)
            for name, content in (more or {}).items():
                archive.writestr(name, content)

    return make


def more(**records: bytes) -> Make:
    return changed(
        lambda name, content: content, more={name.replace("__", "/"): one for name, one in records.items()}
    )


def central(name: str, offset: int, value: bytes) -> Make:
    """Changes a field of the record's entry in the directory of the archive."""

    def make() -> None:
        saved(SMALL)()
        content = bytearray(Path(BAD).read_bytes())
        start = content.rfind(f"bad/{name}".encode()) - 46
        assert content[start : start + 4] == b"PK\x01\x02"
        content[start + offset : start + offset + len(value)] = value
        Path(BAD).write_bytes(content)

    return make


def end(offset: int, value: bytes) -> Make:
    """Changes a field of the record (of zip64, which torch writes) that says where the directory is."""

    def make() -> None:
        saved(SMALL)()
        content = bytearray(Path(BAD).read_bytes())
        start = content.rfind(b"PK\x06\x06")
        content[start + offset : start + offset + len(value)] = value
        Path(BAD).write_bytes(content)

    return make


def cut(kept: int) -> Make:
    def make() -> None:
        saved(SMALL)()
        Path(BAD).write_bytes(Path(BAD).read_bytes()[:kept])

    return make


def deflated() -> None:
    saved(SMALL)()
    with zipfile.ZipFile(BAD) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(BAD, "w") as made:
        for name, content in records.items():
            made.writestr(name, content, zipfile.ZIP_DEFLATED if "data/" in name else None)


def deflated_bomb() -> None:
    with (
        zipfile.ZipFile(BAD, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
        made.open("x/data.pkl", "w") as pickle_of_zeros,
    ):
        for _ in range(700):
            pickle_of_zeros.write(bytes(1_000_000))


def huge_directory() -> None:
    with Path(BAD).open("wb") as sparse:
        sparse.write(b"PK\x03\x04")
        sparse.truncate(1 << 40)
        sparse.seek(1 << 40)
        sparse.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 9, 9, 2**31, 2**31, 0))


def many_records() -> None:
    saved(SMALL)()
    with zipfile.ZipFile(BAD, "a") as made:
        for number in range(20_000):
            made.writestr(f"bad/data/x{number}", b"")


DAMAGED = "the zip archive is damaged or truncated"
NOT_WHERE = "is not where the zip archive says"
NOT_SAVED = "a zip archive that torch.save did not write"
ARCHIVES: dict[str, tuple[bytes | Make, str]] = {
    "nothing": (b"", "the file is empty"),
    "zeros": (bytes(600), "not a PyTorch file"),
    "a safetensors file of that name": (
        lambda: file(Path("finetuned.safetensors").read_bytes(), BAD)(),
        "a safetensors file under another name; rename it",
    ),
    "torch's legacy format": (saved(SMALL, _use_new_zipfile_serialization=False), "in torch's legacy format"),
    "a pickle without an archive": (
        pickle.dumps({"a": 1}, protocol=2),
        "a pickle that torch.save did not write",
    ),
    "a pickle that runs code, without an archive": (
        pickle.dumps(Runs(), protocol=2),
        "a pickle that torch.save",
    ),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "not a PyTorch file"),
    "an archive of nothing": (b"PK\x03\x04" + bytes(100), DAMAGED),
    "an archive cut in the first record": (cut(100), DAMAGED),
    "an archive cut in the directory": (cut(-30), DAMAGED),
    "an archive cut by a byte": (cut(-1), DAMAGED),
    "an archive without the end": (cut(-22), DAMAGED),
    "an archive of another program": (
        lambda: zipfile.ZipFile(BAD, "w").writestr("word/document.xml", "<x/>"),
        NOT_SAVED,
    ),
    "compressed elements": (deflated, "the record 'data/0' is compressed; save it again"),
    "a compressed pickle of 700 MB": (deflated_bomb, "the record 'data.pkl' is compressed"),
    "a record under another method": (central("data/0", 10, struct.pack("<H", 12)), "is compressed"),
    "an encrypted record": (central("data/0", 8, b"\x01\x08"), "the record 'data/0' is encrypted"),
    "a record twice": (more(bad__data__0=bytes(192)), "has the record 'data/0' twice"),
    "a pickle twice": (more(bad__data__x=b"", bad__data=b"", **{"bad__data.pkl": b"\x80\x02}."}), "twice"),
    "a second folder": (more(y__extra=b""), NOT_SAVED),
    "a second folder above": (more(**{"..__canary": b""}), NOT_SAVED),
    "an absolute path": (more(__canary=b""), NOT_SAVED),
    "no pickle": (changed(lambda name, content: None if name == "data.pkl" else content), NOT_SAVED),
    "no elements": (
        changed(lambda name, content: None if name == "data/0" else content),
        "'block.weight': its elements are not in the file",
    ),
    "too few elements": (
        changed(lambda name, content: content[:-4] if name == "data/0" else content),
        "it reaches beyond its storage: expected at most 188 bytes",
    ),
    "too many elements": (
        changed(lambda name, content: content + bytes(8) if name == "data/0" else content),
        "its storage and its record differ in size",
    ),
    "big-endian numbers": (
        changed(lambda name, content: b"big" if name == "byteorder" else content),
        "its numbers are not little-endian",
    ),
    "a byte order that is none": (
        changed(lambda name, content: b"x" * 1_000_000 if name == "byteorder" else content),
        "its numbers are not little-endian",
    ),
    "an empty byte order": (
        changed(lambda name, content: b"" if name == "byteorder" else content),
        "its numbers are not little-endian",
    ),
    "a record before the file": (central("data/0", 42, struct.pack("<I", 2**32 - 2)), NOT_WHERE),
    "a record at the start": (central("data/0", 42, struct.pack("<I", 0)), NOT_WHERE),
    "a record inside of another": (central("data/0", 42, struct.pack("<I", 64)), NOT_WHERE),
    "a record that reaches into the next": (central("data/0", 20, struct.pack("<II", 400, 400)), NOT_WHERE),
    "a record of another name": (central("data/0", 46, b"bad/data/9"), "its elements are not in the file"),
    "a record of 4 GB": (central("data/0", 20, struct.pack("<II", 2**32 - 2, 2**32 - 2)), NOT_WHERE),
    "a pickle of 200 MB": (
        central("data.pkl", 20, struct.pack("<II", 200_000_000, 200_000_000)),
        "the pickle is too large",
    ),
    "a pickle of 90 MB that is not there": (
        central("data.pkl", 20, struct.pack("<II", 90_000_000, 90_000_000)),
        NOT_WHERE,
    ),
    "a record of two sizes": (central("data/0", 24, struct.pack("<I", 2**31)), "is compressed"),
    "a directory that is longer than the file": (end(40, struct.pack("<Q", 2**40)), DAMAGED),
    "a directory of 2^64 bytes": (end(40, b"\xff" * 8), DAMAGED),
    "a directory behind the file": (end(48, struct.pack("<Q", 2**40)), NOT_WHERE),
    "a directory of 2 GB in a terabyte": (huge_directory, "the directory of the zip archive is too large"),
}


# -- what was saved ----------------------------------------------------------------------------------------


CONTENTS: dict[str, tuple[object, str]] = {
    "a tensor": (torch.zeros(2), "not a state dict: found a Tensor"),
    "a list": ([torch.zeros(2)], "not a state dict: found a list"),
    "a number": (3, "not a state dict: found a int"),
    "None": (None, "not a state dict: found a NoneType"),
    "text": ("model", "not a state dict: found a str"),
    "an empty dict": ({}, "the state dict is empty"),
    "an empty dict within": ({"state_dict": {}}, "the state dict is empty"),
    "a number as a name": ({1: torch.zeros(2)}, "a name in the state dict is not text: found 1"),
    "None as a name": ({None: torch.zeros(2)}, "a name in the state dict is not text"),
    "a tuple as a name": ({("a",) * 9: torch.zeros(2)}, "not text: found tuple"),
    "bytes as a name": ({b"a": torch.zeros(2)}, "not text"),
    "a number in place of a tensor": ({"a": torch.zeros(2), "b": 3}, "'b' is not a tensor: found a int"),
    "a list in place of a tensor": ({"a": torch.zeros(2), "b": [torch.zeros(2)]}, "'b' is not a tensor"),
    "a name of control characters in place of a tensor": ({"\x1b[2J\u202e": 3}, "is not a tensor"),
    "a state dict too deep": (
        {"model": {"model": {"model": {"a": torch.zeros(2)}}}},
        "choose: --state-dict model.model.model",
    ),
    "a state dict under another key": (
        {"net": {"a": torch.zeros(2)}, "epoch": 3},
        "choose: --state-dict net",
    ),
    "two state dicts": ({"model": {"a": torch.zeros(2)}, "module": {}}, "holds several state dicts"),
    "a name of nothing": ({"": torch.zeros(2)}, "tensor '': a name that safetensors does not allow"),
    "the name __metadata__": ({"__metadata__": torch.zeros(2)}, "a name that safetensors does not allow"),
    "half a character": ({"\ud800": torch.zeros(2)}, "is not valid Unicode"),
    "complex128": ({"a": torch.zeros(2, dtype=torch.complex128)}, "a dtype that safetensors does not have"),
    "a conjugated view": ({"a": torch.zeros(2, dtype=torch.complex64).conj()}, "conjugates or negates"),
    "a negated view": ({"a": torch.zeros(2, dtype=torch.complex64).conj().imag}, "conjugates or negates"),
    "a sparse tensor": ({"a": torch.zeros(2).to_sparse()}, "holds a sparse tensor"),
    "a sparse tensor by rows": (lambda: {"a": torch.zeros(2, 2).to_sparse_csr()}, "holds a sparse tensor"),
    "a nested tensor": (
        lambda: {"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
        "holds a nested tensor",
    ),
    "a quantised tensor": (
        lambda: {"a": torch._empty_affine_quantized([2], scale=0.1, zero_point=0, dtype=torch.qint8)},
        "holds a quantised tensor",
    ),
    "a tensor without data": ({"a": torch.zeros(2, device="meta")}, "holds a tensor without data"),
    "an expanded tensor": ({"a": torch.zeros(1).expand(5)}, "overlap: found strides (0,)"),
    "an unfolded tensor": ({"a": torch.zeros(9).unfold(0, 3, 1)}, "a view whose elements overlap"),
    "65 dimensions": ({"a": torch.zeros((1,) * 65)}, "expected at most 64, found 65"),
    "a whole module": (torch.nn.Linear(2, 2), "holds an object that is not a tensor: 'torch.nn.modules"),
    "a module in place of a tensor": ({"a": torch.nn.Linear(2, 2)}, "holds an object that is not a tensor"),
    "bytes in place of a tensor": ({"a": torch.zeros(2), "b": b"raw"}, "'_codecs.encode'"),
    "a set in place of a tensor": ({"a": torch.zeros(2), "b": {1, 2}}, "'__builtin__.set'"),
    "a namespace": (Namespace(), "'argparse.Namespace'; save the state dict alone"),
    "code in place of a tensor": ({"a": torch.zeros(2), "b": Runs()}, "not a tensor: 'posix.mkdir'"),
    "code in place of a state dict": (Runs(), "not a tensor: 'posix.mkdir'"),
    "code in a list": ([Runs()], "not a state dict: found a list"),
}

SHARED = torch.arange(96.0).view(2, 48)
TAKEN: dict[str, object] = {
    "names of control characters": {**SMALL, "\x1b[2J\u202e[red]": torch.zeros(2)},
    "a name of 10 kB": {**SMALL, "n" * 10_000: torch.zeros(2)},
    "code beside the state dict": {"state_dict": SMALL, "hooks": Runs()},
    "a namespace beside the state dict": {"state_dict": SMALL, "args": Namespace(lr=1)},
    "extra state that is code": {**SMALL, "a._extra_state": Runs()},
    "two tensors of one storage": {**SMALL, "a": SHARED, "b": SHARED},
    "overlapping views of one storage": {**SMALL, "a": SHARED[:, :40], "b": SHARED[:, 8:]},
    "an empty view beyond its storage": {**SMALL, "a": torch.zeros(0)},
    "a transposed tensor": {**SMALL, "block.weight": SMALL["block.weight"].T.contiguous().T},
}

FOREIGN = "holds an object that is not a tensor"
ROWS = [
    *refused_files(ARCHIVES, BAD),
    *refused_files({name: (saved(content), words) for name, (content, words) in CONTENTS.items()}, BAD),
    refused("code in each role", saved({"a": Runs()}), BAD, FOREIGN, lines=given(BAD)),
    *(
        refused(
            f"an archive that is called bad{suffix}",
            saved(SMALL, f"bad{suffix}"),
            f"bad{suffix}",
            "a PyTorch pickle, not a safetensors file",
            lines=given(f"bad{suffix}", [AS_FINETUNED]),
        )
        for suffix in (".safetensors", "")
    ),
    *(
        accepted(name, saved(content), lines=[f"{AS_FINETUNED} --partial".format(BAD)])
        for name, content in TAKEN.items()
    ),
    accepted("20,000 records that nothing names", many_records, lines=given(BAD, [AS_FINETUNED])),
]
