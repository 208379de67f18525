"""Features for `cka`: .npy and .safetensors files that are malformed, or have no matrices."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.catalogue.table import Make, Row, accepted, both, file, refused

BAD, GOOD = "bad.npy", "good.npy"
LINES = ("cka good.npy bad.npy", "cka bad.npy good.npy --format json", "cka bad.npy bad.npy")
MATRIX = np.arange(12, dtype="<f4").reshape(4, 3) ** 2


def npy(array: np.ndarray, **options: bool) -> bytes:
    written = io.BytesIO()
    np.save(written, array, **options)
    return written.getvalue()


def header(text: str, data: bytes = bytes(48), length: int | None = None, version: bytes = b"\1\0") -> bytes:
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + version
        + size.to_bytes(2 if version == b"\1\0" else 4, "little")
        + text.encode()
        + data
    )


def described(
    descr: str = "<f4", order: str = "False", shape: str = "(4, 3)", data: bytes = bytes(48)
) -> bytes:
    return header(f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}", data)


def terabyte() -> None:
    Path(BAD).write_bytes(described(shape="(4, 3)"))
    os.truncate(BAD, 1 << 40)


nonfinite = MATRIX.copy()
nonfinite[3, 2] = np.nan
whole = npy(MATRIX)
CONTENTS: dict[str, tuple[bytes | Make, str]] = {
    "nothing": (b"", "not an .npy file"),
    "noise": (b"\xff" * 40, "not an .npy file"),
    "text": (b"1,2\n3,4\n" * 9, "text, not weights"),
    "a magic alone": (b"\x93NUMPY", "unknown version"),
    "a version of tomorrow": (header("{}", version=b"\4\0"), "unknown version"),
    "a header that is cut short": (whole[:40], "cut short"),
    "a header of 4 GB": (header("{}", version=b"\2\0", length=2**32 - 1), "too long"),
    "a header of many brackets": (header("(" * 9000), "malformed"),
    "a header of code": (header("__import__('os').system('id')"), "malformed"),
    "a header without a shape": (header("{'descr': '<f4', 'fortran_order': False, }"), "malformed"),
    "a header with a field twice": (
        header("{'descr': '<f4', 'descr': '<f4', 'shape': (4, 3), }"),
        "malformed",
    ),
    "a structured array": (npy(np.zeros(4, [("a", "<f4")])), "structured"),
    "data that are cut short": (whole[:-1], "truncated"),
    "more data": (whole + b"\0", "bytes follow"),
    "a size that lies": (described(shape="(999999999999, 3)"), "truncated"),
    "sizes that overflow": (described(shape=f"({10**17}, {10**17})"), "truncated"),
    "a terabyte": (terabyte, "bytes follow"),
    "pickled objects": (npy(np.array([["a", None]], dtype=object), allow_pickle=True), "pickled objects"),
    "Fortran order": (npy(np.asfortranarray(MATRIX)), "Fortran order"),
    "integers": (npy(MATRIX.astype("<i8")), "not floating-point"),
    "complex numbers": (npy(MATRIX.astype("<c8")), "not floating-point"),
    "bfloat16": (described("<V2", data=bytes(24)), "not floating-point"),
    "no rows": (npy(MATRIX[:0]), "too few samples"),
    "one row": (npy(MATRIX[:1]), "too few samples"),
    "no columns": (npy(MATRIX[:, :0]), "too few samples"),
    "a vector": (npy(MATRIX[0]), "no matrix"),
    "a cube": (npy(MATRIX.reshape(2, 2, 3)), "no matrix"),
    "NaN": (npy(nonfinite), "has NaN or Inf"),
    "Inf in another byte order": (npy(np.where(MATRIX == 4, np.inf, MATRIX).astype(">f2")), "has NaN or Inf"),
    "a FIFO": (lambda: os.mkfifo(BAD), "not a regular file"),
    "a broken link": (lambda: Path(BAD).symlink_to("gone"), "broken link"),
    "a link in a circle": (lambda: Path(BAD).symlink_to(BAD), "broken link"),
    "a path that does not exist": (lambda: None, "no such file"),
}


def made(content: bytes | Make, path: str = BAD) -> Make:
    return both(file(whole, GOOD), content if callable(content) else file(content, path))


def models(*others: Make) -> Make:
    """The folders `a` and `b` with two blocks each, then these."""
    blocks = [
        file(npy(MATRIX * (1 + number)), f"{place}/{number}.npy") for place in "ab" for number in (1, 2)
    ]
    return both(*blocks, *others)


def tensors(path: str, **blocks: torch.Tensor) -> Make:
    return lambda: save_file(blocks, path)


OF_MODELS: dict[str, tuple[Make, str, str, int]] = {
    # what is made, the command line, what it says, its exit code
    "one file": (made(whole), "cka good.npy", "too few files", 2),
    "a model that is not there": (
        made(tensors("fa.safetensors", a=torch.ones(4, 2), b=torch.eye(4))),
        "cka fa.safetensors nope",
        "no such file or folder",
        2,
    ),
    "files of other samples": (made(npy(MATRIX[:3])), "cka good.npy bad.npy", "other samples", 1),
    "files that are matched": (
        made(whole),
        "cka good.npy bad.npy --matching",
        "--matching compares models",
        2,
    ),
    "a file among models": (models(file(whole, GOOD)), "cka a good.npy", "a single file", 2),
    "an empty folder": (models(lambda: Path("c").mkdir()), "cka a c", "has no features", 1),
    "a folder of other files": (models(file(b"x", "c/x.txt")), "cka c a", "has no features", 1),
    "a folder with a bad file": (models(file(b"x" * 20, "b/3.npy")), "cka a b", "b/3.npy", 1),
    "other blocks": (models(file(whole, "b/3.npy")), "cka a b --matching", "do not match", 1),
    "one model that is matched": (models(), "cka a --matching", "nothing to match", 1),
    "tensors that are no matrices": (
        models(tensors("c.safetensors", x=torch.zeros(4))),
        "cka a c.safetensors",
        "no matrix",
        1,
    ),
    "tensors of integers": (
        models(tensors("c.safetensors", x=torch.zeros(4, 3, dtype=torch.int8))),
        "cka a c.safetensors",
        "another dtype",
        1,
    ),
    "a page that is none": (models(), "cka a b --html a.txt", "unsupported file extension", 2),
    "a picture in no folder": (models(), "cka a b --plot c/a.png", "does not exist", 1),
}

ROWS: list[Row] = [
    *(refused(name, made(content), words, lines=LINES) for name, (content, words) in CONTENTS.items()),
    *(
        refused(name, make, words, lines=[line], code=code)
        for name, (make, line, words, code) in OF_MODELS.items()
    ),
    accepted("a good matrix", made(npy(MATRIX.astype(">f8"))), lines=LINES),
    accepted("models of other blocks", models(file(whole, "b/3.npy")), lines=["cka a b"]),
    accepted(
        "a block of an evil name",
        models(file(whole, "c/\x1b[2J\u202e.npy")),
        lines=["cka a c", "cka c --format csv"],
    ),
]
