"""What differs between what two runs of a case left behind."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

DROPPED = [
    (re.compile(rb'("seconds": )[-+.\de]+'), rb"\g<1>0"),
    (re.compile(rb'\s*"estimated_seconds": [^,\n]+,'), b""),
    (re.compile(rb'("tool": \{\s*"name": "monosoup",\s*"version": )"[^"]*"'), rb'\g<1>"0"'),
    (re.compile(rb"(Made with `monosoup` )\S+:"), rb"\g<1>0:"),
]
DROPPED_AFTER_A_KILL = [(re.compile(rb'("bytes_(?:read|written)": )\d+'), rb"\g<1>0")]
MAX_PATHS = 4
NUMBER = re.compile(rb"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TIME = re.compile(rb".*[0-9] [kMG]?B/s.*|time .* estimated from .*")
"""The line of a table that tells how long the run took, or will take."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def find_differences(old, new, case) -> Iterator[str]:
    """In words: of exit codes, then weights, then standard outputs, then other files."""
    if old.codes != new.codes:
        yield f"exit codes {old.codes} → {new.codes}\n{indented(new.stderr)}"
        return
    if list(case.codes) != old.codes:
        yield f"the old tree has exit codes {old.codes}, not {case.codes}\n{indented(old.stderr)}"
        return
    files = [paths_in(outcome.folder) for outcome in (old, new)]
    names = sorted(files[0].keys() | files[1].keys(), key=lambda name: (not is_weights(name), name))
    differences = [
        *(of_paths(name, old, new, files, case) for name in names if is_weights(name)),
        *(
            of_output(normalise(before, case), normalise(after, case), f"stdout of command {number}")
            for number, (before, after) in enumerate(zip(old.outs, new.outs, strict=True), 1)
        ),
        *(of_paths(name, old, new, files, case) for name in names if not is_weights(name)),
    ]
    yield from filter(None, differences)


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def of_paths(name: str, old, new, files, case) -> str | None:
    """Whether a path is there in both folders, with the same permissions and content."""
    if name not in files[0] or name not in files[1]:
        return f"{name}: only in the {'old' if name in files[0] else 'new'}"
    if files[0][name] != files[1][name]:
        return f"{name}: mode {files[0][name]} → {files[1][name]}"
    paths = [outcome.folder / name for outcome in (old, new)]
    if paths[0].is_symlink() or not paths[0].is_file():
        return None
    difference = of_files(name, *paths, case)
    return difference and f"{name}: {difference}"


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()[-4:])


def normalise(content: bytes, case) -> bytes:
    """The text without what may differ."""
    for pattern, replacement in [*DROPPED, *(DROPPED_AFTER_A_KILL if case.is_interrupted else [])]:
        content = pattern.sub(replacement, content)
    return content


def paths_in(folder: Path) -> dict[str, str]:
    """Relative path → permissions; of a link, where it leads."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            mode = os.readlink(path) if path.is_symlink() else oct(path.stat().st_mode)
            found[str(path.relative_to(folder))] = mode
    return found


def of_output(old: bytes, new: bytes, name: str) -> str | None:
    """Of JSON and CSV any difference; of tables, in which words may change, the numbers."""
    if old == new:
        return None
    if old[:1] in (b"{", b"["):
        return f"{name}: {of_json(old, new)}"
    if b"," in old.partition(b"\n")[0]:
        return f"{name}: {of_lines(old, new)}"
    before, after = (NUMBER.findall(TIME.sub(b"", table)) for table in (old, new))
    if before == after:
        return None
    number = next((n for n, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), -1)
    return f"{name}: {number_at(before, number)} → {number_at(after, number)}"


def number_at(numbers: list[bytes], index: int) -> str:
    return numbers[index].decode() if numbers else "no number"


def of_lines(old: bytes, new: bytes) -> str:
    before, after = old.split(b"\n"), new.split(b"\n")
    for number, (one, other) in enumerate(zip(before, after, strict=False), 1):
        if one != other:
            equal = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
            start = max(equal - 20, 0)
            parts = [line[start : start + 100].decode(errors="replace") for line in (one, other)]
            return f"line {number}, from byte {start}: {' → '.join(parts)}"
    return f"{len(before)} lines → {len(after)} lines"


def of_files(name: str, old: Path, new: Path, case) -> str | None:
    before, after = old.read_bytes(), new.read_bytes()
    if before == after:
        return None
    if is_weights(name):
        return of_tensors(before, after)
    before, after = (normalise(content, case) for content in (before, after))
    if before == after:
        return None
    if name.endswith(".json"):
        return of_json(before, after)
    return of_lines(before, after)


def of_json(old: bytes, new: bytes) -> str:
    try:
        before, after = (json.loads(text) for text in (old, new))
    except ValueError:
        return of_lines(old, new)
    return of_values(before, after) or "the same JSON in another layout"


def of_values(old: object, new: object) -> str:
    """The JSON paths of the first differences, with both values."""
    differences = list(islice(value_differences(old, new, ""), MAX_PATHS + 1))
    return "; ".join([*differences[:MAX_PATHS], *["…"] * (len(differences) > MAX_PATHS)])


def value_differences(old: object, new: object, path: str) -> Iterator[str]:
    name = path.removeprefix(".") or "the whole"
    if isinstance(old, dict) and isinstance(new, dict):
        shared = [key for key in old if key in new]
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in shared:
                yield f"{path}.{key}: only in the {'old' if key in old else 'new'}".removeprefix(".")
            else:
                yield from value_differences(old[key], new[key], f"{path}.{key}")
        if shared != [key for key in new if key in old]:
            yield f"{name}: keys in another order"
    elif isinstance(old, list) and isinstance(new, list):
        for number, pair in enumerate(zip(old, new, strict=False)):
            yield from value_differences(*pair, f"{path}[{number}]")
        if len(old) != len(new):
            yield f"{name}: {len(old)} entries → {len(new)}"
    elif type(old) is not type(new) or old != new:
        yield f"{name}: {str(old)[:200]} → {str(new)[:200]}"


def of_tensors(old: bytes, new: bytes) -> str:
    """The first tensor that differs, in the order of the old file, or what differs in the header."""
    (headers, starts) = zip(*(header_of(content) for content in (old, new)), strict=True)
    difference = of_values(*headers)
    if difference:
        return f"header: {difference}"
    entries = sorted(
        ((entry["data_offsets"], name) for name, entry in headers[0].items() if name != "__metadata__")
    )
    for (start, stop), name in entries:
        before, after = (
            content[first + start : first + stop] for content, first in zip((old, new), starts, strict=True)
        )
        if before != after:
            return f"tensor {name}: {of_elements(before, after, headers[0][name])}"
    return "the layout of the header, or what follows the tensors"


def header_of(content: bytes) -> tuple[dict, int]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length


def of_elements(old: bytes, new: bytes, entry: dict) -> str:
    """How many elements differ, and the first of them."""
    dtype = DTYPES.get(entry["dtype"], torch.uint8)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[dtype.itemsize]
    before, after = (torch.frombuffer(bytearray(part), dtype=bits) for part in (old, new))
    differing = (before != after).nonzero().flatten()
    first = int(differing[0])
    values = " → ".join(repr(part.view(dtype)[first].item()) for part in (before, after))
    return f"{len(differing)} of {len(before)} elements ({entry['dtype']}), at {first}: {values}"
