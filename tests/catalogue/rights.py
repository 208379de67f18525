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

EDIT = "edit base.safetensors finetuned.safetensors"
DENIED = "Permission denied"
NOT_WRITABLE = "folder is not writable"


def closed(path: str, mode: int = 0) -> Make:
    """Takes rights to a file or folder away."""
    return lambda: os.chmod(path, mode)


def denied(name: str, make: Make, *words: str, lines: Sequence[str]) -> Row:
    return Row(name, both(make, lambda: os.chmod(".", 0o777)), tuple(lines), 1, words, as_nobody=True)


IN = given("in", [AS_FINETUNED])
READ: dict[str, tuple[Make, str, Sequence[str]]] = {
    "a file": (both(tensors(BAD), closed(BAD)), BAD, given(BAD)),
    "a state dict": (both(file("", "bad.pt"), closed("bad.pt")), "bad.pt", given("bad.pt")),
    "what a link leads to": (both(tensors("x"), closed("x"), link("x")), BAD, given(BAD)),
    "a folder": (both(tensors(WHOLE), closed("in")), "in", given("in", ROLES)),
    "what is in a folder": (both(tensors(WHOLE), closed("in", 0o644)), "in", IN),
    "the names in a folder": (both(tensors(WHOLE), closed("in", 0o711)), "in", IN),
    "a file in a folder": (both(tensors(WHOLE), closed(WHOLE)), WHOLE, IN),
    "a file behind a folder": (both(tensors(WHOLE), closed("in")), WHOLE, given(WHOLE)),
    "a shard": (both(shards(), closed(f"in/{B}")), B, IN),
    "an index": (both(shards(), closed(INDEX)), INDEX, IN),
    "a configuration": (both(beside("in/config.json"), closed("in/config.json")), "in/config.json", IN),
    "a tokenizer": (both(beside("in/tokenizer.json"), closed("in/tokenizer.json")), "in/tokenizer.json", IN),
    "a file to copy": (both(beside("in/vocab.txt"), closed("in/vocab.txt")), "in/vocab.txt", IN),
    "a folder to copy": (both(beside("in/sub/vocab.txt"), closed("in/sub")), "in/sub", IN),
    "the weights of an adapter": (both(adapter(), closed(WEIGHTS)), WEIGHTS, IN),
    "the configuration of an adapter": (both(adapter(), closed(CONFIG)), CONFIG, IN),
    "a report": (both(file("{}", "bad.json"), closed("bad.json")), "bad.json", READERS),
    "an output": (both(made(), closed("out")), "out", ["verify out"]),
    "the weights of an output": (
        both(made(), closed("out/model.safetensors")),
        "out/model.safetensors",
        ["verify out"],
    ),
    "the report of an output": (both(made(), closed(REPORT)), REPORT, ["verify out", "report out"]),
}


def folder(path: str, mode: int) -> Make:
    return both(lambda: Path(path).mkdir(), closed(path, mode))


WRITTEN: dict[str, tuple[Make, str, str]] = {
    "the folder of an output": (folder("shut", 0o555), f"{EDIT} -o shut/out", NOT_WRITABLE),
    "the folder of a file": (folder("shut", 0o555), f"{EDIT} -o shut/out.safetensors", NOT_WRITABLE),
    "a folder above an output": (folder("shut", 0), f"{EDIT} -o shut/in/out", "shut"),
    "the folder of a report": (folder("shut", 0o555), f"{EDIT} -o out --report shut/r.json", NOT_WRITABLE),
    "an output to replace": (both(made(), closed("out")), f"{EDIT} -o out --overwrite", "out"),
    "unfinished work": (folder("out.partial", 0), f"{EDIT} -o out", "out.partial"),
}

ROWS = [
    *(denied(f"{name}, to read", make, path, DENIED, lines=lines) for name, (make, path, lines) in READ.items()),
    *(denied(f"{name}, to write", make, words, lines=[line]) for name, (make, line, words) in WRITTEN.items()),
]
