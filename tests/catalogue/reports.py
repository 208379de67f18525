"""What `report` and `compare` are given in place of a report."""

from __future__ import annotations

import os
from pathlib import Path

from tests.catalogue.table import Make, file, refused

BAD = "bad.json"
LINES = ("report bad.json", "compare bad.json bad.json", "report bad.json --format csv")
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "noise": b"\xff\xfe",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "an object": b"{}",
    "half an object": b'{"a":',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
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
    "a link to itself": lambda: Path(BAD).symlink_to(BAD),
    "a file that is not there": lambda: None,
}
ROWS = [
    *(
        refused(f"a report of {name}", file(content, BAD), BAD, lines=LINES)
        for name, content in CONTENTS.items()
    ),
    *(refused(f"a report that is {name}", make, BAD, lines=LINES) for name, make in SPECIAL.items()),
]
