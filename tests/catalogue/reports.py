"""Reports that are none, for every command that reads one, and outputs that are not as their report says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monosoup_cli.cli.app import main
from tests.catalogue.table import Make, Row, both, file, refused, sparse

BAD = "bad.json"
READ = (
    "report bad.json",
    "report bad.json --format csv",
    "compare bad.json bad.json",
    "verify finetuned.safetensors --report bad.json",
)
DEEP = 100_000
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "noise": b"\xff\xfe",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "an object": b"{}",
    "half an object": b'{"a":',
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "closed deep lists": b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "NaN": b'{"a": NaN}',
    "1e999": b'{"a": 1e999}',
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "another version": b'{"schema_version": 2}',
    "a version of an object": b'{"schema_version": {}}',
    "a version of text": b'{"schema_version": "\\u001b[2J"}',
    "a scores file": b'{"a": 0.5}',
    "a megabyte of letters": b'"' + b"x" * 1_000_000 + b'"',
}
SPECIAL: dict[str, Make] = {
    "a FIFO": lambda: os.mkfifo(BAD),
    "a folder": lambda: Path(BAD).mkdir(),
    "a device": lambda: Path(BAD).symlink_to("/dev/zero"),
    "the memory of the process": lambda: Path(BAD).symlink_to("/proc/self/mem"),
    "a link to itself": lambda: Path(BAD).symlink_to(BAD),
    "a file that is not there": lambda: None,
    "a file of a terabyte": sparse({}, 1 << 40, BAD),
}

# -- outputs --------------------------------------------------------------------------------------------

REPORT = "out/monosoup_report.json"
WEIGHTS = "out/model.safetensors"
Change = Callable[[dict[str, Any]], object]


def made(*changes: Make) -> Make:
    """Makes an output, then these."""

    def make() -> None:
        assert main(["edit", "base.safetensors", "finetuned.safetensors", "-o", "out", "--quiet"]) == 0

    return both(make, *changes)


def forged(change: Change) -> Make:
    """Makes an output, and changes its report."""

    def make() -> None:
        report = json.loads(Path(REPORT).read_text())
        change(report)
        Path(REPORT).write_text(json.dumps(report))

    return made(make)


def named(name: object) -> Change:
    return lambda report: report["output"]["files"][0].update(name=name)


NO_REPORT = "is not a monosoup report"
LEADS_OUT = "names a file outside of the output"
FORGED: dict[str, tuple[Change, str]] = {
    "a file outside": (named("../finetuned.safetensors"), LEADS_OUT),
    "a file of the system": (named("/etc/hostname"), LEADS_OUT),
    "a file of a number": (named(7), NO_REPORT),
    "a file of nothing": (named(""), LEADS_OUT),
    "a file of an evil name": (named("\x1b[2J\u202e/\0"), LEADS_OUT),
    "a size of text": (lambda report: report["output"]["files"][0].update(bytes="x"), NO_REPORT),
    "a size of 4000 digits": (
        lambda report: report["output"]["files"][0].update(bytes=10**4000),
        "numbers out of range",
    ),
    "a digest of text": (lambda report: report["output"]["files"][0].update(sha256="x"), "no SHA-256"),
    "no files": (lambda report: report["output"].update(files=[]), "no file of weights"),
    "files of numbers": (lambda report: report["output"].update(files=[7]), NO_REPORT),
    "no output": (lambda report: report.pop("output"), "wrote no checkpoint"),
    "layers of an object": (lambda report: report.update(layers={}), NO_REPORT),
    "a layer twice": (lambda report: report["layers"].append(report["layers"][0]), "two layers"),
    "a dtype of an evil name": (lambda report: report["layers"][0].update(dtype="\x1b[2J"), "dtype"),
    "a shape of text": (lambda report: report["layers"][0].update(shape="x"), NO_REPORT),
}


def replaced(path: str, *makes: Make) -> Make:
    """Makes an output, with these in place of one of its files."""
    return made(lambda: Path(path).unlink(), *makes)


def in_place_of(path: str) -> dict[str, Make]:
    return {
        "a FIFO": replaced(path, lambda: os.mkfifo(path)),
        "a folder": replaced(path, lambda: Path(path).mkdir()),
        "a device": replaced(path, lambda: Path(path).symlink_to("/dev/zero")),
        "a broken link": replaced(path, lambda: Path(path).symlink_to("gone")),
        "nothing": replaced(path),
        "noise": replaced(path, file(b"\xff" * 40, path)),
        "a terabyte": replaced(path, sparse({}, 1 << 40, path)),
    }


VERIFIED = ["verify out", "verify out --inputs", "verify out --again --quiet"]


def unverified(name: str, make: Make, *words: str) -> Row:
    return refused(f"an output with {name}", make, *words, lines=VERIFIED)


ROWS = [
    *(
        refused(f"a report of {name}", file(content, BAD), BAD, lines=READ)
        for name, content in CONTENTS.items()
    ),
    *(refused(f"a report that is {name}", make, BAD, lines=READ) for name, make in SPECIAL.items()),
    *(unverified(f"a report of {name}", forged(change), words) for name, (change, words) in FORGED.items()),
    *(
        unverified(f"{name} as {path}", make, path)
        for path in (WEIGHTS, REPORT)
        for name, make in in_place_of(path).items()
    ),
]
