"""What a user has no rights to: files and folders to read, and folders to write in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.catalogue.adapters import CONFIG, WEIGHTS, adapter
from tests.catalogue.files import INDEX, WHOLE, B, beside, link, shards
from tests.catalogue.reports import READ as READERS
from tests.catalogue.reports import REPORT, made
from tests.catalogue.table import AS_FINETUNED, BAD, ROLES, Make, Row, both, file, given, tensors

DENIED = "Permission denied"


def opened() -> None:
    """Has others read, and write in, everything in the working folder."""
    for parent, _, names in os.walk("."):
        os.chmod(parent, 0o777)
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                os.chmod(os.path.join(parent, name), 0o666)


def denied(name: str, make: Make, closed: str, *words: str, lines: Sequence[str], mode: int = 0) -> Row:
    """An input of which a file or folder has this mode."""
    closing = both(make, opened, lambda: os.chmod(closed, mode))
    return Row(name, closing, tuple(lines), 1, words, as_nobody=True)


IN = given("in", [AS_FINETUNED])
READ: dict[str, tuple[Make, str, Sequence[str]]] = {
    "a file": (tensors(BAD), BAD, given(BAD)),
    "a state dict": (file("", "bad.pt"), "bad.pt", given("bad.pt")),
    "a folder": (tensors(WHOLE), "in", given("in", ROLES)),
    "a file in a folder": (tensors(WHOLE), WHOLE, IN),
    "a shard": (shards(), f"in/{B}", IN),
    "an index": (shards(), INDEX, IN),
    **{
        f"{name} beside the weights": (beside(f"in/{name}"), f"in/{name}", IN)
        for name in ("config.json", "tokenizer.json", "model_index.json", "vocab.txt", "README.md")
    },
    "a folder beside the weights": (beside("in/sub/vocab.txt"), "in/sub", IN),
    "the weights of an adapter": (adapter(), WEIGHTS, IN),
    "the configuration of an adapter": (adapter(), CONFIG, IN),
    "a report": (file("{}", "bad.json"), "bad.json", READERS),
    "an output": (made(), "out", ["verify out", "report out"]),
    "the weights of an output": (made(), "out/model.safetensors", ["verify out"]),
    "the report of an output": (made(), REPORT, ["verify out", "report out"]),
}
BEHIND: dict[str, tuple[Make, str, Sequence[str]]] = {
    "a file": (tensors(WHOLE), "in", given(WHOLE)),
    "a file that a link leads to": (both(tensors(WHOLE), link(WHOLE)), "in", given(BAD)),
    "a side file that a link leads to": (
        both(tensors(WHOLE), file("{}", "x/config.json"), link("../x/config.json", "in/config.json")),
        "x",
        IN,
    ),
}


def folder(path: str) -> Make:
    return lambda: Path(path).mkdir()


def shared(name: str) -> Make:
    """An output, or the report of one, in a folder of somebody else's."""
    return both(made(), folder("shared"), lambda: Path(name).rename(f"shared/{Path(name).name}"))


STICKY = 0o1777
NOT_REPLACED = "this user may not replace it"
EDIT = "edit base.safetensors finetuned.safetensors"
NOT_WRITABLE = "folder is not writable"
WRITTEN: dict[str, tuple[Make, str, int, str, str]] = {
    "the folder of an output": (folder("shut"), "shut", 0o555, f"{EDIT} -o shut/out", NOT_WRITABLE),
    "the folder of a file": (folder("shut"), "shut", 0o555, f"{EDIT} -o shut/out.safetensors", NOT_WRITABLE),
    "a folder above an output": (folder("shut"), "shut", 0, f"{EDIT} -o shut/in/out", "shut"),
    "the folder of a report": (
        folder("shut"),
        "shut",
        0o555,
        f"{EDIT} -o out --report shut/r.json",
        NOT_WRITABLE,
    ),
    "an output to replace": (made(), "out", 0, f"{EDIT} -o out --overwrite", "out"),
    "an output to move aside": (made(), "out", 0o555, f"{EDIT} -o out --overwrite", NOT_REPLACED),
    "an output of another user in a sticky folder": (
        shared("out"),
        "shared",
        STICKY,
        f"{EDIT} -o shared/out --overwrite",
        NOT_REPLACED,
    ),
    "a file of another user in a sticky folder": (
        shared("out/model.safetensors"),
        "shared",
        STICKY,
        f"{EDIT} -o shared/model.safetensors --overwrite",
        NOT_REPLACED,
    ),
    "a report of another user in a sticky folder": (
        shared("out/monosoup_report.json"),
        "shared",
        STICKY,
        f"{EDIT} -o new --overwrite --report shared/monosoup_report.json",
        NOT_REPLACED,
    ),
    "unfinished work": (folder("out.partial"), "out.partial", 0, f"{EDIT} -o out", "out.partial"),
}

ROWS = [
    *(
        denied(f"to read {name}", make, path, path, DENIED, lines=lines)
        for name, (make, path, lines) in READ.items()
    ),
    *(
        denied(f"to enter the folder of {name}", make, path, DENIED, lines=lines)
        for name, (make, path, lines) in BEHIND.items()
    ),
    denied("to enter a folder", tensors(WHOLE), "in", "in/", DENIED, lines=IN, mode=0o644),
    denied("to list a folder", tensors(WHOLE), "in", "in", DENIED, lines=IN, mode=0o711),
    *(
        denied(f"to write in {name}", make, path, words, lines=[line], mode=mode)
        for name, (make, path, mode, line, words) in WRITTEN.items()
    ),
]
