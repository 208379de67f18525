"""Headers of safetensors files."""

from __future__ import annotations

import os
import struct

import torch

from tests.catalogue.table import (
    AS_BASE,
    AS_FINETUNED,
    BAD,
    accepted,
    both,
    entry,
    file,
    given,
    one,
    raw,
    refused,
    refused_files,
)

NOT_JSON = "not valid JSON"
SIZES = "the shape must be a list of sizes"
TWO = "data_offsets must be two ascending integers"
NEEDS = "the entry needs dtype, shape and data_offsets"
GAP = "data_offsets leave a hole or overlap"
PARTS = '"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]%s}'


def spelled(text: str | bytes, data: bytes = bytes(8)) -> bytes:
    """A file whose header is this text in braces."""
    return raw(b"{" + (text if isinstance(text, bytes) else text.encode()) + b"}", data)


def t(**changes: str) -> bytes:
    """A file of one tensor, with this JSON in place of a value of its entry."""
    values = {"dtype": '"F32"', "shape": "[2]", "data_offsets": "[0,8]", **changes}
    inner = ",".join(f'"{name}":{value}' for name, value in values.items())
    return spelled(f'"t":{{{inner}}}')


MALFORMED = {
    "empty file": (b"", "too short: found 0 bytes"),
    "7 bytes": (b"1234567", "too short: found 7 bytes"),
    "8 bytes of nothing": (bytes(8), "does not start with '{'"),
    "noise": (b"\xff" * 40, "header length is impossible"),
    "a length of 1": (raw(b"{", length=1), NOT_JSON),
    "a length of 2^63": (raw({}, length=2**63), f"found {2**63:,}"),
    "a length of 2^64-1": (raw({}, length=2**64 - 1), f"found {2**64 - 1:,}"),
    "a length above the file": (raw({}, length=3), "at most 2, found 3"),
    "a length of big-endian": (struct.pack(">Q", 2) + b"{}", "length is impossible"),
    "a length that cuts the JSON": (raw({"t": entry()}, bytes(8), length=20), NOT_JSON),
    "a length that takes data in": (raw({"t": entry()}, bytes(8), length=66), NOT_JSON),
    "byte-order mark": (raw(b"\xef\xbb\xbf{}"), "does not start with '{'"),
    "UTF-16": (raw("{}".encode("utf-16-le")), NOT_JSON),
    "leading space": (raw(b" {}"), "does not start with '{'"),
    "a list": (raw([]), "does not start with '{'"),
    "a number": (raw(b"7"), "does not start with '{'"),
    "NUL padding": (raw(b"{}\0\0"), NOT_JSON),
    "two objects": (raw(b"{}{}"), NOT_JSON),
    "half an object": (raw(b'{"t":'), NOT_JSON),
    "a comma at the end": (spelled(PARTS % "" + ","), NOT_JSON),
    "a comment": (spelled(PARTS % "" + "/* */"), NOT_JSON),
    "single quotes": (raw(b"{'t':1}"), NOT_JSON),
    "names without quotes": (raw(b"{t:1}"), NOT_JSON),
    "a line break in a name": (spelled(PARTS.replace('"t"', '"t\n"') % ""), NOT_JSON),
    "an unknown escape": (spelled(PARTS.replace('"t"', '"\\x41"') % ""), NOT_JSON),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not valid UTF-8"),
    "UTF-8 of a surrogate": (raw(b'{"\xed\xa0\x80": 1}'), "not valid UTF-8"),
    "UTF-8 that is too long": (raw(b'{"\xc0\xaf": 1}'), "not valid UTF-8"),
    "deep lists": (raw(b'{"t":' + b"[" * 100_000), "too deeply"),
    "deep objects": (raw(b'{"t":' * 100_000), "too deeply"),
    "deep lists in an unknown field": (spelled(PARTS % (',"x":' + "[" * 5000 + "]" * 5000)), "too deeply"),
    "a number of 5000 digits": (raw(b'{"t":' + b"9" * 5000 + b"}"), NOT_JSON),
    "NaN": (raw(b'{"t": NaN}'), "NaN is not JSON"),
    "Infinity": (raw(b'{"t": -Infinity}'), "-Infinity is not JSON"),
    "a number with a zero in front": (t(shape="[02]"), NOT_JSON),
    "a number in hexadecimal": (t(shape="[0x2]"), NOT_JSON),
    "half a character": (raw(b'{"\\ud800": {}}'), "not valid Unicode"),
    "halves of a character in the wrong order": (raw(b'{"\\ude00\\ud83d": {}}'), "not valid Unicode"),
    "half a character in the metadata": (raw(b'{"__metadata__": {"k": "\\ud800"}}'), "not valid Unicode"),
    "half a character as a key of the metadata": (raw(b'{"__metadata__": {"\\ud800": ""}}'), "Unicode"),
    "1e400 in an unknown field": (spelled(PARTS % ',"x":1e400'), "a number out of range"),
    "400 digits in an unknown field": (spelled(PARTS % (',"x":' + "9" * 400)), "a number out of range"),
    "lists 126 deep in an unknown field": (spelled(PARTS % (',"x":' + "[" * 126 + "]" * 126)), "too deeply"),
    "half a character in an unknown field": (spelled(PARTS % r',"x":"\udfff"'), "not valid Unicode"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__ must map names to strings"),
    "metadata of null": (raw({"__metadata__": {"a": None}}), "__metadata__ must map"),
    "metadata of objects": (raw({"__metadata__": {"a": {"b": "c"}}}), "__metadata__ must map"),
    "metadata as a list": (raw({"__metadata__": []}), "__metadata__ must map"),
    "metadata as a string": (raw({"__metadata__": "pt"}), "__metadata__ must map"),
    "metadata as false": (raw({"__metadata__": False}), "__metadata__ must map"),
    "a tensor called __metadata__": (raw({"__metadata__": entry()}, bytes(8)), "__metadata__ must map"),
    "a name twice": (raw(b'{"t":{},"t":{}}'), "names 't' twice"),
    "a name twice, escaped": (raw(b'{"t":{},"\\u0074":{}}'), "names 't' twice"),
    "a name twice, as a pair of surrogates": (
        spelled('"\U0001f600":{},"\\ud83d\\ude00":{}'),
        "names '\U0001f600' twice",
    ),
    "a name twice, once empty": (
        spelled(
            '"t":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            '"t":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}'
        ),
        "names 't' twice",
    ),
    "two metadata": (raw(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "a key of the metadata twice": (raw(b'{"__metadata__":{"a":"","a":""}}'), "names 'a' twice"),
    "a key of an entry twice": (spelled(PARTS % ',"dtype":"I32"'), "names 'dtype' twice"),
    "a key of an unknown field twice": (spelled(PARTS % ',"x":{"a":1,"a":2}'), "names 'a' twice"),
    "an entry that is a number": (raw({"t": 1}), NEEDS),
    "an entry that is null": (raw({"t": None}), NEEDS),
    "an entry that is a list": (raw({"t": ["F32", [2], [0, 8]]}), NEEDS),
    "an entry without a dtype": (raw({"t": {"shape": [], "data_offsets": [0, 0]}}), NEEDS),
    "an entry without a shape": (raw({"t": {"dtype": "F32", "data_offsets": [0, 0]}}), NEEDS),
    "an entry without offsets": (raw({"t": {"dtype": "F32", "shape": []}}), NEEDS),
    "an entry of capitals": (raw({"t": {"DTYPE": "F32", "SHAPE": [2], "DATA_OFFSETS": [0, 8]}}), NEEDS),
    "overlap": (raw({"a": entry(offsets=[0, 8]), "t": entry(offsets=[4, 12])}, bytes(12)), f"'t': {GAP}"),
    "the same place": (raw({"a": entry(), "t": entry()}, bytes(8)), GAP),
    "one inside the other": (
        raw({"a": entry(shape=[4], offsets=[0, 16]), "t": entry(offsets=[4, 12])}, bytes(16)),
        GAP,
    ),
    "an empty one inside the other": (
        raw({"a": entry(), "t": entry(shape=[0], offsets=[4, 4])}, bytes(8)),
        GAP,
    ),
    "a hole": (raw({"a": entry(), "t": entry(offsets=[12, 20])}, bytes(20)), "to start at 8, found 12"),
    "a hole at the start": (raw({"t": entry(offsets=[4, 12])}, bytes(12)), "to start at 0, found 4"),
    "a hole before an empty one": (raw({"a": entry(), "t": entry(shape=[0], offsets=[9, 9])}, bytes(9)), GAP),
    "only an empty one, beyond the file": (
        raw({"t": entry(shape=[0], offsets=[2**40, 2**40])}),
        "to start at 0",
    ),
    "reversed offsets": (one(offsets=[8, 0]), TWO),
    "negative offsets": (one(offsets=[-8, 0]), TWO),
    "offsets of minus zero": (t(data_offsets="[-0,8]"), TWO),
    "offsets as floats": (one(offsets=[0.0, 8.0]), TWO),
    "offsets with exponents": (t(data_offsets="[0,8e0]"), TWO),
    "offsets as words": (one(offsets=["0", "8"]), TWO),
    "offsets as booleans": (one("U8", [1], [False, True]), TWO),
    "offsets as lists": (one(offsets=[[0], [8]]), TWO),
    "offsets as an object": (one(offsets={"start": 0, "stop": 8}), TWO),
    "offsets of null": (one(offsets=None), TWO),
    "no offsets": (one(offsets=[]), TWO),
    "one offset": (one(offsets=[8]), TWO),
    "three offsets": (one(offsets=[0, 8, 8]), TWO),
    "offsets of 2^64": (one(offsets=[2**64, 2**64 + 8]), f"to start at 0, found {2**64}"),
    "an end of 2^63": (one(offsets=[0, 2**63]), "does not fit"),
    "an end of 4000 digits": (one(offsets=[0, 10**4000]), "a number out of range"),
    "bytes after the last tensor": (one() + b"PK\x05\x06", "bytes follow the last tensor"),
    "bytes after no tensor": (raw({}) + b"x", "bytes follow the last tensor"),
    "a byte is missing": (one()[:-1], "truncated"),
    "all data is missing": (raw({"t": entry()}), "truncated"),
    "too few bytes for the shape": (one(shape=[3]), "expected 12 bytes, found 8"),
    "too many bytes for the shape": (one(shape=[1]), "expected 4 bytes, found 8"),
    "bytes for an empty shape": (one(shape=[0, 7]), "expected 0 bytes, found 8"),
    "half a byte": (one("F4", [15], [0, 8]), "does not fit"),
    "a third of a byte": (one("F6_E2M3", [3], [0, 2]), "does not fit"),
    "a dtype of another size": (one("F64"), "expected 16 bytes"),
    "overflow": (one(shape=[2**62, 4], offsets=[0, 0]), "the shape overflows"),
    "overflow of a sum": (one("F64", [2**61], [0, 2**64]), "truncated"),
    "overflow, then zero": (one(shape=[2**40, 2**40, 0], offsets=[0, 0]), "the shape overflows"),
    "zero, then overflow": (one(shape=[0, 2**40, 2**40], offsets=[0, 0]), "the shape overflows"),
    "zero, then 2^63": (one(shape=[0, 2**63], offsets=[0, 0]), "the shape overflows"),
    "overflow to the right size": (one("U8", [2**32, 2**32 + 2**3], [0, 8]), "the shape overflows"),
    "a negative size": (one(shape=[-2]), SIZES),
    "two negative sizes": (one(shape=[-1, -2]), SIZES),
    "a size of minus zero": (t(shape="[2,-0]"), "the shape must be a list of sizes"),
    "a size as a float": (one(shape=[2.0]), SIZES),
    "a size as a boolean": (one(shape=[True, 2]), SIZES),
    "a size as a word": (one(shape=["2"]), SIZES),
    "a size of null": (one(shape=[2, None]), SIZES),
    "a size as a list": (one(shape=[[2]]), SIZES),
    "a shape as a number": (one(shape=2), SIZES),
    "a shape as a word": (one(shape="2"), SIZES),
    "a shape of null": (one(shape=None), SIZES),
    "a shape as an object": (one(shape={"0": 2}), SIZES),
    "65 dimensions": (one(shape=[1] * 64 + [2]), "at most 64, found 65"),
    "dtype F128": (one("F128"), "unknown dtype: found 'F128'"),
    "dtype C128": (one("C128"), "unknown dtype: found 'C128'"),
    "an empty dtype": (one(""), "unknown dtype: found ''"),
    "a lower-case dtype": (one("f32"), "unknown dtype: found 'f32'"),
    "a dtype of torch": (one("float32"), "unknown dtype: found 'float32'"),
    "a dtype with a space": (one("F32 "), "unknown dtype: found 'F32 '"),
    "a dtype with a NUL": (one("F32\0"), "unknown dtype"),
    "a dtype as a list": (one(["F32"]), "unknown dtype"),
    "a dtype as an object": (one({}), "unknown dtype"),
    "a dtype as a number": (one(0), "unknown dtype"),
    "a dtype of null": (one(None), "unknown dtype"),
    "a dtype of a megabyte": (one("F" * 1_000_000), "unknown dtype"),
}

EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
BOMBS = {
    "a length of 100,000,001": (
        both(file(struct.pack("<Q", 100_000_001) + b"{"), lambda: os.truncate(BAD, 200_000_000)),
        "at most 100,000,000",
    ),
    "1,000,001 tensors": (
        lambda: file(spelled(",".join(f'"{number}":{EMPTY}' for number in range(1_000_001)), b""))(),
        "too many tensors",
    ),
    "3,000,000 dimensions": (
        lambda: file(spelled(f'"t":{EMPTY}'.replace("[0]", f"[{'0,' * 2_999_999}0]")))(),
        "too many dimensions",
    ),
    **{
        f"10,000,000 times {part}": (lambda part=part: file(spelled(f'"t":{part * 10_000_000}'))(), words)
        for part, words in {"{": "too many parts", "[": "too many parts", "9": NOT_JSON}.items()
    },
    "10,000,000 letters": (lambda: file(spelled(f'"t":"{"x" * 10_000_000}"'))(), NEEDS),
    "a name of 10 MB": (lambda: file(spelled(f'"{"x" * 10_000_000}":1'))(), NEEDS),
}


def like(dtype: str, shape: list[int], data: bytes) -> bytes:
    """A file with what a run needs, and a tensor `t` of this dtype."""
    weights = torch.arange(48.0).reshape(8, 6).numpy().tobytes()
    header = {
        "block.weight": entry(shape=[8, 6], offsets=[0, 192]),
        "t": entry(dtype, shape, [192, 192 + len(data)]),
    }
    return raw(header, weights + data)


WEIGHTS = '"block.weight":{"dtype":"F32","shape":[8,6],"data_offsets":[0,192]%s}'


def plain(more: str = "", start: str = "", end: str = "", data: bytes = b"\x01" * 192) -> bytes:
    """A file that a run edits, with unusual text in its header."""
    return spelled(start + WEIGHTS % more + end, data)


UNUSUAL = {
    "metadata that are null": plain(end=',"__metadata__":null'),
    "metadata of nothing": plain(end=',"__metadata__":{}'),
    "metadata of a megabyte": plain(end=',"__metadata__":{"k":"%s"}' % ("x" * 1_000_000)),
    "metadata of markup and escapes": plain(end=r',"__metadata__":{"k":"[red]\u001b[31m\u202e"}'),
    "an unknown field": plain(',"x":[1,{"y":null}]'),
    "fields in another order": plain()
    .replace(b'"dtype":"F32",', b"")
    .replace(b"192]", b'192],"dtype":"F32"'),
    "an unaligned header": plain(start=" "),
    "spaces and line breaks between": plain(start="\n\t\r ", end="\n \t"),
    "spaces after the JSON": raw(b"{" + WEIGHTS.encode() % b"" + b"}   ", b"\x01" * 192),
    "an unaligned tensor": spelled(
        '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' + WEIGHTS.replace("[0,192]", "[1,193]") % "",
        b"\x01" * 193,
    ),
    "tensors in another order than their bytes": spelled(
        WEIGHTS.replace("[0,192]", "[8,200]") % "" + ',"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}',
        b"\x01" * 200,
    ),
    "two empty tensors in one place": plain(
        end=',"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
        '"b":{"dtype":"F16","shape":[2,0],"data_offsets":[0,0]}'
    ),
    "an empty tensor at the end": plain(end=',"a":{"dtype":"F32","shape":[0],"data_offsets":[192,192]}'),
    "64 dimensions": like("I16", [1] * 64, b"\x01\x02"),
    "a scalar": like("F32", [], bytes(4)),
    "an integer scalar": like("I64", [], bytes(8)),
    "an empty vector": like("BF16", [0], b""),
    "an empty stack": like("F16", [0, 3, 4], b""),
    **{
        f"dtype {dtype}": like(dtype, [2, 4], b"\x01" * (bits * 8 // 8))
        for dtype, bits in {
            "BOOL": 8,
            "F4": 4,
            "F6_E2M3": 6,
            "F6_E3M2": 6,
            "F8_E8M0": 8,
            "I16": 16,
            "U16": 16,
            "I32": 32,
            "U32": 32,
            "F64": 64,
            "I64": 64,
            "U64": 64,
            "C64": 64,
        }.items()
    },
    "a bool that is neither": like("BOOL", [4], bytes([0, 1, 2, 255])),
    "F4 of an odd last dimension": like("F4", [2, 3], bytes(3)),
}

ROWS = [
    *refused_files(MALFORMED),
    *refused_files(BOMBS),
    refused("no tensors", file(raw({})), "bad.safetensors: holds no tensors", lines=given(BAD)),
    *(
        accepted(name, file(content), lines=[AS_FINETUNED.format(BAD), AS_BASE.format(BAD)])
        for name, content in UNUSUAL.items()
    ),
]

THOROUGH = {"3,000,000 dimensions", "10,000,000 times ["}
