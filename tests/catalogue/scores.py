"""What no harness left, and harnesses' files that somebody else wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.catalogue.table import Make, Row, accepted, both, file, refused, sparse

DEEP = 100_000
TIME = "2026-01-01T00-00-00.000001"
RESULTS, SAMPLES = f"bad/results_{TIME}.json", f"bad/samples_t_{TIME}.jsonl"
GOOD = both(*(file('{"id": 1, "correct": 1, "task": "t"}\n', f"{name}.jsonl") for name in ("good", "fine")))

LINES: dict[str, tuple[str, bytes, str]] = {
    # name: the file, its content, and what is said of it
    "nothing": ("bad.jsonl", b"", "has no scores"),
    "noise": ("bad.jsonl", b"\xff\xfe\n", "not valid UTF-8"),
    "noise as a table": ("bad.csv", b"id,score\n\xff\xfe\n", "not UTF-8"),
    "null": ("bad.jsonl", b"null", "is no object"),
    "deep lists": ("bad.jsonl", b"[" * DEEP, "nested too deeply"),
    "a number of 5000 digits": ("bad.jsonl", b'{"id": 1, "score": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "a number of 400 digits": ("bad.csv", b"id,score\n1," + b"9" * 400, "expected a number"),
    "NaN": ("bad.jsonl", b'{"id": 1, "score": NaN}', "the score of the id '1'"),
    "infinity": ("bad.csv", b"id,score\n1,inf", "expected a number"),
    "an evil id twice": ("bad.csv", b"id,score\n\x1b[2J,1\n\x1b[2J,1", r"\x1b[2J"),
    "an evil score": ("bad.csv", b"id,score\n1,\xe2\x80\xae\x1b[2J", "expected a number"),
    "a NUL": ("bad.csv", b"id,score\n\0,1\n\0,1", "bad.csv"),
    "a long line": ("bad.csv", b"id,score\n" + b"x" * 20_000_000, "too long"),
    "a long field": ("bad.csv", b"id,score\n" + b"x" * 200_000 + b",1", "is not CSV"),
    "an open quote": ("bad.csv", b'id,score\n"1,1\n', "is not CSV"),
    "half an object": ("bad.json", b'{"results":', "not valid JSON"),
    "another object": ("bad.json", b"{}", "no scores of a known harness"),
    "results of a list": ("bad.json", b'{"results": []}', "no scores of a known harness"),
    "a result of a number": ("bad.json", b'{"results": {"t": 7}}', "is no object"),
    "a result without metrics": ("bad.json", b'{"results": {"t": {"acc,none": "1"}}}', "has no metric"),
    "a result of true": ("bad.json", b'{"results": {"t": {"acc,none": true}}}', "has no metric"),
    "configs of a list": ("bad.json", b'{"results": {}, "configs": []}', "configs is no object"),
    "a dataset of a number": ("bad.json", b'{"dataset": 7, "metrics": {}}', "dataset is no text"),
    "a metric that is NaN": ("bad.json", b'{"dataset": "d", "metrics": {"a": NaN}}', "is NaN"),
}
RESULT = {"results": {"t": {"acc,none": 1.0}}, "n-samples": {"t": {"effective": 1}}}
OF_LM_EVAL: dict[str, tuple[Make, str]] = {
    "samples of numbers": (file("7", SAMPLES), "no sample with a doc_id"),
    "samples without a number": (file('{"acc": 1}', SAMPLES), "no sample with a doc_id"),
    "samples that are cut": (file("", SAMPLES), "not all samples are there"),
    "samples whose score is NaN": (file('{"doc_id": 7, "acc": NaN}', SAMPLES), "is NaN for the id '7'"),
    "a sample of 400 digits": (file('{"doc_id": 7, "acc": ' + "9" * 400 + "}", SAMPLES), "for the id '7'"),
    "samples of an evil name": (file('{"doc_id": "\\u001b[2J", "acc": 1.0}\n' * 2, SAMPLES), "ids twice"),
    "samples of a terabyte": (both(file("", SAMPLES), lambda: os.truncate(SAMPLES, 1 << 40)), "too large"),
}
SPECIAL: dict[str, tuple[Make, str]] = {
    "a FIFO": (lambda: os.mkfifo("bad.csv"), "not a regular file"),
    "an empty folder": (lambda: Path("bad.csv").mkdir(), "no scores of a known harness"),
    "a device": (lambda: Path("bad.csv").symlink_to("/dev/zero"), "not a regular file"),
    "a link to itself": (lambda: Path("bad.csv").symlink_to("bad.csv"), "bad.csv"),
    "not there": (lambda: None, "no such file or folder"),
    "of a terabyte": (sparse({}, 1 << 40, "bad.csv"), "too large"),
    "of three gigabytes of nothing": (sparse({}, 3_000_000_000, "bad.csv"), "too long"),
}
ROLES = ("scores {0} good.jsonl fine.jsonl", "scores good.jsonl fine.jsonl {0} --format json")


def row(name: str, make: Make, words: str, path: str) -> Row:
    return refused(f"scores of {name}", both(GOOD, make), words, lines=[role.format(path) for role in ROLES])


ROWS = [
    *(row(name, file(content, path), words, path) for name, (path, content, words) in LINES.items()),
    *(
        row(name, both(file(json.dumps(RESULT), RESULTS), make), words, "bad")
        for name, (make, words) in OF_LM_EVAL.items()
    ),
    *(row(f"a file that is {name}", make, words, "bad.csv") for name, (make, words) in SPECIAL.items()),
    accepted(
        "scores of a task that none of the others has, of an evil name",
        both(
            GOOD,
            file(
                '{"id": 1, "correct": 1, "task": "t"}\n{"id": 1, "correct": 1, "task": "\\u001b[2J"}',
                "bad.jsonl",
            ),
        ),
        "is left out",
        lines=[role.format("bad.jsonl") for role in ROLES],
    ),
]
